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
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As long may an API server be silent when it is asked.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time between two watches of the same objects.
const MIN_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// So many in a row may follow each other so soon.
const MAX_BRIEF_WATCHES: u32 = 2;
/// More of a refusal than this is not read, in bytes: one that asks for patience is a line.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

/// The client of an API server, for everything that speaks to it.
///
/// A request whose answer does not begin within `ANSWER` fails. Between two watches of the same objects lies
/// a second: those that end as they begin must not be asked for in a circle. A refusal carries what the header
/// Retry-After asks for in `details.retryAfterSeconds`: an API server that has too much to do says it only in
/// the header.
fn build_client(mut config: Config) -> kube::Result<Client> {
    // Each part asks again by itself, and says so.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder
        .with_layer(&AndThenLayer::new(add_retry_after))
        .with_layer(&TimeoutLayer::new(RESPONSE_TIMEOUT))
        .with_layer(&layer_fn(|inner| WatchPacing { inner, started_watches: Arc::default() }))
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
    fn new(why: &impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// Finds the API server of the kubeconfig, or the one that this process runs in. That it answers is not known.
pub async fn infer() -> Result<InferredApiServer, NoApiServer> {
    let mut config = Config::infer().await.map_err(|error| NoApiServer::new(&error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    let address = config.cluster_url.to_string().trim_end_matches('/').into();
    let namespace = config.default_namespace.clone();
    let client = build_client(config).map_err(|error| NoApiServer::new(&error))?;
    Ok(InferredApiServer { client, address, namespace })
}

/// Holds a watch up that follows another one of the same objects too soon.
struct WatchPacing<S> {
    inner: S,
    started_watches: Arc<Mutex<StartedWatches>>,
}

/// Why a watch is not begun.
#[derive(Debug, thiserror::Error)]
#[error("watches end as soon as they have begun")]
pub struct WatchTooBrief;

/// When the last watch began, and the how-many-th too soon it was, by path and field selector. One that was
/// refused did not begin, and what does not matter any longer is left out.
#[derive(Default)]
struct StartedWatches(HashMap<String, (Instant, u32)>);

/// A watch that may begin.
struct WatchSlot {
    watch_key: String,
    starts_at: Instant,
    count: u32,
}

impl StartedWatches {
    /// When a watch of these objects may begin.
    fn reserve(&mut self, objects: String, now: Instant) -> Result<WatchSlot, WatchTooBrief> {
        self.0.retain(|_, (begun, _)| *begun + MIN_WATCH_INTERVAL > now);
        let (due, count) = match self.0.remove(&objects) {
            Some((_, MAX_BRIEF_WATCHES)) => return Err(WatchTooBrief),
            Some((begun, count)) => (begun + MIN_WATCH_INTERVAL, count + 1),
            None => (now, 1),
        };
        Ok(WatchSlot { watch_key: objects, starts_at: due, count })
    }

    fn record_start(&mut self, WatchSlot { watch_key: objects, starts_at: due, count }: WatchSlot) {
        self.0.insert(objects, (due, count));
    }
}

/// What a request watches, if that is what it does.
fn watch_key(uri: &Uri) -> Option<String> {
    let parameters = || uri.query().unwrap_or_default().split('&');
    parameters().find(|parameter| parameter.starts_with("watch="))?;
    let selector = parameters().find(|parameter| parameter.starts_with("fieldSelector="));
    Some(format!("{}?{}", uri.path(), selector.unwrap_or_default()))
}

impl<S, B, A> Service<Request<B>> for WatchPacing<S>
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
        let begun = self.started_watches.clone();
        let turn = watch_key(request.uri()).map(|objects| begun.lock().reserve(objects, Instant::now()));
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        async move {
            let turn = turn.transpose()?;
            if let Some(turn) = &turn {
                sleep_until(turn.starts_at).await;
            }
            let answer = answer.await?;
            if let Some(turn) = turn.filter(|_| answer.status().is_success()) {
                begun.lock().record_start(turn);
            }
            Ok(answer)
        }
        .boxed()
    }
}

async fn add_retry_after(answer: Response<Box<DynBody>>) -> Result<Response<Box<DynBody>>, BoxError> {
    let (parts, mut body) = answer.into_parts();
    if let Some(seconds) = retry_after_seconds(parts.status, &parts.headers) {
        let mut text = Vec::new();
        while text.len() < MAX_ERROR_BODY_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend(frame.data_ref().into_iter().flatten());
        }
        let refusal = serde_json::to_vec(&status_with_retry_after(parts.status, &text, seconds))?;
        body = Box::new(Full::from(refusal).map_err(BoxError::from));
    }
    Ok(Response::from_parts(parts, body))
}

/// The seconds after which a refused request may be made again.
fn retry_after_seconds(status: StatusCode, headers: &HeaderMap) -> Option<u32> {
    let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    headers.get(RETRY_AFTER).filter(|_| refused)?.to_str().ok()?.trim().parse().ok()
}

/// The refusal as the API server told it, in words or as a `Status`, with the wait.
fn status_with_retry_after(status: StatusCode, text: &[u8], seconds: u32) -> Status {
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
pub fn describe_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.trim().is_empty() => format!("HTTP {}", status.code),
        kube::Error::Api(status) => status.message.trim().to_owned(),
        kube::Error::Service(inner) if inner.is::<Elapsed>() => {
            format!("no answer within {} s", RESPONSE_TIMEOUT.as_secs())
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
    fn repeated_watch_of_the_same_objects_is_delayed() {
        let start = Instant::now();
        let mut begun = StartedWatches::default();
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
            let wait = match watch_key(&uri.parse().unwrap()).map(|objects| begun.reserve(objects, now)) {
                None => Some(Duration::ZERO),
                Some(Err(WatchTooBrief)) => None,
                Some(Ok(turn)) => {
                    let wait = turn.starts_at - now;
                    if accepted {
                        begun.record_start(turn);
                    }
                    Some(wait)
                }
            };
            assert_eq!(wait, expected.map(Duration::from_millis), "{uri} {at}");
        }
        assert_eq!(begun.0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn error_status_includes_the_retry_after_header() {
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
            let told = retry_after_seconds(status, &headers)
                .map(|seconds| status_with_retry_after(status, text, seconds));
            let wait = told.as_ref().and_then(retry_after).map(|wait| wait.as_secs());
            assert_eq!(wait, expected, "{status} {header:?}");
            assert!(told.is_none_or(|told| !told.message.is_empty() && told.code == status.as_u16()));
        }
        let told = status_with_retry_after(StatusCode::TOO_MANY_REQUESTS, whole, 7);
        assert_eq!((told.message.as_str(), told.details.unwrap().kind.as_str()), ("slow", "skills"));
    }

    #[test]
    fn request_error_is_described_in_one_sentence() {
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
            assert_eq!(describe_error(&error), expected);
        }
    }
}
