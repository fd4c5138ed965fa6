use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::super::CachedServer;
use super::super::state_machine::{Input, ServerOrder, StepTime};
use super::managed_server::ManagedServer;
use super::operations::{Behavior, ENDPOINTS, FILES, Operation, SECRET_VALUE, TOOLS, file_text};
use super::world::{PendingEvent, SimulatedServer, connection_error, nth};
use crate::catalog::{CatalogUpdate, Generation, ReservedName, ReservedNames, ReservedUntil};
use crate::plan::LastApplied;
use crate::resource::{DeclaredObject, Desired, Digest, McpServerSpec, ObjectKey, Reason};
use crate::source::directory::testing::TestDirectory;
use crate::wire::ListKind;

/// The most events and wake-ups after which the end must be reached once all faults are over.
pub(super) const MAX_STEPS_TO_END: usize = 500;

/// The engine: the real parts, simulated servers, and what was seen so far.
pub(super) struct Engine {
    pub(super) directory: TestDirectory,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) wall_clock_offset: SignedDuration,
    pub(super) last_applied: LastApplied,
    pub(super) declared: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    pub(super) desired: Arc<Desired>,
    pub(super) machines: BTreeMap<ObjectKey, ManagedServer>,
    pub(super) catalog: Generation,
    pub(super) disk: Disk,
    pub(super) servers: Vec<SimulatedServer>,
    pub(super) secret_version: u32,
    /// The last target of each name, and when it was listed.
    pub(super) routed_names: HashMap<String, (ObjectKey, String, Instant)>,
    pub(super) next_instance: u64,
    /// The effects and reported phases so far, by name.
    pub(super) seen: BTreeMap<String, usize>,
    /// The number of effects so far, and the effect after which the engine crashes.
    pub(super) effects: usize,
    pub(super) crash_after: Option<usize>,
    pub(super) crashed: bool,
}

/// The data that outlives a crash, besides the files of the directory and the state directory.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) catalogs: HashMap<Digest, Arc<CachedServer>>,
    pub(super) names: BTreeMap<ObjectKey, Vec<(ReservedName, ReservedUntil)>>,
}

impl Engine {
    pub(super) fn new(crash_after: Option<usize>) -> Self {
        let start = Instant::now();
        let directory = TestDirectory::new(start);
        directory.write("keep.yaml", Some("# keeps the directory from being empty\n"));
        directory.write_secret("s", Some(&format!("{SECRET_VALUE}0")));
        let server = SimulatedServer { behavior: Behavior::Healthy, tools: TOOLS.to_vec() };
        let mut engine = Self {
            directory,
            start,
            now: start,
            wall_clock_offset: SignedDuration::ZERO,
            last_applied: LastApplied::default(),
            declared: OrdMap::new(),
            desired: Arc::default(),
            machines: BTreeMap::new(),
            catalog: Generation::new(Some("default".into()), ReservedNames::default(), start),
            disk: Disk::default(),
            servers: vec![server; ENDPOINTS.len()],
            secret_version: 0,
            routed_names: HashMap::new(),
            next_instance: 0,
            seen: BTreeMap::new(),
            effects: 0,
            crash_after,
            crashed: false,
        };
        engine.settle();
        engine
    }

    /// Applies an operation. An engine that crashes in it begins anew.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Write(file, servers) => {
                self.directory.write(FILES[*file].0, Some(&file_text(*file, servers)));
            }
            Operation::Break(file) => self.directory.write(FILES[*file].0, Some("kind: [McpServer\n")),
            Operation::Remove(file) => self.directory.write(FILES[*file].0, None),
            Operation::RotateSecret => {
                self.secret_version += 1;
                self.directory.write_secret("s", Some(&format!("{SECRET_VALUE}{}", self.secret_version)));
            }
            Operation::DeleteSecret => self.directory.write_secret("s", None),
            Operation::HideDirectory(hidden) => {
                self.directory.set_hidden(*hidden);
                if !hidden {
                    self.settle();
                }
            }
            Operation::Look => drop(self.scan(false)),
            Operation::Settle => self.settle(),
            Operation::SetBehavior(server, behavior) => {
                self.servers[*server].behavior = *behavior;
                self.notify(ENDPOINTS[*server]);
            }
            Operation::SetTools(server, tools, notifies) => {
                self.servers[*server].tools.clone_from(tools);
                if *notifies {
                    self.notify(ENDPOINTS[*server]);
                }
            }
            Operation::EndConnection(index, end) => {
                let now = self.now;
                if let Some(server) = nth(self.machines.values_mut(), *index)
                    && let Some(live) = server.live().map(|live| live.id)
                {
                    let age = now.duration_since(self.start);
                    server.pending.push(PendingEvent::ConnectionEnds(live, connection_error(*end, age)));
                }
            }
            Operation::Deliver(index) => self.deliver(*index),
            Operation::DeliverAgain(index) => self.deliver_again(*index),
            Operation::BeginCall(index) => self.begin_call(*index),
            Operation::EndCall(index) => {
                let connections = self.machines.values_mut().flat_map(|server| &mut server.connections);
                if let Some(connection) = nth(connections.filter(|connection| connection.calls > 0), *index) {
                    connection.calls -= 1;
                }
            }
            Operation::AnswerUnknownTool(index) => {
                let keys: Vec<_> = self.machines.keys().cloned().collect();
                if let Some(key) = nth(keys.into_iter(), *index) {
                    self.input(&key, &Input::UnknownItem(ListKind::Tools));
                }
            }
            Operation::SetWallClock(seconds) => self.wall_clock_offset += SignedDuration::from_secs(*seconds),
            Operation::Pass(millis) => self.pass(Duration::from_millis(*millis)),
            Operation::Restart => {
                self.shut_down();
                self.restart();
            }
            Operation::Crash => self.restart(),
        }
        if self.crashed {
            self.crash_after = None;
            self.crashed = false;
            self.restart();
        }
    }

    /// Counts an effect. Returns false if the engine crashes after it.
    pub(super) fn end_effect(&mut self) -> bool {
        if self.crashed {
            return false;
        }
        self.effects += 1;
        self.crashed = self.crash_after == Some(self.effects);
        !self.crashed
    }

    fn shut_down(&mut self) {
        let keys: Vec<_> = self.machines.keys().cloned().collect();
        self.last_applied = LastApplied::default();
        for key in keys {
            self.input(&key, &Input::Ordered(ServerOrder::Detach(Reason::Detached)));
        }
        for _ in 0..MAX_STEPS_TO_END {
            if self.machines.is_empty() || self.crashed {
                return;
            }
            self.deliver(0);
            self.pass(Duration::from_secs(1));
        }
        panic!("a shutdown does not end: {}", self.describe());
    }

    pub(super) fn restart(&mut self) {
        self.crashed = false;
        self.machines.clear();
        self.last_applied = LastApplied::default();
        self.declared = OrdMap::new();
        self.desired = Arc::default();
        let mut names = ReservedNames::default();
        for (server, reserved) in &self.disk.names {
            for (name, until) in reserved {
                names.reserve(server, *name, *until);
            }
        }
        self.catalog = Generation::new(Some("default".into()), names, self.now);
        self.directory.restart(self.now);
        self.settle();
        if self.crashed {
            self.crash_after = None;
            self.restart();
        }
        self.update_catalog(vec![CatalogUpdate::DeclarationsComplete]);
    }

    pub(super) fn wall_clock(&self) -> Timestamp {
        let elapsed =
            SignedDuration::try_from(self.now.duration_since(self.start)).unwrap() + self.wall_clock_offset;
        Timestamp::from_second(1_800_000_000).unwrap().saturating_add(elapsed).unwrap()
    }

    pub(super) fn step_time(&self) -> StepTime {
        StepTime { now: self.now, wall_clock: self.wall_clock(), jitter: 0.5 }
    }
}
