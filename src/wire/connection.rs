mod exchange;
mod health;
mod server_input_request;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::client_capabilities::ClientCapabilities;
use super::connection_callers::ConnectionCallers;
use super::connection_context::ConnectionContext;
use super::envelope::{JsonRpcId, MalformedMessage};
use super::error::{ConnectionEnd, ConnectionError};
use super::http::{HttpClient, HttpExchange, SseCall, SseConnection};
use super::json_edit::{JsonEdit, RequestParams, json_string};
use super::notifications::NotificationDispatcher;
use super::param_headers::ParamHeaders;
use super::pending_calls::{CallKind, PendingCall};
use super::response::RpcResponse;
use super::secret_mask::SecretMask;
use super::server_message::{self, LISTEN_METHOD};
use super::{
    AttemptStep, Era, HandshakeResult, InstanceId, ListKind, LogLevel, LoopKind, ProtocolViolation,
    RetryAfter, ServerDescription, VIA_KEY, stdio,
};
use crate::resource::{Problem, Reason};

pub use health::HealthRequest;
pub use server_input_request::ServerInputRequest;

/// A live MCP connection to one server, shared by every call on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    callers: ConnectionCallers,
    handshake: OnceLock<HandshakeResult>,
    next_id: AtomicU64,
    transport: ConnectionTransport,
    end: Arc<ConnectionEnd>,
    tasks: TaskTracker,
    notifications: NotificationDispatcher,
    instance: InstanceId,
    retry_after: RetryAfter,
    /// The description in the last health check of a modern server.
    last_description: Mutex<Option<Arc<ServerDescription>>>,
    attempt_step: AttemptStep,
    /// The `Mcp-Param-…` headers of each tool that has any, by tool name.
    param_headers: ArcSwap<HashMap<String, ParamHeaders>>,
}

#[derive(Debug)]
pub(super) enum ConnectionTransport {
    Stdio(stdio::StdioPipes),
    Http(HttpClient),
    /// HTTP+SSE of 2024-11-05.
    Sse(SseConnection),
}

impl ConnectionTransport {
    /// Returns the client that sends HTTP requests; `None` over stdio.
    fn http_client(&self) -> Option<&HttpClient> {
        match self {
            Self::Stdio(_) => None,
            Self::Http(client) => Some(client),
            Self::Sse(connection) => Some(connection.client()),
        }
    }
}

/// A request to a server: the agent's params and the edits to apply to them.
///
/// [`Connection::call`] adds what belongs to the connection: its own id, its own progress token in place of the
/// agent's, and in the modern era its own `_meta` members in place of the agent's.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamRequest<'a> {
    /// The method.
    pub method: &'a str,
    /// The `params`.
    pub params: &'a RequestParams<'a>,
    /// The edits to apply to `params`.
    pub edits: &'a [JsonEdit<'a>],
    /// The server's own name of the tool or prompt, or the resource's URI: the `Mcp-Name` header.
    pub name: Option<&'a str>,
    /// The minimum level of the log messages that the server may send for this request. Used if the agent's own
    /// `_meta` has no log level.
    pub log_level: Option<LogLevel>,
    /// The capabilities of the agent that sent the request: a modern server gets them with the request, and the requests
    /// of the server for input are messages of the exchange. `None` for a request of evenkeel; then they are declined.
    pub agent: Option<ClientCapabilities>,
}

impl<'a> UpstreamRequest<'a> {
    /// Returns a request without params.
    pub fn new(method: &'a str) -> Self {
        static NO_PARAMS: LazyLock<RequestParams<'static>> = LazyLock::new(RequestParams::default);
        Self { method, params: &NO_PARAMS, edits: &[], name: None, log_level: None, agent: None }
    }
}

/// A request in flight. Dropping it before the response has arrived cancels it at the server.
#[derive(Debug)]
pub struct UpstreamExchange {
    connection: Connection,
    id: u64,
    /// The agent's progress token, restored in progress notifications.
    progress_token: Option<JsonRpcId>,
    /// True if requests of the server for input are messages of the exchange. Otherwise they are declined.
    takes_input_requests: bool,
    /// The requests of the server outside of this exchange, over streamable HTTP on a connection of one caller.
    other_inputs: Option<Box<PendingCall>>,
    state: ExchangeState,
}

/// A complete request, and what its transport needs to know about it.
pub(super) struct OutgoingRequest<'a> {
    pub(super) id: u64,
    pub(super) method: &'a str,
    /// The server's own name of the tool or prompt, or the resource's URI.
    pub(super) name: Option<&'a str>,
    /// The agent's progress token.
    pub(super) progress_token: Option<JsonRpcId>,
    pub(super) param_headers: Vec<(HeaderName, HeaderValue)>,
    /// True for a request of an agent.
    pub(super) is_agent_call: bool,
    /// The whole JSON-RPC message.
    pub(super) message: Bytes,
}

#[derive(Debug)]
enum ExchangeState {
    Stdio(PendingCall),
    Http(Box<HttpExchange>),
    Sse(Box<SseCall>),
    /// The request was answered, failed or was abandoned: there is nothing to cancel.
    Finished,
}

/// An event of a connection that belongs to no request.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// A list changed, or may have changed while no notification stream was open.
    ListChanged(ListKind),
    /// The server describes itself otherwise than before: another version was started.
    DescriptionChanged(Arc<ServerDescription>),
    /// The server violated the protocol for the first time in this way, which was tolerated.
    ProtocolViolation(ProtocolViolation),
    /// The list changes that the server declares are not heard, for this reason; `None` if they are again.
    ChangesUnheard(Option<Arc<str>>),
    /// The connection has ended.
    Lost(ConnectionError),
}

impl Connection {
    pub(super) fn new(
        transport: ConnectionTransport,
        end: Arc<ConnectionEnd>,
        notifications: NotificationDispatcher,
        context: &ConnectionContext,
    ) -> Self {
        Self(Arc::new(Inner {
            callers: context.callers,
            handshake: OnceLock::new(),
            next_id: AtomicU64::new(1),
            transport,
            end,
            tasks: context.tasks.clone(),
            instance: context.instance.clone(),
            retry_after: context.retry_after.clone(),
            attempt_step: context.attempt_step.clone(),
            notifications,
            last_description: Mutex::new(None),
            param_headers: ArcSwap::default(),
        }))
    }

    /// Returns the callers that use the connection.
    pub(super) fn callers(&self) -> ConnectionCallers {
        self.0.callers
    }

    /// Returns the result of the handshake; before it, a result without capabilities.
    pub fn handshake(&self) -> &HandshakeResult {
        static BEFORE_HANDSHAKE: OnceLock<HandshakeResult> = OnceLock::new();
        self.0.handshake.get().unwrap_or_else(|| BEFORE_HANDSHAKE.get_or_init(HandshakeResult::unknown))
    }

    /// Records the result of the handshake. Later calls have no effect on it.
    pub(super) fn set_handshake(&self, handshake: HandshakeResult) {
        if let Some(client) = self.0.transport.http_client() {
            client.apply_handshake(&handshake);
        }
        // The handshake sets it once; an error would mean a second call.
        let _ = self.0.handshake.set(handshake);
    }

    /// Sends a request. Sets no time limit on the response; the caller does.
    pub async fn call(&self, request: UpstreamRequest<'_>) -> Result<UpstreamExchange, ConnectionError> {
        if let Some(error) = self.0.end.get() {
            return Err(error.clone());
        }
        let id = self.next_id();
        let RequestParams { members, meta } = request.params;
        let (meta, progress_token) = self.handshake().request_meta(
            meta.as_ref(),
            id,
            request.log_level,
            request.agent.unwrap_or_default(),
        );
        // A `_meta` that is not an object was not inspected, so it is removed.
        let meta = meta.as_deref().map_or(JsonEdit::Remove("_meta"), |meta| JsonEdit::Set("_meta", meta));
        let edits = request.edits.iter().copied().chain([meta]);
        let message = server_message::request(id, request.method, members, edits);
        self.dispatch(OutgoingRequest {
            id,
            method: request.method,
            name: request.name,
            progress_token,
            param_headers: self.param_headers(&request),
            is_agent_call: request.agent.is_some(),
            message,
        })
        .await
    }

    /// Records which arguments of these tools are also sent as headers. Each tool is given by its name and raw JSON.
    /// Returns the names of the tools that must not be used, each with the reason.
    pub fn set_param_headers<'a>(
        &self,
        tools: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Vec<(String, String)> {
        if self.handshake().era == Era::Legacy || !matches!(self.0.transport, ConnectionTransport::Http(_)) {
            return Vec::new();
        }
        let (mut param_headers, mut unusable) = (HashMap::new(), Vec::new());
        for (name, raw) in tools {
            match ParamHeaders::from_tool(raw.as_bytes()) {
                Ok(headers) if headers.is_empty() => {}
                Ok(headers) => drop(param_headers.insert(name.to_owned(), headers)),
                Err(reason) => unusable.push((name.to_owned(), reason)),
            }
        }
        self.0.param_headers.store(Arc::new(param_headers));
        unusable
    }

    fn param_headers(&self, request: &UpstreamRequest<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let by_tool = self.0.param_headers.load();
        let tool = request.name.filter(|_| request.method == "tools/call");
        let Some(param_headers) = tool.and_then(|name| by_tool.get(name)) else {
            return Vec::new();
        };
        let arguments = request.params.members.get("arguments");
        arguments.map(|arguments| param_headers.header_values(arguments.get())).unwrap_or_default()
    }

    /// Sends a complete JSON-RPC request.
    pub(super) async fn dispatch(
        &self,
        request: OutgoingRequest<'_>,
    ) -> Result<UpstreamExchange, ConnectionError> {
        let OutgoingRequest { id, method, name, progress_token, param_headers, is_agent_call, message } =
            request;
        let kind = match method {
            LISTEN_METHOD => CallKind::Listen,
            _ if is_agent_call => CallKind::Agent,
            _ => CallKind::Internal,
        };
        let wants_notifications = progress_token.is_some() || kind == CallKind::Listen;
        let state = match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => {
                ExchangeState::Stdio(pipes.request(id, kind, wants_notifications, message).await?)
            }
            ConnectionTransport::Http(client) => ExchangeState::Http(Box::new(client.request(
                method,
                name,
                param_headers,
                message,
                self.0.end.clone(),
            ))),
            ConnectionTransport::Sse(connection) => ExchangeState::Sse(Box::new(connection.request(
                id,
                kind,
                wants_notifications,
                method,
                message,
            ))),
        };
        let other_inputs = match &self.0.transport {
            ConnectionTransport::Http(client) if is_agent_call => {
                client.receive_other_inputs(id, &self.0.end)
            }
            _ => None,
        };
        Ok(UpstreamExchange {
            connection: self.clone(),
            id,
            progress_token,
            takes_input_requests: is_agent_call,
            other_inputs,
            state,
        })
    }

    pub(super) fn next_id(&self) -> u64 {
        self.0.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a notification.
    pub async fn notify(&self, method: &str, params: Option<&str>) -> Result<(), ConnectionError> {
        let message = server_message::message(None, method, params);
        match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.send(message).await,
            ConnectionTransport::Http(client) => client.notify(method, message).await,
            ConnectionTransport::Sse(connection) => connection.client().notify(method, message).await,
        }
    }

    /// Requests one page of a list: the first, or the one at `cursor`.
    pub async fn list_page(
        &self,
        list: ListKind,
        cursor: Option<&str>,
    ) -> Result<RpcResponse, ConnectionError> {
        // The others have less time, so an attempt waits for the tools.
        if list == ListKind::Tools {
            self.0.attempt_step.record_request(list.method());
        }
        let params = self.with_via("{}")?;
        let params = RequestParams::parse(&params).map_err(|error| malformed_request(&error.into()))?;
        let cursor = cursor.map(json_string);
        let edits: Vec<_> = cursor.iter().map(|cursor| JsonEdit::Set("cursor", cursor)).collect();
        let request =
            UpstreamRequest { params: &params, edits: &edits, ..UpstreamRequest::new(list.method()) };
        let response = self.call(request).await?.response().await?;
        match &response {
            RpcResponse::Error(error) => LoopKind::from_error(error)
                .map_or(Ok(response), |loop_kind| Err(loop_kind.connection_error())),
            RpcResponse::Result(_) => Ok(response),
        }
    }

    /// Returns `params` with the ids of this instance and its callers in `_meta`. A server that is an evenkeel instance
    /// detects loops by them ([`VIA_KEY`]).
    pub(super) fn with_via(&self, params: &str) -> Result<String, ConnectionError> {
        let RequestParams { members, meta } =
            RequestParams::parse(params).map_err(|error| malformed_request(&error.into()))?;
        let meta = meta.unwrap_or_default().rewrite(&[JsonEdit::Set(VIA_KEY, &self.0.instance.via_json())]);
        Ok(members.rewrite(&[JsonEdit::Set("_meta", &meta)]))
    }

    /// Sends `subscriptions/listen` to a modern server. `filter` selects the notifications. They arrive for as long as
    /// the exchange is kept. The first message of the exchange is the server's acknowledgement.
    pub async fn listen(&self, filter: &str) -> Result<UpstreamExchange, ConnectionError> {
        let edits = &[JsonEdit::Set("notifications", filter)];
        self.call(UpstreamRequest { edits, ..UpstreamRequest::new(LISTEN_METHOD) }).await
    }

    /// Redacts the values that evenkeel passed to the server from a text of that server. Returns one line of at most
    /// `limit` characters.
    pub fn redacted_line(&self, text: &str, limit: usize) -> String {
        self.mask().redacted_line(text, limit)
    }

    /// Records a violation of the protocol that is tolerated.
    pub fn record_violation(&self, violation: ProtocolViolation) {
        self.0.notifications.record_violation(violation);
    }

    /// Sets the revision of the requests after `initialize`.
    pub(super) fn set_protocol_version(&self, version: &str) {
        if let Some(client) = self.0.transport.http_client() {
            client.set_protocol_version(version);
        }
    }

    /// Reports why the list changes that the server declares are not heard.
    pub(super) fn report_unheard(&self, why: &str) {
        self.0.notifications.report_unheard(Some(why.into()));
    }

    pub(super) fn mask(&self) -> &SecretMask {
        self.0.notifications.mask()
    }

    /// Returns a problem while no requests are sent because the server sent Retry-After.
    pub fn retry_after_problem(&self) -> Option<Problem> {
        self.0.retry_after.problem()
    }

    /// Returns what the attempt that opens the connection waits for.
    pub(super) fn attempt_step(&self) -> &AttemptStep {
        &self.0.attempt_step
    }

    /// Returns the Retry-After of the server.
    pub fn retry_after(&self) -> &RetryAfter {
        &self.0.retry_after
    }

    /// True if a message (response, progress or other notification) has arrived since the last call of this method.
    pub fn received_since_last_check(&self) -> bool {
        self.0.notifications.received_since_last_check()
    }

    /// Waits until a response calls for a health check: the server rejects credentials that it accepted before, or the
    /// session may be gone. Cancel safe.
    pub async fn health_check_requested(&self) {
        self.0.notifications.health_check_requested().await;
    }

    /// Returns why the connection has ended, if it has.
    pub fn end_problem(&self) -> Option<Problem> {
        self.0.end.get().map(|error| error.problem.clone())
    }

    /// Marks the connection as ended; [`ConnectionEvent::Lost`] reports it.
    pub fn mark_ended(&self, error: ConnectionError) {
        self.0.end.mark(error);
    }

    /// Closes idle HTTP connections that would have expired once `pause` has passed. The next call opens new ones. Does
    /// nothing over stdio.
    pub fn close_idle_connections(&self, pause: Duration) {
        if let Some(client) = self.0.transport.http_client() {
            client.close_idle_connections(pause);
        }
    }

    /// Ends the connection. Over HTTP this ends the session by DELETE. Over stdio it closes the process's stdin, then
    /// sends SIGTERM and SIGKILL to the process group. Takes a few seconds at most.
    pub async fn close(&self) {
        self.0.end.mark(ConnectionError::new(Reason::Detached, "the connection was closed"));
        match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.close().await,
            ConnectionTransport::Http(client) => client.close().await,
            ConnectionTransport::Sse(connection) => connection.close().await,
        }
    }

    /// Waits until all tasks of the connection have ended. Call it after [`Self::close`].
    pub async fn wait_for_tasks(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    pub(super) fn transport(&self) -> &ConnectionTransport {
        &self.0.transport
    }

    pub(super) fn end(&self) -> &Arc<ConnectionEnd> {
        &self.0.end
    }
}

fn malformed_request(error: &MalformedMessage) -> ConnectionError {
    ConnectionError::new(Reason::InvalidSpec, format!("cannot parse the request's params: {error}"))
}
