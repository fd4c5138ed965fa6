//! The server behind both transports: what a message does, whatever it came in by.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::control::Command;
use super::counters::Counters;
use super::era::META_VERSION;
use super::headers;
use super::message::{Listen, Notices, Outcome, Request, error_object, member, reply};
use super::script::{Era, Rule, Script, Then};

/// One server and all that it knows.
pub struct Rig {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
pub(super) struct State {
    pub script: Script,
    /// How often a rule has been met, by method and place.
    met: HashMap<(String, usize), u32>,
    pub counters: Counters,
    pub sessions: HashMap<String, Session>,
    /// The legacy client on stdio, or of a server without sessions.
    pub client: Session,
    in_flight: HashMap<String, CancellationToken>,
    pub serial: u64,
}

/// A legacy client.
#[derive(Clone, Default)]
pub(super) struct Session {
    /// The revision agreed on.
    pub version: String,
    /// It has sent `notifications/initialized`.
    pub ready: bool,
}

/// What happens beside requests.
#[derive(Clone)]
pub(super) enum Event {
    /// A notification, by its method.
    Notice(String),
    /// A resource changed, by its URI.
    Updated(String),
    /// A whole message for legacy clients.
    Message(String),
    /// Whole messages for legacy clients, written at once.
    Batch(Vec<String>),
    /// All streams end without a word.
    CloseStreams,
    Stdout(String),
    Stderr(String),
}

/// The notices of the lists in which two scripts differ; `None` if they do not.
fn changed(before: &Script, after: &Script) -> Option<Vec<&'static str>> {
    let list = |items: &[Box<RawValue>]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    let differ = |items: fn(&Script) -> &Vec<Box<RawValue>>| list(items(before)) != list(items(after));
    let lists = [
        (differ(|script| &script.tools), "notifications/tools/list_changed"),
        (differ(|script| &script.prompts), "notifications/prompts/list_changed"),
        (
            differ(|script| &script.resources) || differ(|script| &script.templates),
            "notifications/resources/list_changed",
        ),
    ];
    let notices: Vec<_> = lists.iter().filter(|(differ, _)| *differ).map(|(_, notice)| *notice).collect();
    (!notices.is_empty()).then_some(notices)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

impl Rig {
    /// A server that follows the script.
    pub fn new(script: Script) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { script, ..State::default() }),
            events: broadcast::channel(1024).0,
        })
    }

    /// What has been seen so far.
    pub fn counters(&self) -> Counters {
        let state = self.state();
        Counters {
            sessions: state.sessions.len() as u64,
            in_flight: state.in_flight.len() as u64,
            ..state.counters.clone()
        }
    }

    /// The script in force.
    pub fn script(&self) -> Script {
        self.state().script.clone()
    }

    /// Obeys a command.
    pub fn obey(&self, command: Command) {
        let event = match command {
            Command::Counters => return,
            Command::Set(script) => {
                let mut state = self.state();
                let quiet = script.quiet;
                let changed = changed(&state.script, &script);
                state.script = *script;
                state.met.clear();
                drop(state);
                for notice in changed.filter(|_| !quiet).into_iter().flatten() {
                    let _ = self.events.send(Event::Notice(notice.into()));
                }
                return;
            }
            Command::Updated(uri) => Event::Updated(uri),
            Command::Log(level, data) => Event::Message(
                serde_json::json!({
                    "jsonrpc": "2.0", "method": "notifications/message",
                    "params": { "level": level, "logger": "rig", "data": data },
                })
                .to_string(),
            ),
            Command::Notify(method) => Event::Notice(method),
            Command::CloseStreams => Event::CloseStreams,
            Command::ForgetSessions { quietly } => {
                self.state().sessions.clear();
                if quietly {
                    return;
                }
                Event::CloseStreams
            }
            Command::AskForRoots(count) => Event::Batch(
                (0..count)
                    .map(|number| format!(r#"{{"jsonrpc":"2.0","id":"q{number}","method":"roots/list"}}"#))
                    .collect(),
            ),
            Command::Stdout(text) => Event::Stdout(text),
            Command::Stderr(text) => Event::Stderr(text),
            Command::Exit(code) => std::process::exit(code),
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// A message from a client, and what becomes of it. `headers` are those of HTTP.
    pub(super) async fn receive(
        self: &Arc<Self>,
        bytes: &[u8],
        headers: Option<&HeaderMap>,
        notices: Notices,
    ) -> Outcome {
        let message: Message<'_> = match serde_json::from_slice(bytes) {
            Ok(message) => message,
            Err(error) => {
                self.complain(format!("not a JSON-RPC message: {error}"));
                return reply(400, "null", &error_object(-32700, "Parse error", None));
            }
        };
        let Some(method) = message.method else {
            self.state().counters.answers += 1;
            return Outcome::Accepted;
        };
        let params = message.params.map_or("{}", RawValue::get);
        self.count(&method);
        if method == "tools/list" && self.state().script.restless {
            let _ = self.events.send(Event::Notice("notifications/tools/list_changed".into()));
        }
        let session = headers.and_then(|headers| headers::text(headers, "mcp-session-id"));
        let Some(id) = message.id.map(RawValue::get) else {
            if let Some(rule) = self.rule(&method)
                && let Some(outcome) = self.follow(rule, "null").await
            {
                return outcome;
            }
            return self.notified(&method, params, session);
        };
        let meta = member(params, "_meta").map_or("{}", RawValue::get);
        let modern = match self.state().script.era {
            Era::Legacy => false,
            Era::Modern => true,
            Era::Dual => member(meta, META_VERSION).is_some(),
        };
        let request = Request { id, method: &method, params, modern, headers };
        let mut guard = self.enter(id, modern, headers.is_some(), session);
        let cancelled = guard.token.clone();
        let work = async {
            if let Some(rule) = self.rule(&method)
                && let Some(outcome) = self.follow(rule, id).await
            {
                return outcome;
            }
            let refused =
                if modern { self.check_modern(&request, meta) } else { self.check_legacy(&request, session) };
            match refused {
                Some(outcome) => outcome,
                None => self.dispatch(&request, &notices).await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled.cancelled() => Outcome::Silence,
            outcome = work => {
                guard.settled = true;
                match outcome {
                    Outcome::Listen(listen) => {
                        guard.watch(listen.watched());
                        Outcome::Listen(Listen { guard: Some(guard), ..listen })
                    }
                    outcome => outcome,
                }
            }
        }
    }

    fn notified(&self, method: &str, params: &str, session: Option<&str>) -> Outcome {
        let mut state = self.state();
        if state.script.era != Era::Modern
            && session.is_some_and(|session| !state.sessions.contains_key(session))
        {
            let (status, code, message) = &state.script.http.unknown_session;
            return reply(*status, "null", &error_object(*code, message, None));
        }
        match method {
            "notifications/initialized" => {
                match session.and_then(|session| state.sessions.get_mut(session)) {
                    Some(session) => session.ready = true,
                    None => state.client.ready = true,
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

    /// Does what a rule says; `None` if the right answer is what it says.
    pub(super) async fn follow(&self, rule: Rule, id: &str) -> Option<Outcome> {
        tokio::time::sleep(Duration::from_millis(rule.delay_ms)).await;
        Some(match rule.then {
            Then::Answer => return None,
            Then::Hang => std::future::pending().await,
            Then::Result(result) => Outcome::Reply {
                status: 200,
                text: format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
                session: None,
            },
            Then::Error(error) => reply(200, id, error.get()),
            Then::Junk(text) => Outcome::Junk(text),
            Then::Http { status, headers, body } => Outcome::Http { status, headers, body },
            Then::Drop => Outcome::Drop,
            Then::Cut => Outcome::Cut,
            Then::Exit(code) => Outcome::Exit(code),
            Then::CloseStdin => Outcome::CloseStdin,
            Then::CloseStdout => Outcome::CloseStdout,
        })
    }

    /// The messages by which legacy clients are told of something that happened.
    pub(super) fn told_legacy(&self, event: &Event) -> Vec<String> {
        if let Event::Batch(messages) = event {
            return messages.clone();
        }
        let one = match event {
            Event::Notice(method) => Some(format!(r#"{{"jsonrpc":"2.0","method":"{method}"}}"#)),
            Event::Updated(uri) => self.state().counters.watched.contains_key(uri).then(|| {
                format!(r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{{"uri":"{uri}"}}}}"#)
            }),
            Event::Message(text) => Some(text.clone()),
            Event::Batch(_) | Event::CloseStreams | Event::Stdout(_) | Event::Stderr(_) => None,
        };
        one.into_iter().collect()
    }

    /// The rule that this message meets, if any.
    pub(super) fn rule(&self, method: &str) -> Option<Rule> {
        let mut state = self.state();
        let State { script, met, .. } = &mut *state;
        let (place, rule) = script.on.get(method)?.iter().enumerate().find(|(place, rule)| {
            let met = met.get(&(method.to_owned(), *place)).copied().unwrap_or(0);
            rule.times.is_none_or(|times| met < times)
        })?;
        *met.entry((method.to_owned(), place)).or_default() += 1;
        Some(rule.clone())
    }

    /// Takes a session out; false if there is none of that name.
    pub(super) fn end_session(&self, session: Option<&str>) -> bool {
        session.is_some_and(|session| self.state().sessions.remove(session).is_some())
    }

    /// Is this a session of ours?
    pub(super) fn knows(&self, session: Option<&str>) -> bool {
        session.is_some_and(|session| self.state().sessions.contains_key(session))
    }

    /// True if there is no GET and no DELETE here.
    pub(super) fn modern_only(&self) -> bool {
        self.state().script.era == Era::Modern
    }

    /// Has a legacy client on stdio finished its opening?
    pub(super) fn client_ready(&self) -> bool {
        self.state().client.ready
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(super) fn count(&self, method: &str) {
        *self.state().counters.methods.entry(method.to_owned()).or_default() += 1;
    }

    pub(super) fn connected(&self) {
        self.state().counters.connections += 1;
    }

    pub(super) fn complain(&self, complaint: String) {
        self.state().complain(complaint);
    }

    /// Counts a stream as open until the answer is dropped.
    pub(super) fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.state().counters.streams += 1;
        OpenStream(self.clone())
    }

    fn enter(self: &Arc<Self>, id: &str, modern: bool, http: bool, session: Option<&str>) -> InFlight {
        let mut state = self.state();
        state.serial += 1;
        // Modern HTTP requests need not have different ids, and only a closed stream cancels them.
        let key = if modern && http {
            format!("#{}", state.serial)
        } else {
            format!("{}/{id}", session.unwrap_or(""))
        };
        let token = CancellationToken::new();
        if state.in_flight.insert(key.clone(), token.clone()).is_some() {
            state.complain(format!("two requests in flight with id {id}"));
        }
        InFlight { rig: self.clone(), key, modern, token, settled: false, watched: Vec::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    pub(super) fn complain(&mut self, complaint: String) {
        self.counters.complaints.push(complaint);
    }
}

/// A request at work.
pub(super) struct InFlight {
    rig: Arc<Rig>,
    key: String,
    modern: bool,
    pub token: CancellationToken,
    settled: bool,
    /// Resources that this listen request is about.
    watched: Vec<String>,
}

impl InFlight {
    fn watch(&mut self, uris: Vec<String>) {
        let mut state = self.rig.state();
        for uri in &uris {
            *state.counters.watched.entry(uri.clone()).or_default() += 1;
        }
        self.watched = uris;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.rig.state();
        state.in_flight.remove(&self.key);
        for uri in &self.watched {
            let count = state.counters.watched.get_mut(uri).unwrap();
            *count -= 1;
            if *count == 0 {
                state.counters.watched.remove(uri);
            }
        }
        match (self.settled, self.modern || self.token.is_cancelled()) {
            (true, _) => {}
            (false, true) => state.counters.cancelled += 1,
            (false, false) => state.counters.abandoned += 1,
        }
    }
}

/// A stream that is open.
pub(super) struct OpenStream(Arc<Rig>);

impl OpenStream {
    pub(super) fn rig(&self) -> &Rig {
        &self.0
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.state().counters.streams -= 1;
    }
}
