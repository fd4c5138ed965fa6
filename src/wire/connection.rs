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
use super::{
    Era, HandshakeResult, InstanceId, ListKind, LogLevel, LoopDetection, RetryAfter, VIA_KEY, stdio,
};
use crate::resource::{Problem, Reason};

/// A live connection to one server, shared by every call on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: OnceLock<HandshakeResult>,
    next_id: AtomicU64,
    transport: ConnectionTransport,
    lost: Arc<ConnectionEnd>,
    tasks: TaskTracker,
    ears: NotificationDispatcher,
    identity: InstanceId,
    pause: RetryAfter,
    /// The tools whose arguments are repeated as headers, by name.
    mirrors: ArcSwap<HashMap<String, ParamHeaders>>,
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
    pub level: Option<LogLevel>,
}

impl<'a> UpstreamRequest<'a> {
    /// A request without params.
    pub fn new(method: &'a str) -> Self {
        static NONE: LazyLock<RequestParams<'static>> = LazyLock::new(RequestParams::default);
        Self { method, params: &NONE, edits: &[], name: None, level: None }
    }
}

/// A request in flight. Dropping it before the answer tells the server that it is cancelled.
#[derive(Debug)]
pub struct UpstreamExchange {
    link: Connection,
    id: u64,
    /// The agent's progress token, to put back into what comes.
    token: Option<JsonRpcId>,
    state: State,
}

#[derive(Debug)]
enum State {
    Stdio(stdio::PendingCall),
    Http(Box<HttpExchange>),
    /// Answered, failed or abandoned: nothing to cancel.
    Over,
}

/// What a connection tells without being asked.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// A list changed, or may have changed while nobody listened.
    Changed(ListKind),
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
            peer: OnceLock::new(),
            next_id: AtomicU64::new(1),
            transport,
            lost,
            tasks: host.tasks.clone(),
            identity: host.identity.clone(),
            pause: host.pause.clone(),
            ears,
            mirrors: ArcSwap::default(),
        }))
    }

    /// What the handshake told of the server.
    pub fn peer(&self) -> &HandshakeResult {
        static UNKNOWN: OnceLock<HandshakeResult> = OnceLock::new();
        self.0.peer.get().unwrap_or_else(|| UNKNOWN.get_or_init(HandshakeResult::unknown))
    }

    pub(super) fn set_peer(&self, peer: HandshakeResult) {
        if let ConnectionTransport::Http(client) = &self.0.transport {
            client.agreed(&peer);
        }
        // Set once, by the handshake.
        let _ = self.0.peer.set(peer);
    }

    /// Sends a request. The answer may take as long as it likes: the caller bounds it.
    pub async fn call(&self, request: UpstreamRequest<'_>) -> Result<UpstreamExchange, ConnectionError> {
        if let Some(error) = self.0.lost.get() {
            return Err(error.clone());
        }
        let id = self.next_id();
        let RequestParams { members, meta } = request.params;
        let (meta, token) = self.peer().meta(meta.as_ref(), id, request.level);
        // What is no object is left out: no server is to see what was not looked at.
        let meta = meta.as_deref().map_or(JsonEdit::Remove("_meta"), |meta| JsonEdit::Set("_meta", meta));
        let edits = request.edits.iter().copied().chain([meta]);
        let message = server_message::request(id, request.method, members, edits);
        self.dispatch(id, token, request.method, request.name, self.mirrored(&request), message).await
    }

    /// Learns which arguments of these tools, given as raw JSON by name, are to be repeated as headers.
    /// Gives the names of the tools that must not be used, each with why.
    pub fn learn<'a>(&self, tools: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
        if self.peer().era == Era::Legacy || !matches!(self.0.transport, ConnectionTransport::Http(_)) {
            return Vec::new();
        }
        let (mut mirrors, mut unusable) = (HashMap::new(), Vec::new());
        for (name, raw) in tools {
            match ParamHeaders::of(raw.as_bytes()) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => drop(mirrors.insert(name.to_owned(), found)),
                Err(why) => unusable.push((name.to_owned(), why)),
            }
        }
        self.0.mirrors.store(Arc::new(mirrors));
        unusable
    }

    fn mirrored(&self, request: &UpstreamRequest<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let mirrors = self.0.mirrors.load();
        let tool = request.name.filter(|_| request.method == "tools/call");
        let Some(mirrors) = tool.and_then(|name| mirrors.get(name)) else {
            return Vec::new();
        };
        let arguments = request.params.members.get("arguments");
        arguments.map(|arguments| mirrors.headers(arguments.get())).unwrap_or_default()
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
                State::Stdio(pipes.request(id, (token.is_some() || listens, listens), message).await?)
            }
            ConnectionTransport::Http(client) => {
                State::Http(Box::new(client.request(method, name, mirrored, message, self.0.lost.clone())))
            }
        };
        Ok(UpstreamExchange { link: self.clone(), id, token, state })
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
    pub async fn page(&self, list: ListKind, cursor: Option<&str>) -> Result<RpcResponse, ConnectionError> {
        let params = self.introduced("{}")?;
        let params = RequestParams::parse(&params).map_err(|error| malformed(&error.into()))?;
        let cursor = cursor.map(json_string);
        let edits: Vec<_> = cursor.iter().map(|cursor| JsonEdit::Set("cursor", cursor)).collect();
        let request =
            UpstreamRequest { params: &params, edits: &edits, ..UpstreamRequest::new(list.method()) };
        let reply = self.call(request).await?.answer().await?;
        match &reply {
            RpcResponse::Error(error) => LoopDetection::of(error).map_or(Ok(reply), |ring| Err(ring.error())),
            RpcResponse::Result(_) => Ok(reply),
        }
    }

    /// These params with a word on who asks, should the server be an evenkeel.
    pub(super) fn introduced(&self, params: &str) -> Result<String, ConnectionError> {
        let RequestParams { members, meta } =
            RequestParams::parse(params).map_err(|error| malformed(&error.into()))?;
        let meta = meta.unwrap_or_default().rewrite(&[JsonEdit::Set(VIA_KEY, &self.0.identity.via())]);
        Ok(members.rewrite(&[JsonEdit::Set("_meta", &meta)]))
    }

    /// Asks for a sign of life: `ping`, or `server/discover` in the modern era. Any answer is one, unless it says that
    /// the server no longer knows the session.
    pub async fn check(&self) -> Result<(), ConnectionError> {
        let method = match self.peer().era {
            Era::Legacy => "ping",
            Era::Modern => "server/discover",
        };
        let reply = self.call(UpstreamRequest::new(method)).await?.answer().await?;
        match (&reply, &self.0.transport) {
            (RpcResponse::Error(error), ConnectionTransport::Http(client)) => {
                client.session_lost(error).map_or(Ok(()), Err)
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
    pub fn words(&self, text: &str, limit: usize) -> String {
        self.mask().words(text, limit)
    }

    pub(super) fn mask(&self) -> &SecretMask {
        self.0.ears.mask()
    }

    /// Why nothing is sent just now: the server wants to be left alone for a while.
    pub fn paused(&self) -> Option<Problem> {
        self.0.pause.problem()
    }

    /// Until when; `None` if it may be asked.
    pub fn paused_until(&self) -> Option<Instant> {
        self.0.pause.until()
    }

    /// True if the server has said anything since this was asked last: an answer, progress, a notice.
    pub fn heard_lately(&self) -> bool {
        self.0.ears.heard_lately()
    }

    /// Waits until a response casts doubt on the connection: the server rejects credentials that it took before, or
    /// may have forgotten the session. Cancel safe.
    pub async fn doubted(&self) {
        self.0.ears.doubted().await;
    }

    /// The reason why the connection is dead, once that is known.
    pub fn lost_by(&self) -> Option<Problem> {
        self.0.lost.get().map(|error| error.problem.clone())
    }

    /// Declares the connection dead: [`ConnectionEvent::Lost`] tells it.
    pub fn give_up(&self, error: ConnectionError) {
        self.0.lost.mark(error);
    }

    /// Lets go of what only a busy connection needs and would not be of use after a pause; the next call gets it
    /// again.
    pub fn rest(&self, pause: Duration) {
        if let ConnectionTransport::Http(client) = &self.0.transport {
            client.rest(pause);
        }
    }

    /// Ends the connection: the session by DELETE, or the process by closing its stdin, then SIGTERM, then
    /// SIGKILL to its group. Bounded by a few seconds.
    pub async fn close(&self) {
        self.0.lost.mark(ConnectionError::new(Reason::Detached, "the connection was closed"));
        match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.close().await,
            ConnectionTransport::Http(client) => client.close().await,
        }
    }

    /// Waits until nothing works for the connection any more, once it was closed.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    pub(super) fn transport(&self) -> &ConnectionTransport {
        &self.0.transport
    }

    pub(super) fn lost(&self) -> &Arc<ConnectionEnd> {
        &self.0.lost
    }
}

impl UpstreamExchange {
    /// The next thing that comes back. After an answer or an error nothing more comes. Cancel safe.
    pub async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let (state, id, lost) = (&mut self.state, self.id, &self.link.0.lost);
        let incoming = async {
            match state {
                State::Stdio(waiting) => waiting.next().await,
                State::Http(answering) => answering.next(id).await,
                State::Over => Err(ConnectionError::new(Reason::Detached, "the exchange is over")),
            }
        };
        let incoming = tokio::select! {
            biased;
            incoming = incoming => incoming,
            // Over HTTP the response could go on without the connection that it belongs to.
            error = lost.wait() => Err(error.dispatched()),
        };
        match incoming {
            Ok(ResponseMessage::Notice(message) | ResponseMessage::Progress(message)) => {
                self.restored(message)
            }
            Ok(answer) => {
                self.link.0.ears.heard();
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
    pub async fn answer(mut self) -> Result<RpcResponse, ConnectionError> {
        loop {
            if let ResponseMessage::Answer(reply) = self.next().await? {
                return Ok(reply);
            }
        }
    }

    /// Stops waiting without telling the server; a late answer is discarded.
    pub fn abandon(mut self) {
        self.state = State::Over;
    }

    fn restored(&self, message: Bytes) -> Result<ResponseMessage, ConnectionError> {
        match (&self.token, server_message::classify(&message)) {
            (Some(token), Ok(server_message::ServerMessage::Progress(_))) => {
                server_message::with_token(&message, token)
                    .map(ResponseMessage::Progress)
                    .map_err(|error| malformed(&error))
            }
            _ => Ok(ResponseMessage::Notice(message)),
        }
    }

    fn finish(&mut self) {
        if let State::Http(answering) = std::mem::replace(&mut self.state, State::Over) {
            answering.recycle();
        }
    }
}

impl Drop for UpstreamExchange {
    fn drop(&mut self) {
        let modern_http = self.link.peer().era == Era::Modern && matches!(self.state, State::Http(_));
        // Over modern HTTP the closed stream is the cancellation; before the handshake there is none.
        if matches!(self.state, State::Over) || modern_http || self.link.0.peer.get().is_none() {
            return;
        }
        let method = "notifications/cancelled";
        let params = format!(r#"{{"requestId":{},"reason":"cancelled by the caller"}}"#, self.id);
        let message = server_message::message(None, method, Some(&params));
        match &self.link.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.send_soon(message),
            // The response stays open until then: to a legacy server its end says nothing, or the wrong thing.
            ConnectionTransport::Http(client) => {
                let held = std::mem::replace(&mut self.state, State::Over);
                client.post_soon(method, message, Some(Box::new(held)));
            }
        }
    }
}

fn malformed(error: &MalformedMessage) -> ConnectionError {
    ConnectionError::new(Reason::InvalidSpec, format!("the request could not be read: {error}"))
}
