use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use serde_json::json;

use crate::resource::{RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT};

/// The names of the servers that each file may declare.
pub(super) const FILES: [(&str, [&str; 2]); 2] = [("one.yaml", ["a", "b"]), ("team/two.yaml", ["c", "d"])];
/// The endpoints of the simulated servers. The first two are URLs, the others commands.
pub(super) const ENDPOINTS: [&str; 4] = ["http://one/", "http://two/", "three", "four"];
/// The tools that a simulated server may have.
pub(super) const TOOLS: [&str; 4] = ["read", "write", "delete", "search"];
/// The value of the secret, followed by a number.
pub(super) const SECRET_VALUE: &str = "s3cret-value-";

/// An operation on the world, or a step of time.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// Writes a file with these servers: the second element is an index into the file's names.
    Write(usize, Vec<(usize, ServerDeclaration)>),
    /// Writes text that does not parse into a file.
    Break(usize),
    Remove(usize),
    /// Gives the secret a new value.
    RotateSecret,
    DeleteSecret,
    /// Moves the directory away, or back; what is back is scanned until it counts as quiet.
    HideDirectory(bool),
    /// Scans once, while the tree is not quiet.
    Look,
    /// Scans until the tree counts as quiet.
    Settle,
    /// Changes what a server answers from now on; it sends a notification, so that its lists are read.
    SetBehavior(usize, Behavior),
    /// Changes a server's tools; it sends a notification, or the notification is lost.
    SetTools(usize, Vec<&'static str>, bool),
    /// Ends the live connection of the server with this index among all.
    EndConnection(usize, ConnectionFault),
    /// Delivers one of the events that are on their way.
    Deliver(usize),
    /// Delivers one of the past events again.
    DeliverAgain(usize),
    /// Begins a call of a server, and ends one.
    BeginCall(usize),
    EndCall(usize),
    /// The server answers a call that it does not know the tool.
    AnswerUnknownTool(usize),
    /// Lets time pass, in milliseconds.
    Pass(u64),
    /// Sets the wall clock forward or back, in seconds.
    SetWallClock(i64),
    Restart,
    Crash,
}

/// A declaration of a server in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerDeclaration {
    pub(super) endpoint: usize,
    pub(super) uses_secret: bool,
    pub(super) recreate: bool,
    pub(super) on_demand: bool,
    pub(super) suspend: bool,
    pub(super) deny_delete: bool,
    pub(super) prefix: Option<&'static str>,
    pub(super) short_grace: bool,
    pub(super) short_health_interval: bool,
    /// The values of the annotations that request a reconcile or a new connection; 0 for none.
    pub(super) reconcile: u8,
    pub(super) reconnect: u8,
}

/// The behavior of a simulated server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    Healthy,
    RefusesConnections,
    Hangs,
    ExitsAtStart,
    RejectsCredentials,
    FailsToList,
    SendsRetryAfter,
    IsAnotherEvenkeel,
    /// The list of prompts cannot be read.
    HasNoPrompts,
    /// The descriptions of its tools, and its errors, contain the secret.
    LeaksSecret,
}

/// How a live connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionFault {
    Broken,
    Exited,
    SessionLost,
    Refused,
}

/// The reference: what is declared, and what is in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Reference {
    pub(super) files: BTreeMap<usize, FileContent>,
    /// The servers in force of each file, which a file that does not parse keeps.
    pub(super) in_force: BTreeMap<usize, Vec<(usize, ServerDeclaration)>>,
    pub(super) hidden: bool,
}

#[derive(Clone, Debug)]
pub(super) enum FileContent {
    Valid(Vec<(usize, ServerDeclaration)>),
    Broken,
}

impl Reference {
    /// Records that the engine has accepted what is in the files.
    fn settle(&mut self) {
        if self.hidden {
            return;
        }
        for file in 0..FILES.len() {
            match self.files.get(&file) {
                None => drop(self.in_force.remove(&file)),
                Some(FileContent::Broken) => {}
                Some(FileContent::Valid(servers)) => drop(self.in_force.insert(file, servers.clone())),
            }
        }
    }

    /// Returns the servers in force by name.
    pub(super) fn servers(&self) -> BTreeMap<&'static str, &ServerDeclaration> {
        self.in_force
            .iter()
            .flat_map(|(file, servers)| servers.iter().map(|(name, server)| (FILES[*file].1[*name], server)))
            .collect()
    }

    /// Applies an operation.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Write(file, servers) => {
                self.files.insert(*file, FileContent::Valid(servers.clone()));
            }
            Operation::Break(file) => drop(self.files.insert(*file, FileContent::Broken)),
            Operation::Remove(file) => drop(self.files.remove(file)),
            Operation::HideDirectory(hidden) => {
                self.hidden = *hidden;
                self.settle();
            }
            // A restart reads the files anew.
            Operation::Settle | Operation::Restart | Operation::Crash => self.settle(),
            _ => {}
        }
    }
}

/// Returns the text of a file: YAML documents, in the syntax of JSON.
pub(super) fn file_text(file: usize, servers: &[(usize, ServerDeclaration)]) -> String {
    let document = |(name, server): &(usize, ServerDeclaration)| {
        let is_http = server.endpoint < 2;
        let (kind, target, entries) =
            if is_http { ("http", "url", "headers") } else { ("stdio", "command", "env") };
        let mut transport = json!({ target: ENDPOINTS[server.endpoint] });
        if server.uses_secret {
            let reference = json!({ "secretKeyRef": { "name": "s", "key": "token" } });
            transport[entries] = json!([{ "name": "TOKEN", "valueFrom": reference }]);
        }
        let mut spec = json!({ kind: transport, "suspend": server.suspend });
        let options = [
            (server.recreate, "update", json!("Recreate")),
            (server.on_demand, "activation", json!("OnDemand")),
            (server.short_grace, "gracePeriod", json!("2s")),
            (server.short_health_interval, "health", json!({ "interval": "5s" })),
        ];
        for (_, option, value) in options.into_iter().filter(|(is_set, ..)| *is_set) {
            spec[option] = value;
        }
        if server.deny_delete {
            spec["expose"]["tools"] = json!({ "deny": ["delete"] });
        }
        if let Some(prefix) = server.prefix {
            spec["expose"]["prefix"] = json!(prefix);
        }
        let mut metadata = json!({ "name": FILES[file].1[*name] });
        let requests =
            [(RECONCILE_REQUESTED_AT, server.reconcile), (RECONNECT_REQUESTED_AT, server.reconnect)];
        for (annotation, value) in requests.into_iter().filter(|(_, value)| *value > 0) {
            metadata["annotations"][annotation] = json!(value.to_string());
        }
        let document = json!({
            "apiVersion": "evenkeel.dev/v1alpha1",
            "kind": "McpServer",
            "metadata": metadata,
            "spec": spec
        });
        format!("---\n{document}\n")
    };
    servers.iter().map(document).collect()
}

fn declaration() -> impl Strategy<Value = ServerDeclaration> {
    let flags = proptest::array::uniform7(prop::bool::weighted(0.25));
    let prefix = prop_oneof![3 => Just(None), 1 => Just(Some("")), 1 => Just(Some("x"))];
    (0..ENDPOINTS.len(), flags, prefix, 0..2_u8, 0..2_u8).prop_map(
        |(
            endpoint,
            [uses_secret, recreate, on_demand, suspend, deny_delete, short_grace, short_health_interval],
            prefix,
            reconcile,
            reconnect,
        )| {
            ServerDeclaration {
                endpoint,
                uses_secret,
                recreate,
                on_demand,
                suspend,
                deny_delete,
                prefix,
                short_grace,
                short_health_interval,
                reconcile,
                reconnect,
            }
        },
    )
}

/// Returns a strategy for operations. Edits, deliveries and the passing of time are frequent; crashes are rare.
pub(super) fn operation() -> impl Strategy<Value = Operation> {
    use Behavior::*;
    use ConnectionFault::*;
    let file = || 0..FILES.len();
    let server = || 0..ENDPOINTS.len();
    let servers = prop::collection::vec(declaration(), 2).prop_flat_map(|servers| {
        let servers: Vec<_> = servers.into_iter().enumerate().collect();
        prop::sample::subsequence(servers, 0..=2)
    });
    let behavior = prop::sample::select(vec![
        Healthy,
        Healthy,
        Healthy,
        RefusesConnections,
        Hangs,
        ExitsAtStart,
        RejectsCredentials,
        FailsToList,
        SendsRetryAfter,
        IsAnotherEvenkeel,
        HasNoPrompts,
        LeaksSecret,
    ]);
    let end = prop::sample::select(vec![Broken, Exited, SessionLost, Refused]);
    let tools = prop::sample::subsequence(TOOLS.to_vec(), 0..=TOOLS.len());
    let pass = prop::sample::select(vec![1, 100, 500, 1_000, 2_500, 10_000, 31_000, 61_000, 16 * 60_000]);
    prop_oneof![
        8 => (file(), servers).prop_map(|(file, servers)| Operation::Write(file, servers)),
        1 => file().prop_map(Operation::Break),
        1 => file().prop_map(Operation::Remove),
        2 => Just(Operation::RotateSecret),
        1 => Just(Operation::DeleteSecret),
        1 => any::<bool>().prop_map(Operation::HideDirectory),
        2 => Just(Operation::Look),
        9 => Just(Operation::Settle),
        6 => (server(), behavior).prop_map(|(server, behavior)| Operation::SetBehavior(server, behavior)),
        5 => (server(), tools, any::<bool>())
            .prop_map(|(server, tools, notifies)| Operation::SetTools(server, tools, notifies)),
        3 => (server(), end).prop_map(|(server, end)| Operation::EndConnection(server, end)),
        24 => any::<usize>().prop_map(Operation::Deliver),
        3 => any::<usize>().prop_map(Operation::DeliverAgain),
        3 => server().prop_map(Operation::BeginCall),
        2 => server().prop_map(Operation::EndCall),
        2 => server().prop_map(Operation::AnswerUnknownTool),
        8 => pass.prop_map(Operation::Pass),
        1 => prop::sample::select(vec![-86_400, -60, 60, 86_400]).prop_map(Operation::SetWallClock),
        1 => Just(Operation::Restart),
        1 => Just(Operation::Crash),
    ]
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_state: &Self) -> BoxedStrategy<Operation> {
        operation().boxed()
    }

    fn apply(mut state: Self, operation: &Operation) -> Self {
        Self::apply(&mut state, operation);
        state
    }
}
