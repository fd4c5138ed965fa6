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
use super::super::handshake_result::MODERN_VERSION;
use super::super::notifications::NotificationDispatcher;
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use super::super::{Era, HandshakeResult, ListKind, RetryAfter};
use super::connect::Connector;
use super::credentials::Credentials;
use super::header::encode_header_value;
use super::pool::{ConnectionPool, PooledBody};
use super::post_queue::PostQueue;
use super::session::SessionCheck;
use super::status_error::{retry_after, status_error};
use crate::resource::{HttpEndpoint, Reason};

pub(super) const SESSION_ID_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
const NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

/// How much of an error's body is read.
pub(super) const MAX_ERROR_BODY_BYTES: usize = 64 * 1024;
/// How long it may take to come: the status says enough without it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of a session may take.
pub(super) const BACKGROUND_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A server behind a URL. Cheap to clone.
#[derive(Clone)]
pub(in crate::wire) struct HttpClient(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) pool: Arc<ConnectionPool>,
    url: Url,
    pub(super) template: ArcSwap<RequestTemplate>,
    credentials: Credentials,
    closed: AtomicBool,
    pub(super) retry_after: RetryAfter,
    /// The fleet's: waited for when evenkeel ends.
    pub(super) tasks: TaskTracker,
    pub(super) notifications: NotificationDispatcher,
    pub(super) post_queue: PostQueue,
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
    pub(super) fallback_list: Option<ListKind>,
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
        let target =
            request_target(&endpoint.url).ok_or_else(|| invalid("the url's path cannot be used".into()))?;
        Ok(Self(Arc::new(Inner {
            pool: ConnectionPool::new(Connector::new(endpoint)?),
            url: endpoint.url.clone(),
            template: ArcSwap::from_pointee(RequestTemplate {
                era: None,
                target,
                headers,
                fallback_list: None,
            }),
            credentials: Credentials::from_endpoint(endpoint)?,
            closed: AtomicBool::new(false),
            retry_after: process.retry_after.clone(),
            tasks: process.tasks.clone(),
            notifications: ears,
            post_queue: PostQueue::default(),
            session_check: OnceLock::new(),
        })))
    }

    /// Until when the server wants to be left alone.
    pub(super) fn retry_after(&self) -> &RetryAfter {
        &self.0.retry_after
    }

    /// Where goes what the server says unasked.
    pub(in crate::wire) fn notifications(&self) -> &NotificationDispatcher {
        &self.0.notifications
    }

    /// Takes over what the handshake agreed on, for every request from now on.
    pub(in crate::wire) fn apply_handshake(&self, peer: &HandshakeResult) {
        self.update_template(|manner| {
            manner.era = Some(peer.era);
            manner.fallback_list = peer.capabilities.offered_lists().next();
            if let Ok(version) = HeaderValue::from_str(&peer.description.protocol_version) {
                manner.headers.insert(PROTOCOL_VERSION_HEADER, version);
            }
        });
    }

    pub(super) fn update_template(&self, change: impl FnOnce(&mut RequestTemplate)) {
        let mut manner = RequestTemplate::clone(&self.0.template.load());
        change(&mut manner);
        self.0.template.store(Arc::new(manner));
    }

    /// True until the handshake has agreed on how to go on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.0.template.load().era.is_none()
    }

    pub(super) fn has_session(&self) -> bool {
        self.0.template.load().headers.contains_key(SESSION_ID_HEADER)
    }

    /// Posts a notification, or an answer to a request of the server.
    pub(in crate::wire) async fn notify(&self, method: &str, message: Bytes) -> Result<(), ConnectionError> {
        let response = self.send(&Method::POST, self.request_headers(method, None), &message).await?;
        if response.status().is_success() {
            // The status is the answer. A body, which some servers send, is read over before the connection is used again.
            response.into_body().recycle();
            return Ok(());
        }
        let (head, body) = response.into_parts();
        let body = with_error_body_timeout(body.collect(MAX_ERROR_BODY_BYTES))
            .await
            .and_then(Result::ok)
            .unwrap_or_default();
        match self.error_response(&head, &body) {
            RequestError::Connection(error) => Err(error),
            RequestError::Response(_) => Ok(()),
        }
    }

    pub(super) async fn send(
        &self,
        method: &Method,
        mut headers: HeaderMap,
        body: &Bytes,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        if let Some(error) = self.0.retry_after.request_error() {
            return Err(error);
        }
        self.0.credentials.authorize(&mut headers);
        // Where the server is shows in the first request; no later one is kept to be sent elsewhere.
        let again = self.is_handshaking().then(|| headers.clone());
        let target = self.0.template.load().target.clone();
        let response = self.0.pool.send(build_request(method, target, headers, body)).await?;
        match again.zip(self.redirect_target(&response)) {
            None => Ok(response),
            Some((headers, to)) => {
                self.update_template(|manner| manner.target = to.clone());
                self.0.pool.send(build_request(method, to, headers, body)).await
            }
        }
    }

    /// Where the server redirects to, if that is within its own origin and keeps the method.
    fn redirect_target(&self, response: &Response<PooledBody>) -> Option<Uri> {
        if !matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return None;
        }
        let to = self.0.url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
        (to.origin() == self.0.url.origin()).then(|| request_target(&to)).flatten()
    }

    pub(super) fn request_headers(&self, method: &str, name: Option<&str>) -> HeaderMap {
        let manner = self.0.template.load();
        let mut headers = manner.headers.clone();
        // Before the agreement the probe is modern; `initialize` and its confirmation are legacy.
        let probes = manner.era.is_none() && method == "server/discover";
        if probes {
            headers.insert(PROTOCOL_VERSION_HEADER, HeaderValue::from_static(MODERN_VERSION));
        }
        if probes || manner.era == Some(Era::Modern) {
            if let Ok(method) = HeaderValue::from_str(method) {
                headers.insert(METHOD_HEADER, method);
            }
            if let Some(name) = name.and_then(encode_header_value) {
                headers.insert(NAME_HEADER, name);
            }
        }
        headers
    }

    /// What a response that says no success means; `body` is its start.
    pub(super) fn error_response(&self, head: &Parts, body: &Bytes) -> RequestError {
        if let Some(wait) = retry_after(&head.headers, Timestamp::now()) {
            self.0.retry_after.extend(wait);
        }
        let is_text =
            head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
        let text = match server_message::classify(body) {
            // What these say is for who connects, and not for who asked.
            Ok(ServerMessage::Response(_, RpcResponse::Error(raw))) if rejects_every_request(head.status) => {
                server_message::error_message(&raw).unwrap_or_default()
            }
            Ok(ServerMessage::Response(_, reply @ RpcResponse::Error(_))) => {
                return RequestError::Response(reply);
            }
            _ if is_text => String::from_utf8_lossy(body).into_owned(),
            _ => String::new(),
        };
        let Inner { notifications: ears, credentials, .. } = &*self.0;
        if matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !self.is_handshaking() {
            ears.request_health_check();
        }
        RequestError::Connection(status_error(
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
    pub(in crate::wire) fn close_idle_connections(&self, pause: Duration) {
        self.0.pool.close_idle(pause);
    }

    /// Ends the session, if there is one, and every idle connection.
    pub(in crate::wire) async fn close(&self) {
        if self.0.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.0.post_queue.close();
        if self.has_session() {
            let headers = self.request_headers("", None);
            let nothing = Bytes::new();
            let goodbye = self.send(&Method::DELETE, headers, &nothing);
            // 405 says that sessions end by themselves; whatever else happens, we are gone.
            if let Ok(Err(error)) = tokio::time::timeout(BACKGROUND_REQUEST_TIMEOUT, goodbye).await {
                debug!(%error, "the session was not ended");
            }
        }
        self.0.pool.close_idle(Duration::MAX);
    }
}

/// True for a status that refuses every request alike: credentials are missing or wrong, or the server is busy.
fn rejects_every_request(status: StatusCode) -> bool {
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
    Response(RpcResponse),
    Connection(ConnectionError),
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

fn build_request(method: &Method, target: Uri, headers: HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    request
}

/// Path and query of a URL, as they stand in a request line.
fn request_target(url: &Url) -> Option<Uri> {
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Uri::try_from(format!("{}{query}", url.path())).ok()
}

/// What there is of the body of an error, if it comes in time.
pub(super) async fn with_error_body_timeout<T>(body: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ERROR_BODY_TIMEOUT, body).await.ok()
}
