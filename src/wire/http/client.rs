use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::response::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;
use tracing::debug;
use url::Url;

use super::super::connection_context::ConnectionContext;
use super::super::error::ConnectionError;
use super::super::handshake_result::MODERN;
use super::super::notifications::NotificationDispatcher;
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use super::super::{Era, HandshakeResult, ListKind, RetryAfter};
use super::connect::Connector;
use super::credentials::Credentials;
use super::header::encoded;
use super::pool::{ConnectionPool, PooledBody};
use super::post_queue::PostQueue;
use super::refusal::{refusal, retry_after};
use super::session::SessionCheck;
use crate::resource::{HttpEndpoint, Reason};

pub(super) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// How much of an error's body is read.
pub(super) const ERROR_BODY: usize = 64 * 1024;
/// How long it may take to come: the status says enough without it.
const ERROR_TIME: Duration = Duration::from_secs(2);
/// How long the end of a session may take.
pub(super) const GOODBYE: Duration = Duration::from_secs(3);

/// A server behind a URL. Cheap to clone.
#[derive(Clone)]
pub(in crate::wire) struct HttpClient(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) pool: Arc<ConnectionPool>,
    url: Url,
    pub(super) manner: ArcSwap<RequestTemplate>,
    credentials: Credentials,
    closed: AtomicBool,
    pub(super) pause: RetryAfter,
    /// The fleet's: waited for when evenkeel ends.
    pub(super) tasks: TaskTracker,
    pub(super) ears: NotificationDispatcher,
    pub(super) outbox: PostQueue,
    /// Made when a response first leaves open whether the server knows the session.
    pub(super) session_check: OnceLock<Box<SessionCheck>>,
}

/// How requests are made. Changes only while the handshake goes on, which makes one request after another.
#[derive(Clone)]
pub(super) struct RequestTemplate {
    /// `None` until the handshake has agreed on one.
    era: Option<Era>,
    /// Path and query; another one after the server redirected within its origin.
    pub(super) target: Uri,
    /// What every request carries.
    pub(super) headers: HeaderMap,
    /// A list that the server has, to be asked for where it does not answer a `ping`.
    pub(super) list: Option<ListKind>,
}

impl HttpClient {
    pub(in crate::wire) fn new(
        endpoint: &HttpEndpoint,
        ears: NotificationDispatcher,
        process: &ConnectionContext,
    ) -> Result<Self, ConnectionError> {
        let invalid = |message: String| ConnectionError::new(Reason::InvalidSpec, message);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION"))));
        let host = endpoint.url.host_str().unwrap_or_default();
        let host = endpoint.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        headers.insert(
            HOST,
            HeaderValue::from_str(&host).map_err(|_| invalid(format!("{host:?} is not a host")))?,
        );
        let target = target(&endpoint.url).ok_or_else(|| invalid("the url's path cannot be used".into()))?;
        Ok(Self(Arc::new(Inner {
            pool: ConnectionPool::new(Connector::new(endpoint)?),
            url: endpoint.url.clone(),
            manner: ArcSwap::from_pointee(RequestTemplate { era: None, target, headers, list: None }),
            credentials: Credentials::declared(endpoint)?,
            closed: AtomicBool::new(false),
            pause: process.pause.clone(),
            tasks: process.tasks.clone(),
            ears,
            outbox: PostQueue::default(),
            session_check: OnceLock::new(),
        })))
    }

    /// Until when the server wants to be left alone.
    pub(super) fn pause(&self) -> &RetryAfter {
        &self.0.pause
    }

    /// Where goes what the server says unasked.
    pub(in crate::wire) fn ears(&self) -> &NotificationDispatcher {
        &self.0.ears
    }

    /// Takes over what the handshake agreed on, for every request from now on.
    pub(in crate::wire) fn agreed(&self, peer: &HandshakeResult) {
        self.learn(|manner| {
            manner.era = Some(peer.era);
            manner.list = peer.capabilities.lists().next();
            if let Ok(version) = HeaderValue::from_str(&peer.about.protocol_version) {
                manner.headers.insert(VERSION, version);
            }
        });
    }

    pub(super) fn learn(&self, change: impl FnOnce(&mut RequestTemplate)) {
        let mut manner = RequestTemplate::clone(&self.0.manner.load());
        change(&mut manner);
        self.0.manner.store(Arc::new(manner));
    }

    /// True until the handshake has agreed on how to go on.
    pub(super) fn is_opening(&self) -> bool {
        self.0.manner.load().era.is_none()
    }

    pub(super) fn has_session(&self) -> bool {
        self.0.manner.load().headers.contains_key(SESSION)
    }

    /// Posts a notification, or an answer to a request of the server.
    pub(in crate::wire) async fn notify(&self, method: &str, message: Bytes) -> Result<(), ConnectionError> {
        let response = self.send(&Method::POST, self.headers(method, None), &message).await?;
        if response.status().is_success() {
            // The status is the answer. A body, which some servers send, is read over before the connection is used again.
            response.into_body().recycle();
            return Ok(());
        }
        let (head, body) = response.into_parts();
        let body = within(body.collect(ERROR_BODY)).await.and_then(Result::ok).unwrap_or_default();
        match self.refused(&head, &body) {
            RequestError::Error(error) => Err(error),
            RequestError::Answer(_) => Ok(()),
        }
    }

    pub(super) async fn send(
        &self,
        method: &Method,
        mut headers: HeaderMap,
        body: &Bytes,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        if let Some(error) = self.0.pause.refusal() {
            return Err(error);
        }
        self.0.credentials.authorize(&mut headers);
        // Where the server is shows in the first request; no later one is kept to be sent elsewhere.
        let again = self.is_opening().then(|| headers.clone());
        let target = self.0.manner.load().target.clone();
        let response = self.0.pool.send(request(method, target, headers, body)).await?;
        match again.zip(self.moved(&response)) {
            None => Ok(response),
            Some((headers, to)) => {
                self.learn(|manner| manner.target = to.clone());
                self.0.pool.send(request(method, to, headers, body)).await
            }
        }
    }

    /// Where the server redirects to, if that is within its own origin and keeps the method.
    fn moved(&self, response: &Response<PooledBody>) -> Option<Uri> {
        if !matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return None;
        }
        let to = self.0.url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
        (to.origin() == self.0.url.origin()).then(|| target(&to)).flatten()
    }

    pub(super) fn headers(&self, method: &str, name: Option<&str>) -> HeaderMap {
        let manner = self.0.manner.load();
        let mut headers = manner.headers.clone();
        // Before the agreement the probe is modern; `initialize` and its confirmation are legacy.
        let probes = manner.era.is_none() && method == "server/discover";
        if probes {
            headers.insert(VERSION, HeaderValue::from_static(MODERN));
        }
        if probes || manner.era == Some(Era::Modern) {
            if let Ok(method) = HeaderValue::from_str(method) {
                headers.insert(METHOD, method);
            }
            if let Some(name) = name.and_then(encoded) {
                headers.insert(NAME, name);
            }
        }
        headers
    }

    /// What a response that says no success means; `body` is its start.
    pub(super) fn refused(&self, head: &Parts, body: &Bytes) -> RequestError {
        if let Some(wait) = retry_after(&head.headers, Timestamp::now()) {
            self.0.pause.ask(wait);
        }
        let is_text =
            head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
        let text = match server_message::classify(body) {
            // What these say is for who connects, and not for who asked.
            Ok(ServerMessage::Answer(_, RpcResponse::Error(raw))) if concerns_the_connection(head.status) => {
                server_message::error_message(&raw).unwrap_or_default()
            }
            Ok(ServerMessage::Answer(_, reply @ RpcResponse::Error(_))) => {
                return RequestError::Answer(reply);
            }
            _ if is_text => String::from_utf8_lossy(body).into_owned(),
            _ => String::new(),
        };
        let Inner { ears, credentials, .. } = &*self.0;
        if matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !self.is_opening() {
            ears.doubt();
        }
        RequestError::Error(refusal(
            head.status,
            &head.headers,
            &text,
            ears.mask(),
            !credentials.is_empty(),
            Timestamp::now(),
        ))
    }

    /// Closes the idle connections that cannot be used again after a pause: a server that is not called costs no
    /// buffers.
    pub(in crate::wire) fn rest(&self, pause: Duration) {
        self.0.pool.prune(pause);
    }

    /// Ends the session, if there is one, and every idle connection.
    pub(in crate::wire) async fn close(&self) {
        if self.0.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.0.outbox.close();
        if self.has_session() {
            let headers = self.headers("", None);
            let nothing = Bytes::new();
            let goodbye = self.send(&Method::DELETE, headers, &nothing);
            // 405 says that sessions end by themselves; whatever else happens, we are gone.
            if let Ok(Err(error)) = tokio::time::timeout(GOODBYE, goodbye).await {
                debug!(%error, "the session was not ended");
            }
        }
        self.0.pool.prune(Duration::MAX);
    }
}

/// True for a status that refuses every request alike: credentials are missing or wrong, or the server is busy.
fn concerns_the_connection(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
    )
}

pub(super) enum RequestError {
    /// A JSON-RPC error that answers the request.
    Answer(RpcResponse),
    Error(ConnectionError),
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

fn request(method: &Method, target: Uri, headers: HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    request
}

/// Path and query of a URL, as they stand in a request line.
fn target(url: &Url) -> Option<Uri> {
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Uri::try_from(format!("{}{query}", url.path())).ok()
}

/// What there is of the body of an error, if it comes in time.
pub(super) async fn within<T>(body: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ERROR_TIME, body).await.ok()
}
