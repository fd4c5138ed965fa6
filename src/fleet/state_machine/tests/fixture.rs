//! A state machine with a clock of its own, and its events and effects in short form.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::super::listing::{ListResult, ServerListing, list_unavailable};
use super::super::super::{CachedServer, Phase};
use super::super::{
    AttachedServer, CallRouting, ConnectionId, Drain, Effect, Input, RetryAfterPeriod, RetryAfterState,
    ServerOrder, StateMachine, StepTime,
};
use crate::plan::ConnectionTarget;
use crate::resource::{
    DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, McpServerSpec, ObjectKey, Problem, ProtocolMode,
    Reason, StdioEndpoint, Transport,
};
use crate::upstream::{CallRefusal, Item, ServerLists, UpstreamControl};
use crate::wire::{
    ConnectionError, FailureSource, ListKind, ProtocolViolation, ServerCapabilities, ServerDescription,
};

/// A rule: after these events, the last one has these effects.
pub(super) struct Rule {
    pub(super) text: &'static str,
    pub(super) spec: &'static str,
    pub(super) given: &'static [TestEvent],
    pub(super) when: TestEvent,
    pub(super) then: &'static [&'static str],
}

pub(super) const HTTP: &str = r#""http": {"url": "http://a"}"#;
pub(super) const MOVED: &str = r#""http": {"url": "http://b"}"#;
pub(super) const STDIO: &str = r#""stdio": {"command": "a"}"#;
pub(super) const OTHER_STDIO: &str = r#""stdio": {"command": "b"}"#;
pub(super) const RECREATED: &str = r#""stdio": {"command": "a"}, "update": "Recreate""#;
pub(super) const RECREATED_OTHER: &str = r#""stdio": {"command": "b"}, "update": "Recreate""#;
pub(super) const ON_DEMAND: &str = r#""stdio": {"command": "a"}, "activation": "OnDemand""#;
pub(super) const ON_DEMAND_WITHOUT_PROMPTS: &str =
    r#""stdio": {"command": "a"}, "activation": "OnDemand", "expose": {"prompts": {"deny": ["*"]}}"#;
pub(super) const EARLY_EXIT: FailureSource = FailureSource::Exit(Duration::from_secs(1));
pub(super) const LATE_EXIT: FailureSource = FailureSource::Exit(Duration::from_hours(1));

/// The most wake-ups while time passes in a test. A machine that asks for more never waits.
const MAX_WAKES: usize = 1_000;

/// An event of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum TestEvent {
    /// A declaration with this spec, as JSON.
    Apply(&'static str),
    /// The last declaration, deleted and created again.
    Recreate,
    /// The last declaration with another value of a referenced secret.
    RotateSecret,
    RequestReconcile,
    RequestReconnect,
    /// Removes the annotation that requests a reconnect.
    WithdrawReconnect,
    Detach(Reason),
    /// The attempt or the connection with this number.
    Succeed(u64),
    SucceedWithoutPrompts(u64),
    Fail(u64, Reason),
    FailWith(u64, FailureSource),
    FailAndRetryAfter(u64, u64),
    RefuseAndRetryAfter(u64, u64),
    Slow(u64),
    Lose(u64, Reason),
    LoseWith(u64, FailureSource),
    Closed(u64),
    ListChanged(u64, ListKind),
    UnknownItem(ListKind),
    /// The list was read; it has these tools.
    Read(u64, &'static [&'static str]),
    PromptsRead(u64),
    ReadFailed(u64, Reason),
    ViolateProtocol(u64),
    /// The list changes that the server declares are heard, or not.
    ChangesHeard(u64, bool),
    DescribeOtherwise(u64),
    Unused(u64),
    Used(u64),
    Call,
    ObtainToken {
        is_first: bool,
    },
    /// The server sent Retry-After of this many seconds; the second value is for the live connection.
    RetryAfter(u64, u64),
    /// Time passes, in seconds; what is due happens on time.
    Pass(u64),
}

/// A state machine under test.
pub(super) struct TestMachine {
    pub(super) machine: StateMachine,
    _upstream: UpstreamControl,
    spec: &'static str,
    target: ConnectionTarget,
    secret: u32,
    start: Instant,
    now: Instant,
    requests: u32,
}

impl TestMachine {
    /// Starts a machine for a spec. Returns it with its first effects.
    pub(super) fn start(spec: &'static str, cached: Option<&[&str]>) -> (Self, Vec<String>) {
        let start = Instant::now();
        let target = target(spec, 0);
        let connecting = Problem::new(Reason::Connecting, "not attached yet");
        let upstream = UpstreamControl::new(target.key.clone(), CallRefusal::Unavailable(connecting));
        let cached =
            cached.map(|tools| Arc::new(CachedServer { description: Arc::default(), lists: lists(tools) }));
        let time = StepTime { now: start, wall_clock: Timestamp::UNIX_EPOCH, jitter: 0.0 };
        let (machine, effects) =
            StateMachine::start(Arc::new(target.clone()), upstream.handle().clone(), cached, time);
        let machine =
            Self { machine, _upstream: upstream, spec, target, secret: 0, start, now: start, requests: 0 };
        let effects = effects.iter().map(|effect| machine.format(effect)).collect();
        (machine, effects)
    }

    /// Applies an event, and returns the effects in short form.
    pub(super) fn apply(&mut self, event: TestEvent) -> Vec<String> {
        let id = ConnectionId;
        let error = |reason| ConnectionError::new(reason, "it failed");
        let error_with = |reason, seconds| ConnectionError {
            retry_after: Some(Duration::from_secs(seconds)),
            ..error(reason)
        };
        let error_from = |failure_source| ConnectionError { failure_source, ..error(Reason::Exited) };
        let input = match event {
            TestEvent::Apply(spec) => {
                self.spec = spec;
                let generation = self.target.generation + 1;
                let previous = std::mem::replace(&mut self.target, target(spec, self.secret));
                self.target = ConnectionTarget {
                    generation,
                    uid: previous.uid,
                    reconcile_requested_at: previous.reconcile_requested_at,
                    reconnect_requested_at: previous.reconnect_requested_at,
                    ..self.target.clone()
                };
                self.order()
            }
            TestEvent::Recreate => {
                self.target.uid = format!("{}+", self.target.uid).into();
                self.order()
            }
            TestEvent::RotateSecret => {
                self.secret += 1;
                self.target.endpoint = target(self.spec, self.secret).endpoint;
                self.order()
            }
            TestEvent::RequestReconcile => {
                self.requests += 1;
                self.target.reconcile_requested_at = Some(self.requests.to_string().into());
                self.order()
            }
            TestEvent::RequestReconnect => {
                self.requests += 1;
                self.target.reconnect_requested_at = Some(self.requests.to_string().into());
                self.order()
            }
            TestEvent::WithdrawReconnect => {
                self.target.reconnect_requested_at = None;
                self.order()
            }
            TestEvent::Detach(reason) => Input::Ordered(ServerOrder::Detach(reason)),
            TestEvent::Succeed(number) => Input::AttemptSucceeded(id(number), Box::new(attached(&["echo"]))),
            TestEvent::SucceedWithoutPrompts(number) => {
                let mut attached = attached(&["echo"]);
                let problem = list_unavailable(ListKind::Prompts, &error(Reason::Timeout));
                attached.listing.degraded.insert(ListKind::Prompts, problem);
                Input::AttemptSucceeded(id(number), Box::new(attached))
            }
            TestEvent::Fail(number, reason) => Input::AttemptFailed(id(number), error(reason)),
            TestEvent::FailWith(number, source) => Input::AttemptFailed(id(number), error_from(source)),
            TestEvent::FailAndRetryAfter(number, seconds) => {
                Input::AttemptFailed(id(number), error_with(Reason::ConnectFailed, seconds))
            }
            TestEvent::RefuseAndRetryAfter(number, seconds) => {
                Input::AttemptFailed(id(number), error_with(Reason::AuthRequired, seconds))
            }
            TestEvent::Slow(number) => {
                Input::AttemptSlow(id(number), Problem::new(Reason::Connecting, "not answered"))
            }
            TestEvent::Lose(number, reason) => Input::ConnectionLost(id(number), error(reason)),
            TestEvent::LoseWith(number, source) => Input::ConnectionLost(id(number), error_from(source)),
            TestEvent::Closed(number) => Input::ConnectionClosed(id(number)),
            TestEvent::ListChanged(number, list) => Input::ListChanged(id(number), list),
            TestEvent::UnknownItem(list) => Input::UnknownItem(list),
            TestEvent::Read(number, tools) => {
                let result = ListResult { items: items(tools), ..ListResult::default() };
                Input::ListRead(id(number), ListKind::Tools, Ok(result))
            }
            TestEvent::PromptsRead(number) => {
                let result = ListResult { items: Vec::new(), ..ListResult::default() };
                Input::ListRead(id(number), ListKind::Prompts, Ok(result))
            }
            TestEvent::ReadFailed(number, reason) => {
                Input::ListRead(id(number), ListKind::Tools, Err(error(reason)))
            }
            TestEvent::ViolateProtocol(number) => {
                Input::ProtocolViolated(id(number), ProtocolViolation::ResponseId)
            }
            TestEvent::ChangesHeard(number, heard) => {
                Input::ChangesUnheard(id(number), (!heard).then(|| "no stream".into()))
            }
            TestEvent::DescribeOtherwise(number) => {
                let description = ServerDescription { protocol_version: "x".into(), ..Default::default() };
                Input::DescriptionChanged(id(number), Arc::new(description))
            }
            TestEvent::Unused(number) => Input::ConnectionUnused(id(number)),
            TestEvent::Used(number) => Input::ConnectionUsed(id(number), Duration::from_secs(5)),
            TestEvent::Call => Input::CallWaiting,
            TestEvent::ObtainToken { is_first } => Input::TokenObtained { is_first },
            TestEvent::RetryAfter(target, live) => {
                let period = |seconds: u64| {
                    let problem = Problem::new(Reason::ConnectFailed, "Retry-After");
                    let ends_at = self.now + Duration::from_secs(seconds);
                    (seconds > 0).then(|| Box::new(RetryAfterPeriod { ends_at, problem }))
                };
                Input::RetryAfterChanged(RetryAfterState { target: period(target), live: period(live) })
            }
            TestEvent::Pass(seconds) => return self.pass(Duration::from_secs(seconds)),
        };
        self.step(input)
    }

    pub(super) fn apply_all(&mut self, events: &[TestEvent]) {
        for event in events {
            self.apply(*event);
        }
    }

    fn order(&self) -> Input {
        Input::Ordered(ServerOrder::Apply(Arc::new(self.target.clone())))
    }

    fn pass(&mut self, duration: Duration) -> Vec<String> {
        let (until, mut effects) = (self.now + duration, Vec::new());
        let mut wakes = 0;
        while let Some(at) = self.machine.next_wake_at(self.now).filter(|at| *at <= until) {
            wakes += 1;
            assert!(wakes <= MAX_WAKES, "{}: the machine is woken without end", self.spec);
            self.now = at.max(self.now);
            effects.extend(self.step(Input::TimeReached));
        }
        self.now = until;
        effects
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        let effects = self.machine.step(input, self.time());
        effects.iter().map(|effect| self.format(effect)).collect()
    }

    fn time(&self) -> StepTime {
        let elapsed = jiff::SignedDuration::try_from(self.now.duration_since(self.start)).unwrap();
        let wall_clock = Timestamp::UNIX_EPOCH.saturating_add(elapsed).unwrap();
        StepTime { now: self.now, wall_clock, jitter: 0.0 }
    }

    /// Detaches the server, and returns the message that calls get from now on.
    pub(super) fn detach_message(&mut self, reason: Reason) -> Option<String> {
        let effects = self.machine.step(Input::Ordered(ServerOrder::Detach(reason)), self.time());
        effects.into_iter().find_map(|effect| match effect {
            Effect::RouteCalls(CallRouting::Refuse(CallRefusal::Removed(problem)), _) => {
                Some(problem.message)
            }
            _ => None,
        })
    }

    /// Returns the message of the problem that was reported last.
    pub(super) fn reported_message(&self) -> &str {
        match &self.machine.reported.as_ref().unwrap().phase {
            Phase::Failed { problem, .. } | Phase::Connecting { last_problem: Some(problem), .. } => {
                &problem.message
            }
            _ => "",
        }
    }

    /// Returns an effect in short form.
    fn format(&self, effect: &Effect) -> String {
        let seconds = |at: Instant| at.duration_since(self.now).as_secs();
        match effect {
            Effect::StartAttempt { id, opening_era, .. } => match opening_era {
                Some(era) => format!("attempt {} {era:?}", id.0),
                None => format!("attempt {}", id.0),
            },
            Effect::EndAttempt(id) => format!("end attempt {}", id.0),
            Effect::RouteCalls(routing, drain) => {
                let routing = match routing {
                    CallRouting::Connection(id, _) => format!("calls to {}", id.0),
                    CallRouting::Wait(problem, deadline) => {
                        format!("calls wait {} s, {}", seconds(*deadline), problem.reason)
                    }
                    CallRouting::WaitForConnection(limit) => {
                        format!("calls connect within {} s", limit.as_secs())
                    }
                    CallRouting::Refuse(CallRefusal::Removed(_)) => "calls fail for good".to_owned(),
                    CallRouting::Refuse(CallRefusal::Unavailable(problem)) => {
                        format!("calls fail, {}", problem.reason)
                    }
                };
                match drain {
                    Some(Drain { id, limit, .. }) => {
                        format!("{routing}; drain {} {} s", id.0, limit.as_secs())
                    }
                    None => routing,
                }
            }
            Effect::CloseIfUnused { id, unused_for, .. } => {
                format!("close {} if unused {} s", id.0, unused_for.as_secs())
            }
            Effect::LimitDrains(limit, _) => format!("drains end within {} s", limit.as_secs()),
            Effect::EndConnection(id, _) => format!("end connection {}", id.0),
            Effect::RestartHealthChecks(_) => "restart health checks".to_owned(),
            Effect::ReadList { id, list, .. } => format!("read {list:?} of {}", id.0),
            Effect::CancelRead => "cancel read".to_owned(),
            Effect::SetLists(_) => "set lists".to_owned(),
            Effect::Publish(section) => {
                let names: Vec<_> =
                    section.lists.items(ListKind::Tools).iter().map(|item| &**item.name()).collect();
                format!("publish {}", names.join(","))
            }
            Effect::Withdraw(problem) => format!("withdraw, {}", problem.reason),
            Effect::StoreCatalog(..) => "store".to_owned(),
            Effect::ResetRetryAfter => "reset Retry-After".to_owned(),
            Effect::EndStartup => "startup ended".to_owned(),
            Effect::Report(observation) => {
                let phase = match &observation.phase {
                    Phase::Connecting { attempt, .. } => format!("Connecting {attempt}"),
                    Phase::Failed { problem, retry_at, attempt } => {
                        let retry = retry_at.map_or("never".to_owned(), |at| at.as_second().to_string());
                        format!("{} then {attempt} at {retry}", problem.reason)
                    }
                    phase => format!("{phase:?}"),
                };
                let live = observation.live_server.as_ref();
                let live = live.map_or(String::new(), |live| format!(", live {}", live.generation));
                let degraded = observation.degraded.as_ref().map_or("", |_| ", degraded");
                let paused = observation.paused.as_ref().map_or("", |_| ", paused");
                format!("report {phase}{live}{degraded}{paused}")
            }
        }
    }
}

/// Returns a target of generation 1. The spec is JSON without the outer braces.
pub(super) fn target(spec: &str, secret: u32) -> ConnectionTarget {
    let spec: Value = serde_json::from_str(&format!("{{{spec}}}")).unwrap();
    let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
    let transport = match (&spec.stdio, &spec.http) {
        (Some(stdio), _) => Transport::Stdio(StdioEndpoint {
            command: stdio.command.clone(),
            args: Vec::new(),
            cwd: None,
            env: Vec::new(),
        }),
        (None, Some(http)) => Transport::Http(HttpEndpoint {
            kind: HttpTransportKind::StreamableHttp,
            url: http.url.parse().unwrap(),
            headers: Vec::new(),
            ca: None,
            oauth: None,
        }),
        (None, None) => unreachable!("a spec has a transport"),
    };
    ConnectionTarget {
        key: ObjectKey::new("default", "s"),
        uid: "uid".into(),
        generation: 1,
        spec_digest: None,
        endpoint: endpoint(transport, secret),
        spec: Arc::new(spec),
        reconcile_requested_at: None,
        reconnect_requested_at: None,
    }
}

fn endpoint(transport: Transport, secret: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(secret.to_string().as_bytes())))
}

fn attached(tools: &[&str]) -> AttachedServer {
    AttachedServer {
        description: Arc::new(ServerDescription::default()),
        capabilities: ServerCapabilities {
            tools: Some(true),
            prompts: Some(true),
            ..ServerCapabilities::default()
        },
        listing: ServerListing { lists: Arc::unwrap_or_clone(lists(tools)), ..ServerListing::default() },
    }
}

fn lists(tools: &[&str]) -> Arc<ServerLists> {
    Arc::new(ServerLists { tools: items(tools), ..ServerLists::default() })
}

fn items(tools: &[&str]) -> Vec<Item> {
    let item = |name: &&str| Item::parse(ListKind::Tools, &json!({ "name": name }).to_string()).unwrap();
    tools.iter().map(item).collect()
}
