use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::response::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use tracing::debug;
use url::Url;

use super::super::access_token::{AccessToken, IssuedToken};
use super::super::connection_callers::ConnectionCallers;
use super::super::connection_context::ConnectionContext;
use super::super::error::ConnectionError;
use super::super::handshake_result::MODERN_VERSION;
use super::super::notifications::NotificationDispatcher;
use super::super::pending_calls::PendingCalls;
use super::super::response::RpcResponse;
use super::super::server_message::{self, ServerMessage};
use super::super::{Era, HandshakeResult, ListKind, RetryAfter};
use super::connect::{Connector, ServerSocket};
use super::credentials::Credentials;
use super::header::encode_header_value;
use super::pool::{ConnectionPool, PooledBody};
use super::post_queue::PostQueue;
use super::session::SessionCheck;
use super::status_error::{SentCredentials, retry_after, status_error};
use super::streaming_body::StreamingBody;
use crate::resource::{HttpEndpoint, HttpTransportKind, Reason};

pub(super) const SESSION_ID_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
const NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

/// The maximum bytes of an error response's body that are read.
pub(super) const MAX_ERROR_BODY_BYTES: usize = 64 * 1024;
/// The most characters that are shown of an endpoint.
const MAX_ENDPOINT_CHARS: usize = 200;
/// The timeout for that body. The status is sufficient without it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout for the DELETE of a session and for each message posted in the background.
pub(super) const BACKGROUND_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// An HTTP client for one server. Cheap to clone.
#[derive(Clone)]
pub(in crate::wire) struct HttpClient(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) pool: Arc<ConnectionPool>,
    pub(super) url: Url,
    pub(super) template: ArcSwap<RequestTemplate>,
    credentials: Credentials,
    access_token: AccessToken,
    closed: AtomicBool,
    pub(super) retry_after: RetryAfter,
    /// The tasks of the connection, which the fleet waits for on shutdown.
    pub(super) tasks: TaskTracker,
    pub(super) notifications: NotificationDispatcher,
    pub(super) post_queue: PostQueue,
    /// The calls of the one caller that uses the connection; `None` if all callers share it.
    pub(super) caller_calls: Option<PendingCalls>,
    /// The connection of the last check, kept for the next.
    pub(super) check_socket: Mutex<Option<ServerSocket>>,
    /// Created when a response first leaves open whether the session is valid.
    pub(super) session_check: OnceLock<Box<SessionCheck>>,
}

/// The parts of requests that stay the same. Changes only during the handshake, which sends one request at a time.
#[derive(Clone)]
pub(super) struct RequestTemplate {
    /// The negotiated era; `None` during the handshake.
    pub(super) era: Option<Era>,
    /// The path and query. Updated after a redirect within the origin.
    pub(super) target: Uri,
    /// The headers of every request.
    pub(super) headers: HeaderMap,
    /// A list that the server has. It is requested to check the session if `ping` is rejected.
    pub(super) fallback_list: Option<ListKind>,
}

impl HttpClient {
    pub(in crate::wire) fn new(
        endpoint: &HttpEndpoint,
        notifications: NotificationDispatcher,
        context: &ConnectionContext,
    ) -> Result<Self, ConnectionError> {
        let invalid = |message: String| ConnectionError::new(Reason::InvalidSpec, message);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION"))));
        headers.insert(HOST, request_host(&endpoint.url)?);
        let connector = Connector::new(endpoint, context.attempt_step.clone())?;
        let proxy = connector.request_proxy();
        let target = request_target(&endpoint.url, proxy.is_some())
            .ok_or_else(|| invalid("the path of the url is not valid in an HTTP request".into()))?;
        let authorization = proxy.and_then(|proxy| proxy.authorization.clone());
        headers.extend(authorization.map(|value| (PROXY_AUTHORIZATION, value)));
        // Over HTTP+SSE all messages of the server share one stream, whose calls are kept with it.
        let has_streams = endpoint.kind == HttpTransportKind::StreamableHttp;
        let is_of_one_caller = has_streams && context.callers != ConnectionCallers::All;
        let caller_calls = is_of_one_caller.then(|| PendingCalls::new(context.callers));
        Ok(Self(Arc::new(Inner {
            pool: ConnectionPool::new(connector),
            url: endpoint.url.clone(),
            template: ArcSwap::from_pointee(RequestTemplate {
                era: None,
                target,
                headers,
                fallback_list: None,
            }),
            credentials: Credentials::from_endpoint(endpoint)?,
            access_token: context.access_token.clone(),
            closed: AtomicBool::new(false),
            retry_after: context.retry_after.clone(),
            tasks: context.tasks.clone(),
            notifications,
            post_queue: PostQueue::default(),
            caller_calls,
            check_socket: Mutex::new(None),
            session_check: OnceLock::new(),
        })))
    }

    /// Returns the server's Retry-After.
    pub(super) fn retry_after(&self) -> &RetryAfter {
        &self.0.retry_after
    }

    /// Returns the receiver of messages that belong to no request.
    pub(in crate::wire) fn notifications(&self) -> &NotificationDispatcher {
        &self.0.notifications
    }

    /// Applies the result of the handshake to all later requests.
    pub(in crate::wire) fn apply_handshake(&self, handshake: &HandshakeResult) {
        self.update_template(|template| {
            template.era = Some(handshake.era);
            template.fallback_list = handshake.capabilities.offered_lists().next();
        });
        self.set_protocol_version(&handshake.description.protocol_version);
    }

    /// Sets the `MCP-Protocol-Version` of all later requests. `notifications/initialized` is the first that has it.
    pub(in crate::wire) fn set_protocol_version(&self, version: &str) {
        if let Ok(version) = HeaderValue::from_str(version) {
            self.update_template(|template| drop(template.headers.insert(PROTOCOL_VERSION_HEADER, version)));
        }
    }

    /// Changes the template of all later requests.
    pub(super) fn update_template(&self, change: impl FnOnce(&mut RequestTemplate)) {
        let mut template = RequestTemplate::clone(&self.0.template.load());
        change(&mut template);
        self.0.template.store(Arc::new(template));
    }

    /// True until the handshake has completed.
    pub(super) fn is_handshaking(&self) -> bool {
        self.0.template.load().era.is_none()
    }

    pub(super) fn has_session(&self) -> bool {
        self.0.template.load().headers.contains_key(SESSION_ID_HEADER)
    }

    /// Posts a notification, or a response to a request of the server.
    pub(in crate::wire) async fn notify(&self, method: &str, message: Bytes) -> Result<(), ConnectionError> {
        let response = self.send(&Method::POST, self.request_headers(method, None), &message, true).await?;
        if response.status().is_success() {
            // The status is sufficient. A body, which some servers send, is skipped before the connection is reused.
            response.into_body().recycle();
            return Ok(());
        }
        let (head, body) = read_error(response).await;
        match self.error_response(&head, &body) {
            RequestError::Connection(error) => Err(error),
            RequestError::Response(_) => Ok(()),
        }
    }

    /// Sends later POST requests to this URI reference, which the server sent (HTTP+SSE).
    ///
    /// # Errors
    ///
    /// Returns an error if it is not valid, or if it leads to another origin, which would get the credentials.
    pub(super) fn set_post_target(&self, reference: &str) -> Result<(), ConnectionError> {
        let target = self.target_within_origin(reference).map_err(|why| {
            let shown = self.0.notifications.mask().redacted_line(reference, MAX_ENDPOINT_CHARS);
            let message = format!("the endpoint {shown:?} that the server names {why}");
            ConnectionError::new(Reason::HandshakeFailed, message)
        })?;
        self.update_template(|template| template.target = target);
        Ok(())
    }

    /// Resolves a URI reference that the server sent to a request target of the same origin.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the reference.
    fn target_within_origin(&self, reference: &str) -> Result<Uri, &'static str> {
        let url = self.0.url.join(reference).map_err(|_| "is not a URL")?;
        if url.origin() != self.0.url.origin() {
            return Err("has another origin (scheme, host and port) than spec.http.url");
        }
        let is_proxied = self.0.template.load().target.scheme().is_some();
        request_target(&url, is_proxied).ok_or("is not a valid path")
    }

    /// Sends an HTTP request with the credentials. Fails without sending while a Retry-After is in effect. Follows one
    /// redirect within the origin. A repeatable request may reach the server twice. One whose OAuth token the server rejects
    /// is sent again with another token: it was not processed.
    pub(super) async fn send(
        &self,
        method: &Method,
        headers: HeaderMap,
        body: &Bytes,
        is_repeatable: bool,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        if let Some(error) = self.0.retry_after.request_error() {
            return Err(error);
        }
        let (mut headers, token) = self.authorize(headers);
        let response = self.send_once(method, &headers, body, is_repeatable).await?;
        let Some(rejected) = token.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
            return Ok(response);
        };
        // Boxed: the future of every request would hold its memory.
        let replaced = Box::pin(self.0.access_token.replacement(&rejected, &self.0.url)).await;
        let Some(token) = replaced else { return Ok(response) };
        response.into_body().recycle();
        headers.insert(AUTHORIZATION, token.header().clone());
        Box::pin(self.send_once(method, &headers, body, is_repeatable)).await
    }

    async fn send_once(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &Bytes,
        is_repeatable: bool,
    ) -> Result<Response<PooledBody>, ConnectionError> {
        let target = self.0.template.load().target.clone();
        let response =
            self.0.pool.send(build_request(method, target, headers.clone(), body), is_repeatable).await?;
        match self.follow_redirect(method, response.status(), response.headers()) {
            None => Ok(response),
            Some(to) => {
                self.0.pool.send(build_request(method, to, headers.clone(), body), is_repeatable).await
            }
        }
    }

    /// Returns the target of a redirect that stays within the origin and keeps the method (307, 308). That of a POST is
    /// used for all later requests; that of a GET may lead to a page for people.
    fn follow_redirect(&self, method: &Method, status: StatusCode, headers: &HeaderMap) -> Option<Uri> {
        if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return None;
        }
        let target = self.target_within_origin(headers.get(LOCATION)?.to_str().ok()?).ok()?;
        if method == Method::POST {
            self.update_template(|template| template.target = target.clone());
        }
        Some(target)
    }

    /// Sends a request with the credentials on a new socket. Fails without sending while a Retry-After is in effect.
    pub(super) async fn send_on_new_socket(
        &self,
        method: &Method,
        headers: HeaderMap,
        body: &[u8],
    ) -> Result<Response<StreamingBody>, ConnectionError> {
        if let Some(error) = self.0.retry_after.request_error() {
            return Err(error);
        }
        let socket = self.0.pool.connect().await?;
        self.send_on_socket(socket, method, &self.authorized_headers(headers), body).await
    }

    /// Sends a request on a socket of its own, and follows one redirect within the origin on another one.
    pub(super) async fn send_on_socket(
        &self,
        socket: ServerSocket,
        method: &Method,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<StreamingBody>, ConnectionError> {
        let target = self.0.template.load().target.clone();
        let response = StreamingBody::send_request(socket, (method, &target, headers), body).await?;
        match self.follow_redirect(method, response.status(), response.headers()) {
            None => Ok(response),
            Some(to) => {
                let socket = self.0.pool.connect().await?;
                StreamingBody::send_request(socket, (method, &to, headers), body).await
            }
        }
    }

    /// Returns the headers of a request, without the credentials. `name` is the tool, prompt or URI for `Mcp-Name`.
    pub(super) fn request_headers(&self, method: &str, name: Option<&str>) -> HeaderMap {
        let template = self.0.template.load();
        let mut headers = template.headers.clone();
        // During the handshake the probe is a modern request; `initialize` and `initialized` are legacy ones.
        let is_probe = template.era.is_none() && method == "server/discover";
        if is_probe {
            headers.insert(PROTOCOL_VERSION_HEADER, HeaderValue::from_static(MODERN_VERSION));
        }
        if is_probe || template.era == Some(Era::Modern) {
            if let Ok(method) = HeaderValue::from_str(method) {
                headers.insert(METHOD_HEADER, method);
            }
            if let Some(name) = name.and_then(encode_header_value) {
                headers.insert(NAME_HEADER, name);
            }
        }
        headers
    }

    /// Adds the credentials to the headers of a request.
    pub(super) fn authorized_headers(&self, headers: HeaderMap) -> HeaderMap {
        self.authorize(headers).0
    }

    /// Adds the credentials to the headers of a request. Returns the OAuth token if it is one of them.
    fn authorize(&self, mut headers: HeaderMap) -> (HeaderMap, Option<IssuedToken>) {
        self.0.credentials.authorize(&mut headers);
        let token = self.0.access_token.for_url(&self.0.url);
        // A declared header takes precedence.
        let token = token.filter(|_| !headers.contains_key(AUTHORIZATION));
        headers.extend(token.as_ref().map(|token| (AUTHORIZATION, token.header().clone())));
        (headers, token)
    }

    /// Interprets a response with an error status. `body` is the start of its body.
    pub(super) fn error_response(&self, head: &Parts, body: &Bytes) -> RequestError {
        if let Some(delay) = retry_after(&head.headers, Timestamp::now()) {
            self.0.retry_after.extend(delay);
        }
        let text = match server_message::read(body.clone()).kind {
            // These statuses concern the connection, so their message is not passed to the caller as a response.
            ServerMessage::Response(_, RpcResponse::Error(raw)) if rejects_every_request(head.status) => {
                server_message::error_message(&raw).unwrap_or_default()
            }
            ServerMessage::Response(_, response @ RpcResponse::Error(_)) => {
                return RequestError::Response(response);
            }
            _ => String::from_utf8_lossy(body).into_owned(),
        };
        let Inner { notifications, credentials, access_token, .. } = &*self.0;
        if matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            head.headers
                .get(WWW_AUTHENTICATE)
                .into_iter()
                .for_each(|value| access_token.record_challenge(value));
            if !self.is_handshaking() {
                notifications.request_health_check();
            }
        }
        let sent = SentCredentials {
            declared: !credentials.is_empty(),
            token: access_token.for_url(&self.0.url).is_some(),
            login_command: access_token.login_command(),
        };
        RequestError::Connection(status_error(
            head.status,
            &head.headers,
            &text,
            notifications.mask(),
            sent,
            Timestamp::now(),
        ))
    }

    /// Closes the idle connections that would have expired once `pause` has passed. A server that is not called then
    /// uses no buffers.
    pub(in crate::wire) fn close_idle_connections(&self, pause: Duration) {
        self.0.pool.close_idle(pause);
    }

    /// Ends the session, if there is one, and closes all idle connections.
    pub(in crate::wire) async fn close(&self) {
        if self.0.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.0.post_queue.close();
        if self.has_session() {
            let headers = self.request_headers("", None);
            let no_body = Bytes::new();
            let delete = self.send(&Method::DELETE, headers, &no_body, true);
            // 405 means that clients cannot end sessions. Other errors are ignored as well.
            if let Ok(Err(error)) = tokio::time::timeout(BACKGROUND_REQUEST_TIMEOUT, delete).await {
                debug!(%error, "the DELETE of the session failed");
            }
        }
        self.0.pool.close_idle(Duration::MAX);
        drop(self.0.check_socket.lock().take());
    }
}

/// True for a status that applies to every request: the credentials are missing or wrong, or the server is busy.
fn rejects_every_request(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// The outcome of a request with an error status.
pub(super) enum RequestError {
    /// A JSON-RPC error as the response to the request.
    Response(RpcResponse),
    /// Any other error.
    Connection(ConnectionError),
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

fn build_request(method: &Method, target: Uri, headers: HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    request
}

/// Returns the value of `Host` for a URL.
pub(super) fn request_host(url: &Url) -> Result<HeaderValue, ConnectionError> {
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    HeaderValue::from_str(&host)
        .map_err(|_| ConnectionError::new(Reason::InvalidSpec, format!("{host:?} is not a valid host")))
}

/// Returns a URL as in a request line (RFC 9112 §3.2): path and query, or the whole URL for a proxy.
pub(super) fn request_target(url: &Url, is_proxied: bool) -> Option<Uri> {
    use url::Position::{AfterQuery, BeforeHost, BeforePath};
    if is_proxied {
        Uri::try_from(format!("{}://{}", url.scheme(), &url[BeforeHost..AfterQuery])).ok()
    } else {
        Uri::try_from(&url[BeforePath..AfterQuery]).ok()
    }
}

/// Returns the head of an error response, and the start of its body.
pub(super) async fn read_error(response: Response<PooledBody>) -> (Parts, Bytes) {
    let (head, body) = response.into_parts();
    let body = with_error_body_timeout(body.collect(MAX_ERROR_BODY_BYTES)).await.and_then(Result::ok);
    (head, body.unwrap_or_default())
}

/// Waits for the body of an error response; `None` after [`ERROR_BODY_TIMEOUT`].
pub(super) async fn with_error_body_timeout<T>(body: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ERROR_BODY_TIMEOUT, body).await.ok()
}
