//! The client for Kubernetes API servers: timeouts, the minimum interval between watches, and Retry-After.

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

/// The timeout for establishing a connection to an API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout for the start of an API server's response to a request.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The minimum time between the starts of two watches of the same objects.
const MIN_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The number of consecutive watches that may follow each other within [`MIN_WATCH_INTERVAL`].
const MAX_BRIEF_WATCHES: u32 = 2;
/// The maximum number of bytes of an error body with Retry-After that are read. Usually it is one line.
const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

/// Builds the client for an API server.
///
/// A request fails if its response does not start within [`RESPONSE_TIMEOUT`]. Consecutive watches of the same objects
/// start at least a second apart, so that watches which end immediately do not cause a busy loop. An error response has
/// the value of the header Retry-After in `details.retryAfterSeconds`, because an overloaded API server sends it only
/// in the header.
fn build_client(mut config: Config) -> kube::Result<Client> {
    // The callers retry and log on their own.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder
        .with_layer(&AndThenLayer::new(add_retry_after))
        .with_layer(&TimeoutLayer::new(RESPONSE_TIMEOUT))
        .with_layer(&layer_fn(|inner| WatchPacing { inner, started_watches: Arc::default() }))
        .build())
}

/// The API server that is inferred from the environment of the process.
#[derive(Clone)]
pub struct InferredApiServer {
    /// The client.
    pub client: Client,
    /// The address.
    pub address: Arc<str>,
    /// The namespace of the kubeconfig's context, or the namespace in which this process runs.
    pub namespace: String,
}

/// An error: no API server is configured.
#[derive(Debug, thiserror::Error)]
#[error("no Kubernetes API server is configured: {0}; set KUBECONFIG, or run evenkeel in a cluster")]
pub struct NoApiServer(String);

impl NoApiServer {
    fn new(error: &impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Infers the API server from the kubeconfig or, in a pod, from the cluster. Does not connect to it.
///
/// Fails if neither is available or if the configuration is invalid.
pub async fn infer() -> Result<InferredApiServer, NoApiServer> {
    let mut config = Config::infer().await.map_err(|error| NoApiServer::new(&error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let user_agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, user_agent));
    let address = config.cluster_url.to_string().trim_end_matches('/').into();
    let namespace = config.default_namespace.clone();
    let client = build_client(config).map_err(|error| NoApiServer::new(&error))?;
    Ok(InferredApiServer { client, address, namespace })
}

/// Middleware that delays a watch if it follows another watch of the same objects too soon.
struct WatchPacing<S> {
    inner: S,
    started_watches: Arc<Mutex<StartedWatches>>,
}

/// An error: a watch is not started because several watches of the same objects ended immediately.
#[derive(Debug, thiserror::Error)]
#[error("watches end as soon as they have begun")]
pub struct WatchTooBrief;

/// The start of the last watch and the number of consecutive watches that followed too soon, by path and field
/// selector. A watch that the API server rejected does not count. Entries older than [`MIN_WATCH_INTERVAL`] are
/// removed.
#[derive(Default)]
struct StartedWatches(HashMap<String, (Instant, u32)>);

/// The permission to start a watch at a given time.
struct WatchSlot {
    watch_key: String,
    starts_at: Instant,
    count: u32,
}

impl StartedWatches {
    /// Returns the time at which a watch of these objects may start.
    fn reserve(&mut self, key: String, now: Instant) -> Result<WatchSlot, WatchTooBrief> {
        self.0.retain(|_, (started_at, _)| *started_at + MIN_WATCH_INTERVAL > now);
        let (starts_at, count) = match self.0.remove(&key) {
            Some((_, MAX_BRIEF_WATCHES)) => return Err(WatchTooBrief),
            Some((started_at, count)) => (started_at + MIN_WATCH_INTERVAL, count + 1),
            None => (now, 1),
        };
        Ok(WatchSlot { watch_key: key, starts_at, count })
    }

    fn record_start(&mut self, WatchSlot { watch_key: key, starts_at, count }: WatchSlot) {
        self.0.insert(key, (starts_at, count));
    }
}

/// Returns the path and field selector of a watch request; `None` for other requests.
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
        let started_watches = self.started_watches.clone();
        let slot = watch_key(request.uri()).map(|key| started_watches.lock().reserve(key, Instant::now()));
        // The request is not sent before this future is polled.
        let response = self.inner.call(request);
        async move {
            let slot = slot.transpose()?;
            if let Some(slot) = &slot {
                sleep_until(slot.starts_at).await;
            }
            let response = response.await?;
            if let Some(slot) = slot.filter(|_| response.status().is_success()) {
                started_watches.lock().record_start(slot);
            }
            Ok(response)
        }
        .boxed()
    }
}

async fn add_retry_after(response: Response<Box<DynBody>>) -> Result<Response<Box<DynBody>>, BoxError> {
    let (parts, mut body) = response.into_parts();
    if let Some(seconds) = retry_after_seconds(parts.status, &parts.headers) {
        let mut text = Vec::new();
        while text.len() < MAX_ERROR_BODY_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend(frame.data_ref().into_iter().flatten());
        }
        let body_bytes = serde_json::to_vec(&status_with_retry_after(parts.status, &text, seconds))?;
        body = Box::new(Full::from(body_bytes).map_err(BoxError::from));
    }
    Ok(Response::from_parts(parts, body))
}

/// Returns the seconds of the header Retry-After of a 429 or 503 response.
fn retry_after_seconds(status: StatusCode, headers: &HeaderMap) -> Option<u32> {
    let is_overloaded = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    headers.get(RETRY_AFTER).filter(|_| is_overloaded)?.to_str().ok()?.trim().parse().ok()
}

/// Returns the error of a response as a `Status` with `retryAfterSeconds`. The body may be plain text or a `Status`.
fn status_with_retry_after(status: StatusCode, text: &[u8], seconds: u32) -> Status {
    let from_text = || {
        let text = String::from_utf8_lossy(text);
        let message = if text.trim().is_empty() { status.to_string() } else { text.trim().to_owned() };
        Status::failure(&message, "").with_code(status.as_u16())
    };
    let mut error_status = serde_json::from_slice(text).unwrap_or_else(|_| from_text());
    let details = error_status.details.get_or_insert_with(|| StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    });
    details.retry_after_seconds = details.retry_after_seconds.max(seconds);
    error_status
}

/// Returns the delay before the next attempt that an error response asks for.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Describes why a request failed: the API server's message, or the innermost cause.
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

/// Returns the innermost cause of an error. The outer errors only say that something failed.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_watch_of_the_same_objects_is_delayed() {
        let start = Instant::now();
        let mut watches = StartedWatches::default();
        let secrets = "/api/v1/namespaces/a/secrets?watch=true&fieldSelector=metadata.name%3D";
        for (uri, millis, accepted, expected) in [
            (format!("{secrets}one&resourceVersion=0"), 0, true, Some(0)),
            (format!("{secrets}two&resourceVersion=0"), 0, true, Some(0)),
            (format!("{secrets}one&resourceVersion=7"), 100, true, Some(900)),
            // The second consecutive watch, after the delayed one.
            (format!("{secrets}one&resourceVersion=7"), 1_500, true, None),
            (format!("{secrets}one&resourceVersion=7"), 1_600, true, Some(0)),
            ("/api/v1/namespaces/a/secrets?limit=500".to_owned(), 1_600, true, Some(0)),
            // Rejected by the API server, so not started.
            (format!("{secrets}two&resourceVersion=9"), 5_000, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 5_300, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 5_600, false, Some(0)),
            (format!("{secrets}two&resourceVersion=9"), 65_000, true, Some(0)),
        ] {
            let now = start + Duration::from_millis(millis);
            let delay = match watch_key(&uri.parse().unwrap()).map(|key| watches.reserve(key, now)) {
                None => Some(Duration::ZERO),
                Some(Err(WatchTooBrief)) => None,
                Some(Ok(slot)) => {
                    let delay = slot.starts_at - now;
                    if accepted {
                        watches.record_start(slot);
                    }
                    Some(delay)
                }
            };
            assert_eq!(delay, expected.map(Duration::from_millis), "{uri} {millis}");
        }
        assert_eq!(watches.0.len(), 1, "expired entries are removed");
    }

    #[test]
    fn error_status_includes_the_retry_after_header() {
        let status_json = br#"{"kind":"Status","status":"Failure","message":"slow","code":429,"details":{"kind":"skills","retryAfterSeconds":1}}"#;
        for (status, header, text, expected) in [
            (429, Some("7"), &b"Too many requests, please try again later.\n"[..], Some(7)),
            (503, Some(" 2 "), b"", Some(2)),
            (429, Some("7"), status_json, Some(7)),
            (429, Some("soon"), b"", None),
            (429, None, b"", None),
            (500, Some("7"), b"", None),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let headers = header.map(|value| (RETRY_AFTER, value.parse().unwrap())).into_iter().collect();
            let error_status = retry_after_seconds(status, &headers)
                .map(|seconds| status_with_retry_after(status, text, seconds));
            let delay = error_status.as_ref().and_then(retry_after).map(|delay| delay.as_secs());
            assert_eq!(delay, expected, "{status} {header:?}");
            assert!(error_status.is_none_or(
                |error_status| !error_status.message.is_empty() && error_status.code == status.as_u16()
            ));
        }
        let error_status = status_with_retry_after(StatusCode::TOO_MANY_REQUESTS, status_json, 7);
        assert_eq!(
            (error_status.message.as_str(), error_status.details.unwrap().kind.as_str()),
            ("slow", "skills")
        );
    }

    #[test]
    fn request_error_is_described_in_one_sentence() {
        let api =
            |code, message: &str| kube::Error::Api(Status::failure(message, "").with_code(code).boxed());
        let refused = io::Error::other("connection refused");
        let timed_out = io::Error::new(io::ErrorKind::TimedOut, "deadline has elapsed");
        for (error, expected) in [
            (api(403, "leases is forbidden"), "leases is forbidden"),
            (api(502, " "), "HTTP 502"),
            (kube::Error::Service(Box::new(Elapsed::new())), "no answer within 10 s"),
            (kube::Error::Service(Box::new(refused)), "connection refused"),
            (kube::Error::Service(Box::new(timed_out)), "connection timed out"),
        ] {
            assert_eq!(describe_error(&error), expected);
        }
    }
}
