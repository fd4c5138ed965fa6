//! Requests to an API server of Kubernetes, for everything that speaks to one.

//! The client of an API server: how long it waits, and how often a watch may begin.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use kube::client::{ClientBuilder, DynBody};
use kube::core::Status;
use kube::core::response::StatusDetails;
use kube::{Client, Config};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tower::layer::layer_fn;
use tower::timeout::TimeoutLayer;
use tower::timeout::error::Elapsed;
use tower::util::AndThenLayer;
use tower::{BoxError, Service};

/// How long a connection to an API server may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// As long may an API server be silent when it is asked.
pub const ANSWER: Duration = Duration::from_secs(10);
/// The time between two watches of the same objects.
const PACE: Duration = Duration::from_secs(1);
/// So many in a row may follow each other so soon.
const BRIEF: u32 = 2;
/// More of a refusal than this is not read, in bytes: one that asks for patience is a line.
const LONGEST_REFUSAL: usize = 64 << 10;

/// The client of an API server, for everything that speaks to it.
///
/// A request whose answer does not begin within `ANSWER` fails. Between two watches of the same objects lies
/// a second: those that end as they begin must not be asked for in a circle. A refusal carries what the header
/// Retry-After asks for in `details.retryAfterSeconds`: an API server that has too much to do says it only in
/// the header.
fn connect(mut config: Config) -> kube::Result<Client> {
    // Each part asks again by itself, and says so.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder
        .with_layer(&AndThenLayer::new(with_patience))
        .with_layer(&TimeoutLayer::new(ANSWER))
        .with_layer(&layer_fn(|inner| Paced { inner, begun: Arc::default() }))
        .build())
}

/// The API server that a process is told of by its surroundings.
#[derive(Clone)]
pub struct InferredApiServer {
    /// Its client.
    pub client: Client,
    /// Its address.
    pub address: Arc<str>,
    /// The namespace of the kubeconfig's context, or the one that this process runs in.
    pub namespace: String,
}

/// No API server is known.
#[derive(Debug, thiserror::Error)]
#[error("no API server is known: {0}; set KUBECONFIG, or run evenkeel in a cluster")]
pub struct NoApiServer(String);

impl NoApiServer {
    fn because(why: &impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Finds the API server of the kubeconfig, or the one that this process runs in. That it answers is not known.
pub async fn infer() -> Result<InferredApiServer, NoApiServer> {
    let mut config = Config::infer().await.map_err(|error| NoApiServer::because(&error))?;
    config.connect_timeout = Some(CONNECT);
    let agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    let address = config.cluster_url.to_string().trim_end_matches('/').into();
    let namespace = config.default_namespace.clone();
    let client = connect(config).map_err(|error| NoApiServer::because(&error))?;
    Ok(InferredApiServer { client, address, namespace })
}

/// Holds a watch up that follows another one of the same objects too soon.
struct Paced<S> {
    inner: S,
    begun: Arc<Mutex<Begun>>,
}

/// Why a watch is not begun.
#[derive(Debug, thiserror::Error)]
#[error("watches end as soon as they have begun")]
pub struct WatchTooBrief;

/// When the last watch began, and the how-many-th too soon it was, by path and field selector. One that was
/// refused did not begin, and what does not matter any longer is left out.
#[derive(Default)]
struct Begun(HashMap<String, (Instant, u32)>);

/// A watch that may begin.
struct Turn {
    objects: String,
    due: Instant,
    count: u32,
}

impl Begun {
    /// When a watch of these objects may begin.
    fn turn(&mut self, objects: String, now: Instant) -> Result<Turn, WatchTooBrief> {
        self.0.retain(|_, (begun, _)| *begun + PACE > now);
        let (due, count) = match self.0.remove(&objects) {
            Some((_, BRIEF)) => return Err(WatchTooBrief),
            Some((begun, count)) => (begun + PACE, count + 1),
            None => (now, 1),
        };
        Ok(Turn { objects, due, count })
    }

    fn begin(&mut self, Turn { objects, due, count }: Turn) {
        self.0.insert(objects, (due, count));
    }
}

/// What a request watches, if that is what it does.
fn watched(uri: &Uri) -> Option<String> {
    let parameters = || uri.query().unwrap_or_default().split('&');
    parameters().find(|parameter| parameter.starts_with("watch="))?;
    let selector = parameters().find(|parameter| parameter.starts_with("fieldSelector="));
    Some(format!("{}?{}", uri.path(), selector.unwrap_or_default()))
}

impl<S, B, A> Service<Request<B>> for Paced<S>
where
    S: Service<Request<B>, Response = Response<A>, Error = BoxError, Future: Send + 'static>,
    A: Send + 'static,
{
    type Response = Response<A>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<A>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let begun = self.begun.clone();
        let turn = watched(request.uri()).map(|objects| begun.lock().turn(objects, Instant::now()));
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        async move {
            let turn = turn.transpose()?;
            if let Some(turn) = &turn {
                sleep_until(turn.due).await;
            }
            let answer = answer.await?;
            if let Some(turn) = turn.filter(|_| answer.status().is_success()) {
                begun.lock().begin(turn);
            }
            Ok(answer)
        }
        .boxed()
    }
}

async fn with_patience(answer: Response<Box<DynBody>>) -> Result<Response<Box<DynBody>>, BoxError> {
    let (parts, mut body) = answer.into_parts();
    if let Some(seconds) = asked_for(parts.status, &parts.headers) {
        let mut text = Vec::new();
        while text.len() < LONGEST_REFUSAL
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend(frame.data_ref().into_iter().flatten());
        }
        let refusal = serde_json::to_vec(&patient(parts.status, &text, seconds))?;
        body = Box::new(Full::from(refusal).map_err(BoxError::from));
    }
    Ok(Response::from_parts(parts, body))
}

/// The seconds after which a refused request may be made again.
fn asked_for(status: StatusCode, headers: &HeaderMap) -> Option<u32> {
    let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    headers.get(RETRY_AFTER).filter(|_| refused)?.to_str().ok()?.trim().parse().ok()
}

/// The refusal as the API server told it, in words or as a `Status`, with the wait.
fn patient(status: StatusCode, text: &[u8], seconds: u32) -> Status {
    let words = || {
        let text = String::from_utf8_lossy(text);
        let message = if text.trim().is_empty() { status.to_string() } else { text.trim().to_owned() };
        Status::failure(&message, "").with_code(status.as_u16())
    };
    let mut told = serde_json::from_slice(text).unwrap_or_else(|_| words());
    let details = told.details.get_or_insert_with(|| StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    });
    details.retry_after_seconds = details.retry_after_seconds.max(seconds);
    told
}

/// The wait that a refusal asks for.
pub fn retry_after(refusal: &Status) -> Option<Duration> {
    let seconds = refusal.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Tells why a request failed, for a person: what the API server said, or what is at the bottom of it.
pub fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.trim().is_empty() => format!("HTTP {}", status.code),
        kube::Error::Api(status) => status.message.trim().to_owned(),
        kube::Error::Service(inner) if inner.is::<Elapsed>() => {
            format!("no answer within {} s", ANSWER.as_secs())
        }
        other => root_cause(other),
    }
}

/// Gives the innermost cause: what is around it says only that something failed.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(late) if late.kind() == io::ErrorKind::TimedOut => "no connection in time".to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_follows_another_of_the_same_objects_waits() {
        let start = Instant::now();
        let mut begun = Begun::default();
        let secrets = "/api/v1/namespaces/a/secrets?watch=true&fieldSelector=metadata.name%3D";
        for (uri, at, accepted, expected) in [
            (format!("{secrets}one&resourceVersion=0"), 0, true, Some(0)),
            (format!("{secrets}two&resourceVersion=0"), 0, true, Some(0)),
            (format!("{secrets}one&resourceVersion=7"), 100, true, Some(900)),
            // The second in a row, after the one that waits.
            (format!("{secrets}one&resourceVersion=7"), 1_500, true, None),
            (format!("{secrets}one&resourceVersion=7"), 1_600, true, Some(0)),
            ("/api/v1/namespaces/a/secrets?limit=500".to_owned(), 1_600, true, Some(0)),
            // Refused, and so never begun.
            (format!("{secrets}two&resourceVersion=9"), 5_000, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 5_300, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 5_600, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 65_000, true, Some(0)),
        ] {
            let now = start + Duration::from_millis(at);
            let wait = match watched(&uri.parse().unwrap()).map(|objects| begun.turn(objects, now)) {
                None => Some(Duration::ZERO),
                Some(Err(WatchTooBrief)) => None,
                Some(Ok(turn)) => {
                    let wait = turn.due - now;
                    if accepted {
                        begun.begin(turn);
                    }
                    Some(wait)
                }
            };
            assert_eq!(wait, expected.map(Duration::from_millis), "{uri} {at}");
        }
        assert_eq!(begun.0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_refusal_carries_the_wait_of_its_header() {
        let whole = br#"{"kind":"Status","status":"Failure","message":"slow","code":429,"details":{"kind":"skills","retryAfterSeconds":1}}"#;
        for (status, header, text, expected) in [
            (429, Some("7"), &b"Too many requests, please try again later.\n"[..], Some(7)),
            (503, Some(" 2 "), b"", Some(2)),
            (429, Some("7"), whole, Some(7)),
            (429, Some("soon"), b"", None),
            (429, None, b"", None),
            (500, Some("7"), b"", None),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let headers = header.map(|value| (RETRY_AFTER, value.parse().unwrap())).into_iter().collect();
            let told = asked_for(status, &headers).map(|seconds| patient(status, text, seconds));
            let wait = told.as_ref().and_then(retry_after).map(|wait| wait.as_secs());
            assert_eq!(wait, expected, "{status} {header:?}");
            assert!(told.is_none_or(|told| !told.message.is_empty() && told.code == status.as_u16()));
        }
        let told = patient(StatusCode::TOO_MANY_REQUESTS, whole, 7);
        assert_eq!((told.message.as_str(), told.details.unwrap().kind.as_str()), ("slow", "skills"));
    }

    #[test]
    fn a_failure_is_a_sentence_and_not_what_a_debugger_shows() {
        let api =
            |code, message: &str| kube::Error::Api(Status::failure(message, "").with_code(code).boxed());
        let refused = io::Error::other("connection refused");
        let late = io::Error::new(io::ErrorKind::TimedOut, "deadline has elapsed");
        for (error, expected) in [
            (api(403, "leases is forbidden"), "leases is forbidden"),
            (api(502, " "), "HTTP 502"),
            (kube::Error::Service(Box::new(Elapsed::new())), "no answer within 10 s"),
            (kube::Error::Service(Box::new(refused)), "connection refused"),
            (kube::Error::Service(Box::new(late)), "no connection in time"),
        ] {
            assert_eq!(in_words(&error), expected);
        }
    }
}
