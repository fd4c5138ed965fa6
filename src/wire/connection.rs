use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::connection_context::ConnectionContext;
use super::envelope::{JsonRpcId, MalformedMessage};
use super::error::{ConnectionEnd, ConnectionError};
use super::http::{HttpClient, HttpExchange};
use super::json_edit::{JsonEdit, RequestParams, json_string};
use super::notifications::NotificationDispatcher;
use super::param_headers::ParamHeaders;
use super::response::{ResponseMessage, RpcResponse};
use super::secret_mask::SecretMask;
use super::server_message::{self, LISTEN_METHOD};
use super::{Era, HandshakeResult, InstanceId, ListKind, LogLevel, LoopKind, RetryAfter, VIA_KEY, stdio};
use crate::resource::{Problem, Reason};

/// A live connection to one server, shared by every call on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handshake: OnceLock<HandshakeResult>,
    next_id: AtomicU64,
    transport: ConnectionTransport,
    end: Arc<ConnectionEnd>,
    tasks: TaskTracker,
    notifications: NotificationDispatcher,
    instance: InstanceId,
    retry_after: RetryAfter,
    /// The tools whose arguments are repeated as headers, by name.
    param_headers: ArcSwap<HashMap<String, ParamHeaders>>,
}

#[derive(Debug)]
pub(super) enum ConnectionTransport {
    Stdio(stdio::StdioPipes),
    Http(HttpClient),
}

/// A request to a server, as the agent wrote it and with what must change.
///
/// The link adds what the connection needs: an id of its own, a progress token of its own in place of the
/// agent's, and in the modern era the `_meta` of the connection in place of the agent's.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamRequest<'a> {
    /// The method.
    pub method: &'a str,
    /// Its `params`.
    pub params: &'a RequestParams<'a>,
    /// Changes to `params`.
    pub edits: &'a [JsonEdit<'a>],
    /// The server's own name of the tool or prompt, or the resource's URI: the `Mcp-Name` header.
    pub name: Option<&'a str>,
    /// From which level on the server is to tell its log messages with this request, if the agent's own
    /// `_meta` does not say so.
    pub log_level: Option<LogLevel>,
}

impl<'a> UpstreamRequest<'a> {
    /// A request without params.
    pub fn new(method: &'a str) -> Self {
        static NONE: LazyLock<RequestParams<'static>> = LazyLock::new(RequestParams::default);
        Self { method, params: &NONE, edits: &[], name: None, log_level: None }
    }
}

/// A request in flight. Dropping it before the answer tells the server that it is cancelled.
#[derive(Debug)]
pub struct UpstreamExchange {
    connection: Connection,
    id: u64,
    /// The agent's progress token, to put back into what comes.
    progress_token: Option<JsonRpcId>,
    state: ExchangeState,
}

#[derive(Debug)]
enum ExchangeState {
    Stdio(stdio::PendingCall),
    Http(Box<HttpExchange>),
    /// Answered, failed or abandoned: nothing to cancel.
    Finished,
}

/// What a connection tells without being asked.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// A list changed, or may have changed while nobody listened.
    ListChanged(ListKind),
    /// The connection is gone.
    Lost(ConnectionError),
}

impl Connection {
    pub(super) fn new(
        transport: ConnectionTransport,
        lost: Arc<ConnectionEnd>,
        ears: NotificationDispatcher,
        host: &ConnectionContext,
    ) -> Self {
        Self(Arc::new(Inner {
            handshake: OnceLock::new(),
            next_id: AtomicU64::new(1),
            transport,
            end: lost,
            tasks: host.tasks.clone(),
            instance: host.instance.clone(),
            retry_after: host.retry_after.clone(),
            notifications: ears,
            param_headers: ArcSwap::default(),
        }))
    }

    /// What the handshake told of the server.
    pub fn handshake(&self) -> &HandshakeResult {
        static BEFORE_HANDSHAKE: OnceLock<HandshakeResult> = OnceLock::new();
        self.0.handshake.get().unwrap_or_else(|| BEFORE_HANDSHAKE.get_or_init(HandshakeResult::unknown))
    }

    pub(super) fn set_handshake(&self, peer: HandshakeResult) {
        if let ConnectionTransport::Http(client) = &self.0.transport {
            client.apply_handshake(&peer);
        }
        // Set once, by the handshake.
        let _ = self.0.handshake.set(peer);
    }

    /// Sends a request. The answer may take as long as it likes: the caller bounds it.
    pub async fn call(&self, request: UpstreamRequest<'_>) -> Result<UpstreamExchange, ConnectionError> {
        if let Some(error) = self.0.end.get() {
            return Err(error.clone());
        }
        let id = self.next_id();
        let RequestParams { members, meta } = request.params;
        let (meta, token) = self.handshake().request_meta(meta.as_ref(), id, request.log_level);
        // What is no object is left out: no server is to see what was not looked at.
        let meta = meta.as_deref().map_or(JsonEdit::Remove("_meta"), |meta| JsonEdit::Set("_meta", meta));
        let edits = request.edits.iter().copied().chain([meta]);
        let message = server_message::request(id, request.method, members, edits);
        self.dispatch(id, token, request.method, request.name, self.param_headers(&request), message).await
    }

    /// Learns which arguments of these tools, given as raw JSON by name, are to be repeated as headers.
    /// Gives the names of the tools that must not be used, each with why.
    pub fn set_param_headers<'a>(
        &self,
        tools: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Vec<(String, String)> {
        if self.handshake().era == Era::Legacy || !matches!(self.0.transport, ConnectionTransport::Http(_)) {
            return Vec::new();
        }
        let (mut mirrors, mut unusable) = (HashMap::new(), Vec::new());
        for (name, raw) in tools {
            match ParamHeaders::from_tool(raw.as_bytes()) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => drop(mirrors.insert(name.to_owned(), found)),
                Err(why) => unusable.push((name.to_owned(), why)),
            }
        }
        self.0.param_headers.store(Arc::new(mirrors));
        unusable
    }

    fn param_headers(&self, request: &UpstreamRequest<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let mirrors = self.0.param_headers.load();
        let tool = request.name.filter(|_| request.method == "tools/call");
        let Some(mirrors) = tool.and_then(|name| mirrors.get(name)) else {
            return Vec::new();
        };
        let arguments = request.params.members.get("arguments");
        arguments.map(|arguments| mirrors.header_values(arguments.get())).unwrap_or_default()
    }

    /// Sends a request that is complete.
    pub(super) async fn dispatch(
        &self,
        id: u64,
        token: Option<JsonRpcId>,
        method: &str,
        name: Option<&str>,
        mirrored: Vec<(HeaderName, HeaderValue)>,
        message: Bytes,
    ) -> Result<UpstreamExchange, ConnectionError> {
        let state = match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => {
                let listens = method == LISTEN_METHOD;
                ExchangeState::Stdio(pipes.request(id, (token.is_some() || listens, listens), message).await?)
            }
            ConnectionTransport::Http(client) => ExchangeState::Http(Box::new(client.request(
                method,
                name,
                mirrored,
                message,
                self.0.end.clone(),
            ))),
        };
        Ok(UpstreamExchange { connection: self.clone(), id, progress_token: token, state })
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
        }
    }

    /// Asks for a page of a list: the first, or the one at a cursor.
    pub async fn list_page(
        &self,
        list: ListKind,
        cursor: Option<&str>,
    ) -> Result<RpcResponse, ConnectionError> {
        let params = self.with_via("{}")?;
        let params = RequestParams::parse(&params).map_err(|error| malformed_request(&error.into()))?;
        let cursor = cursor.map(json_string);
        let edits: Vec<_> = cursor.iter().map(|cursor| JsonEdit::Set("cursor", cursor)).collect();
        let request =
            UpstreamRequest { params: &params, edits: &edits, ..UpstreamRequest::new(list.method()) };
        let reply = self.call(request).await?.response().await?;
        match &reply {
            RpcResponse::Error(error) => {
                LoopKind::from_error(error).map_or(Ok(reply), |ring| Err(ring.connection_error()))
            }
            RpcResponse::Result(_) => Ok(reply),
        }
    }

    /// These params with a word on who asks, should the server be an evenkeel.
    pub(super) fn with_via(&self, params: &str) -> Result<String, ConnectionError> {
        let RequestParams { members, meta } =
            RequestParams::parse(params).map_err(|error| malformed_request(&error.into()))?;
        let meta = meta.unwrap_or_default().rewrite(&[JsonEdit::Set(VIA_KEY, &self.0.instance.via_json())]);
        Ok(members.rewrite(&[JsonEdit::Set("_meta", &meta)]))
    }

    /// Asks for a sign of life: `ping`, or `server/discover` in the modern era. Any answer is one, unless it says that
    /// the server no longer knows the session.
    pub async fn check_health(&self) -> Result<(), ConnectionError> {
        let method = match self.handshake().era {
            Era::Legacy => "ping",
            Era::Modern => "server/discover",
        };
        let reply = self.call(UpstreamRequest::new(method)).await?.response().await?;
        match (&reply, &self.0.transport) {
            (RpcResponse::Error(error), ConnectionTransport::Http(client)) => {
                client.health_check_session_error(error).map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    /// Asks a modern server to tell, for as long as the exchange is kept, of changes that this filter names.
    /// Its acknowledgement is the first thing that comes back.
    pub async fn listen(&self, filter: &str) -> Result<UpstreamExchange, ConnectionError> {
        let edits = &[JsonEdit::Set("notifications", filter)];
        self.call(UpstreamRequest { edits, ..UpstreamRequest::new(LISTEN_METHOD) }).await
    }

    /// Words of the server as they may be told: without the values that it was given, on one line of at most `limit`
    /// characters.
    pub fn redacted_line(&self, text: &str, limit: usize) -> String {
        self.mask().redacted_line(text, limit)
    }

    pub(super) fn mask(&self) -> &SecretMask {
        self.0.notifications.mask()
    }

    /// Why nothing is sent just now: the server wants to be left alone for a while.
    pub fn retry_after_problem(&self) -> Option<Problem> {
        self.0.retry_after.problem()
    }

    /// Until when; `None` if it may be asked.
    pub fn retry_after_until(&self) -> Option<Instant> {
        self.0.retry_after.ends_at()
    }

    /// True if the server has said anything since this was asked last: an answer, progress, a notice.
    pub fn received_since_last_check(&self) -> bool {
        self.0.notifications.received_since_last_check()
    }

    /// Waits until a response casts doubt on the connection: the server rejects credentials that it took before, or
    /// may have forgotten the session. Cancel safe.
    pub async fn health_check_requested(&self) {
        self.0.notifications.health_check_requested().await;
    }

    /// The reason why the connection is dead, once that is known.
    pub fn end_problem(&self) -> Option<Problem> {
        self.0.end.get().map(|error| error.problem.clone())
    }

    /// Declares the connection dead: [`ConnectionEvent::Lost`] tells it.
    pub fn mark_ended(&self, error: ConnectionError) {
        self.0.end.mark(error);
    }

    /// Lets go of what only a busy connection needs and would not be of use after a pause; the next call gets it
    /// again.
    pub fn close_idle_connections(&self, pause: Duration) {
        if let ConnectionTransport::Http(client) = &self.0.transport {
            client.close_idle_connections(pause);
        }
    }

    /// Ends the connection: the session by DELETE, or the process by closing its stdin, then SIGTERM, then
    /// SIGKILL to its group. Bounded by a few seconds.
    pub async fn close(&self) {
        self.0.end.mark(ConnectionError::new(Reason::Detached, "the connection was closed"));
        match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.close().await,
            ConnectionTransport::Http(client) => client.close().await,
        }
    }

    /// Waits until nothing works for the connection any more, once it was closed.
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

impl UpstreamExchange {
    /// The next thing that comes back. After an answer or an error nothing more comes. Cancel safe.
    pub async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let (state, id, lost) = (&mut self.state, self.id, &self.connection.0.end);
        let incoming = async {
            match state {
                ExchangeState::Stdio(waiting) => waiting.next().await,
                ExchangeState::Http(answering) => answering.next(id).await,
                ExchangeState::Finished => {
                    Err(ConnectionError::new(Reason::Detached, "the exchange is over"))
                }
            }
        };
        let incoming = tokio::select! {
            biased;
            incoming = incoming => incoming,
            // Over HTTP the response could go on without the connection that it belongs to.
            error = lost.wait() => Err(error.into_dispatched()),
        };
        match incoming {
            Ok(ResponseMessage::Notification(message) | ResponseMessage::Progress(message)) => {
                self.with_agent_token(message)
            }
            Ok(answer) => {
                self.connection.0.notifications.mark_received();
                self.finish();
                Ok(answer)
            }
            Err(error) => {
                self.finish();
                Err(error)
            }
        }
    }

    /// Waits for the answer, leaving out what comes before it.
    pub async fn response(mut self) -> Result<RpcResponse, ConnectionError> {
        loop {
            if let ResponseMessage::Response(reply) = self.next().await? {
                return Ok(reply);
            }
        }
    }

    /// Stops waiting without telling the server; a late answer is discarded.
    pub fn abandon(mut self) {
        self.state = ExchangeState::Finished;
    }

    fn with_agent_token(&self, message: Bytes) -> Result<ResponseMessage, ConnectionError> {
        match (&self.progress_token, server_message::classify(&message)) {
            (Some(token), Ok(server_message::ServerMessage::Progress(_))) => {
                server_message::with_progress_token(&message, token)
                    .map(ResponseMessage::Progress)
                    .map_err(|error| malformed_request(&error))
            }
            _ => Ok(ResponseMessage::Notification(message)),
        }
    }

    fn finish(&mut self) {
        if let ExchangeState::Http(answering) = std::mem::replace(&mut self.state, ExchangeState::Finished) {
            answering.recycle();
        }
    }
}

impl Drop for UpstreamExchange {
    fn drop(&mut self) {
        let modern_http =
            self.connection.handshake().era == Era::Modern && matches!(self.state, ExchangeState::Http(_));
        // Over modern HTTP the closed stream is the cancellation; before the handshake there is none.
        if matches!(self.state, ExchangeState::Finished)
            || modern_http
            || self.connection.0.handshake.get().is_none()
        {
            return;
        }
        let method = "notifications/cancelled";
        let params = format!(r#"{{"requestId":{},"reason":"cancelled by the caller"}}"#, self.id);
        let message = server_message::message(None, method, Some(&params));
        match &self.connection.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.try_send(message),
            // The response stays open until then: to a legacy server its end says nothing, or the wrong thing.
            ConnectionTransport::Http(client) => {
                let held = std::mem::replace(&mut self.state, ExchangeState::Finished);
                client.post_in_background(method, message, Some(Box::new(held)));
            }
        }
    }
}

fn malformed_request(error: &MalformedMessage) -> ConnectionError {
    ConnectionError::new(Reason::InvalidSpec, format!("the request could not be read: {error}"))
}
