//! The server behind both transports: handles each message, independent of its transport.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use super::control::ControlCommand;
use super::counters::Counters;
use super::era::META_PROTOCOL_VERSION;
use super::headers;
use super::message::{
    IncomingRequest, InterimSender, ListenStream, Outcome, error_object, error_response, member,
};
use super::script::{Action, Rule, Script, ServerEra};

/// One fake MCP server and its state.
pub struct FakeServer {
    state: Mutex<ServerState>,
    events: broadcast::Sender<ServerEvent>,
}

#[derive(Default)]
pub(super) struct ServerState {
    pub script: Script,
    /// How often each rule has been applied, by method and position.
    rule_hits: HashMap<(String, usize), u32>,
    pub counters: Counters,
    pub sessions: HashMap<String, ClientSession>,
    /// The legacy client over stdio, or over HTTP if the script turns sessions off.
    pub sessionless_client: ClientSession,
    in_flight: HashMap<String, CancellationToken>,
    /// The requests to the client that wait for a response, by their ids.
    pub questions: HashMap<String, oneshot::Sender<String>>,
    /// The last number used in a session id or in the key of a request in flight.
    pub last_number: u64,
}

/// A legacy client.
#[derive(Clone, Default)]
pub(super) struct ClientSession {
    /// The negotiated protocol revision.
    pub version: String,
    /// True once the client has sent `notifications/initialized`.
    pub initialized: bool,
}

/// An event that no request causes.
#[derive(Clone)]
pub(super) enum ServerEvent {
    /// A notification without parameters, by its method.
    Notification(String),
    /// A resource changed, by its URI.
    ResourceUpdated(String),
    /// A complete message for legacy clients.
    Message(String),
    /// Complete messages for legacy clients, written at once.
    Batch(Vec<String>),
    /// All streams end without a final message.
    CloseStreams,
    /// A line for stdout.
    Stdout(String),
    /// A line for stderr.
    Stderr(String),
}

/// Returns the `list_changed` methods of the lists in which two scripts differ, or `None` if no list differs.
fn list_changed_methods(before: &Script, after: &Script) -> Option<Vec<&'static str>> {
    let list = |items: &[Box<RawValue>]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    let differ = |items: fn(&Script) -> &Vec<Box<RawValue>>| list(items(before)) != list(items(after));
    let changes = [
        (differ(|script| &script.tools), "notifications/tools/list_changed"),
        (differ(|script| &script.prompts), "notifications/prompts/list_changed"),
        (
            differ(|script| &script.resources) || differ(|script| &script.templates),
            "notifications/resources/list_changed",
        ),
    ];
    let methods: Vec<_> = changes.iter().filter(|(differ, _)| *differ).map(|(_, method)| *method).collect();
    (!methods.is_empty()).then_some(methods)
}

#[derive(Deserialize)]
struct IncomingMessage<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

impl FakeServer {
    /// Creates a server that follows the script.
    pub fn new(script: Script) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(ServerState { script, ..ServerState::default() }),
            events: broadcast::channel(1024).0,
        })
    }

    /// Returns a snapshot of the counters.
    pub fn counters(&self) -> Counters {
        let state = self.state();
        Counters {
            sessions: state.sessions.len() as u64,
            in_flight: state.in_flight.len() as u64,
            ..state.counters.clone()
        }
    }

    /// Returns the current script.
    pub fn script(&self) -> Script {
        self.state().script.clone()
    }

    /// Executes a command.
    pub fn execute(&self, command: ControlCommand) {
        let event = match command {
            ControlCommand::Counters => return,
            ControlCommand::Set(script) => {
                let mut state = self.state();
                let quiet = script.quiet;
                let changed_methods = list_changed_methods(&state.script, &script);
                state.script = *script;
                state.rule_hits.clear();
                drop(state);
                for method in changed_methods.filter(|_| !quiet).into_iter().flatten() {
                    let _ = self.events.send(ServerEvent::Notification(method.into()));
                }
                return;
            }
            ControlCommand::Updated(uri) => ServerEvent::ResourceUpdated(uri),
            ControlCommand::Log(level, data) => ServerEvent::Message(
                serde_json::json!({
                    "jsonrpc": "2.0", "method": "notifications/message",
                    "params": { "level": level, "logger": "rig", "data": data },
                })
                .to_string(),
            ),
            ControlCommand::Notify(method) => ServerEvent::Notification(method),
            ControlCommand::Message(text) => ServerEvent::Message(text),
            ControlCommand::CloseStreams => ServerEvent::CloseStreams,
            ControlCommand::ForgetSessions { quietly } => {
                self.state().sessions.clear();
                if quietly {
                    return;
                }
                ServerEvent::CloseStreams
            }
            ControlCommand::AskForRoots(count) => ServerEvent::Batch(
                (0..count)
                    .map(|number| format!(r#"{{"jsonrpc":"2.0","id":"q{number}","method":"roots/list"}}"#))
                    .collect(),
            ),
            ControlCommand::Stdout(text) => ServerEvent::Stdout(text),
            ControlCommand::Stderr(text) => ServerEvent::Stderr(text),
            ControlCommand::Exit(code) => std::process::exit(code),
        };
        self.send_event(event);
    }

    /// Handles a message from a client. `headers` are those of the HTTP request.
    pub(super) async fn handle_message(
        self: &Arc<Self>,
        bytes: &[u8],
        headers: Option<&HeaderMap>,
        interim: InterimSender,
    ) -> Outcome {
        let message: IncomingMessage<'_> = match serde_json::from_slice(bytes) {
            Ok(message) => message,
            Err(error) => {
                self.record_violation(format!("not a JSON-RPC message: {error}"));
                return error_response(400, "null", &error_object(-32700, "Parse error", None));
            }
        };
        let Some(method) = message.method else {
            self.state().counters.answers += 1;
            self.answer_question(message.id.map(RawValue::get), bytes);
            return Outcome::Accepted;
        };
        let params = message.params.map_or("{}", RawValue::get);
        self.count_method(&method);
        if method == "tools/list" && self.state().script.restless {
            let _ = self.events.send(ServerEvent::Notification("notifications/tools/list_changed".into()));
        }
        let session = headers.and_then(|headers| headers::header_text(headers, "mcp-session-id"));
        let Some(id) = message.id.map(RawValue::get) else {
            if let Some(rule) = self.next_rule(&method)
                && let Some(outcome) = self.apply_rule(rule, "null").await
            {
                return outcome;
            }
            if let Some(headers) = headers {
                self.check_notification_version(&method, headers, session);
            }
            return self.handle_notification(&method, params, session);
        };
        let meta = member(params, "_meta").map_or("{}", RawValue::get);
        let modern = match self.state().script.era {
            ServerEra::Legacy => false,
            ServerEra::Modern => true,
            ServerEra::Dual => member(meta, META_PROTOCOL_VERSION).is_some(),
        };
        let request = IncomingRequest { id, method: &method, params, modern, headers };
        let mut guard = self.begin_request(id, modern, headers.is_some(), session);
        let cancelled = guard.cancellation.clone();
        let response = async {
            if let Some(rule) = self.next_rule(&method)
                && let Some(outcome) = self.apply_rule(rule, id).await
            {
                return outcome;
            }
            let rejection =
                if modern { self.check_modern(&request, meta) } else { self.check_legacy(&request, session) };
            match rejection {
                Some(outcome) => outcome,
                None => self.dispatch(&request, &interim).await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled.cancelled() => Outcome::NoResponse,
            outcome = response => {
                guard.completed = true;
                match outcome {
                    Outcome::Listen(listen) => {
                        guard.subscribe(listen.resource_uris());
                        Outcome::Listen(ListenStream { guard: Some(guard), ..listen })
                    }
                    outcome => outcome,
                }
            }
        }
    }

    /// Records a violation if a notification after `initialize` has not the negotiated revision in its header.
    fn check_notification_version(&self, method: &str, headers: &HeaderMap, session: Option<&str>) {
        let mut state = self.state();
        let client = session.and_then(|session| state.sessions.get(session));
        let version = client.unwrap_or(&state.sessionless_client).version.clone();
        if version.as_str() >= "2025-06-18"
            && headers::header_text(headers, "mcp-protocol-version") != Some(&version)
        {
            state.record_violation(format!("{method}: MCP-Protocol-Version is not {version}"));
        }
    }

    fn handle_notification(&self, method: &str, params: &str, session: Option<&str>) -> Outcome {
        let mut state = self.state();
        if state.script.era != ServerEra::Modern
            && session.is_some_and(|session| !state.sessions.contains_key(session))
        {
            let (status, code, message) = &state.script.http.unknown_session;
            return error_response(*status, "null", &error_object(*code, message, None));
        }
        match method {
            "notifications/initialized" => {
                match session.and_then(|session| state.sessions.get_mut(session)) {
                    Some(session) => session.initialized = true,
                    None => state.sessionless_client.initialized = true,
                }
            }
            "notifications/cancelled" => {
                let id = member(params, "requestId").map_or("", RawValue::get);
                if let Some(token) = state.in_flight.get(&format!("{}/{id}", session.unwrap_or(""))) {
                    token.cancel();
                }
            }
            _ => {}
        }
        Outcome::Accepted
    }

    /// Applies a rule after its delay. Returns `None` if the action is [`Action::Answer`].
    pub(super) async fn apply_rule(&self, rule: Rule, id: &str) -> Option<Outcome> {
        tokio::time::sleep(Duration::from_millis(rule.delay_ms)).await;
        Some(match rule.then {
            Action::Answer => return None,
            Action::Hang => std::future::pending().await,
            Action::Result(result) => Outcome::Response {
                status: 200,
                text: format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
                session: None,
            },
            Action::Error(error) => error_response(200, id, error.get()),
            Action::Message(text) => {
                Outcome::Response { status: 200, text: text.replace("$ID", id), session: None }
            }
            Action::Junk(text) => Outcome::Junk(text),
            Action::Http { status, headers, body } => Outcome::Http { status, headers, body },
            Action::Drop => Outcome::Drop,
            Action::Cut => Outcome::Cut,
            Action::Endless => Outcome::Endless,
            Action::Exit(code) => Outcome::Exit(code),
            Action::CloseStdin => Outcome::CloseStdin,
            Action::CloseStdout => Outcome::CloseStdout,
        })
    }

    /// Returns the messages by which legacy clients are notified of an event.
    pub(super) fn legacy_messages(&self, event: &ServerEvent) -> Vec<String> {
        if let ServerEvent::Batch(messages) = event {
            return messages.clone();
        }
        let one = match event {
            ServerEvent::Notification(method) => Some(format!(r#"{{"jsonrpc":"2.0","method":"{method}"}}"#)),
            ServerEvent::ResourceUpdated(uri) => self.state().counters.watched.contains_key(uri).then(|| {
                let params = format!(r#"{{"uri":"{uri}"}}"#);
                format!(r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{params}}}"#)
            }),
            ServerEvent::Message(text) => Some(text.clone()),
            ServerEvent::Batch(_)
            | ServerEvent::CloseStreams
            | ServerEvent::Stdout(_)
            | ServerEvent::Stderr(_) => None,
        };
        one.into_iter().collect()
    }

    /// Returns the rule for the next message with this method, if any, and counts its use.
    pub(super) fn next_rule(&self, method: &str) -> Option<Rule> {
        let mut state = self.state();
        let ServerState { script, rule_hits: hits, .. } = &mut *state;
        let (position, rule) = script.on.get(method)?.iter().enumerate().find(|(position, rule)| {
            let hits = hits.get(&(method.to_owned(), *position)).copied().unwrap_or(0);
            rule.times.is_none_or(|times| hits < times)
        })?;
        *hits.entry((method.to_owned(), position)).or_default() += 1;
        Some(rule.clone())
    }

    /// Removes a session. Returns false if there is none with this id.
    pub(super) fn end_session(&self, session: Option<&str>) -> bool {
        session.is_some_and(|session| self.state().sessions.remove(session).is_some())
    }

    /// Returns true if the session exists.
    pub(super) fn has_session(&self, session: Option<&str>) -> bool {
        session.is_some_and(|session| self.state().sessions.contains_key(session))
    }

    /// Returns true if the server supports neither GET nor DELETE.
    pub(super) fn is_modern_only(&self) -> bool {
        self.state().script.era == ServerEra::Modern
    }

    /// Returns true once a legacy client on stdio has sent `notifications/initialized`.
    pub(super) fn is_client_initialized(&self) -> bool {
        self.state().sessionless_client.initialized
    }

    pub(super) fn send_event(&self, event: ServerEvent) {
        // Sending fails if there is no subscriber, which is not an error.
        let _ = self.events.send(event);
    }

    pub(super) fn subscribe_events(&self) -> broadcast::Receiver<ServerEvent> {
        self.events.subscribe()
    }

    pub(super) fn count_method(&self, method: &str) {
        *self.state().counters.methods.entry(method.to_owned()).or_default() += 1;
    }

    pub(super) fn record_posted_path(&self, path: &str) {
        self.state().counters.posted_paths.insert(path.to_owned());
    }

    pub(super) fn count_connection(&self) {
        self.state().counters.connections += 1;
    }

    pub(super) fn record_violation(&self, violation: String) {
        self.state().record_violation(violation);
    }

    /// Counts a stream as open until the returned guard is dropped.
    pub(super) fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.state().counters.streams += 1;
        OpenStream(self.clone())
    }

    fn begin_request(
        self: &Arc<Self>,
        id: &str,
        modern: bool,
        http: bool,
        session: Option<&str>,
    ) -> InFlightRequest {
        let mut state = self.state();
        state.last_number += 1;
        // Modern HTTP requests may share ids, and only a closed stream cancels them.
        let key = if modern && http {
            format!("#{}", state.last_number)
        } else {
            format!("{}/{id}", session.unwrap_or(""))
        };
        let token = CancellationToken::new();
        if state.in_flight.insert(key.clone(), token.clone()).is_some() {
            state.record_violation(format!("two requests in flight with id {id}"));
        }
        InFlightRequest {
            server: self.clone(),
            key,
            modern,
            cancellation: token,
            completed: false,
            subscribed_uris: Vec::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap()
    }
}

impl ServerState {
    pub(super) fn record_violation(&mut self, complaint: String) {
        self.counters.complaints.push(complaint);
    }
}

/// A request in flight. Dropping it before `completed` is set counts it as cancelled or abandoned.
pub(super) struct InFlightRequest {
    server: Arc<FakeServer>,
    key: String,
    modern: bool,
    pub cancellation: CancellationToken,
    completed: bool,
    /// The resources that this listen request subscribes to.
    subscribed_uris: Vec<String>,
}

impl InFlightRequest {
    fn subscribe(&mut self, uris: Vec<String>) {
        let mut state = self.server.state();
        for uri in &uris {
            *state.counters.watched.entry(uri.clone()).or_default() += 1;
        }
        self.subscribed_uris = uris;
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let mut state = self.server.state();
        state.in_flight.remove(&self.key);
        for uri in &self.subscribed_uris {
            let count = state.counters.watched.get_mut(uri).unwrap();
            *count -= 1;
            if *count == 0 {
                state.counters.watched.remove(uri);
            }
        }
        match (self.completed, self.modern || self.cancellation.is_cancelled()) {
            (true, _) => {}
            (false, true) => state.counters.cancelled += 1,
            (false, false) => state.counters.abandoned += 1,
        }
    }
}

/// A guard that counts a stream as open.
pub(super) struct OpenStream(Arc<FakeServer>);

impl OpenStream {
    pub(super) fn server(&self) -> &FakeServer {
        &self.0
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.state().counters.streams -= 1;
    }
}
