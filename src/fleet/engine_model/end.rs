//! The end of a run: what is declared is live once all faults are over.

use std::collections::BTreeMap;

use super::super::Phase;
use super::super::state_machine::Input;
use super::engine::{Engine, MAX_STEPS_TO_END};
use super::managed_server::{ManagedServer, tool_names};
use super::operations::{Behavior, FILES, FileContent, Operation, Reference};
use crate::resource::ObjectKey;
use crate::wire::ListKind;

/// The final state of an engine, for comparing two runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The phase of each server.
    phases: BTreeMap<String, String>,
    /// The server and the name of each listed tool.
    tools: Vec<(String, String)>,
}

impl Engine {
    /// Checks that what is reported is true, and that what is in force is what the reference says.
    pub(super) fn check(&self, reference: &Reference) {
        let declared: Vec<_> = self.desired.servers.keys().map(|key| key.name.to_string()).collect();
        let expected: Vec<_> = reference.servers().keys().map(ToString::to_string).collect();
        assert_eq!(declared, expected, "servers in force");
        for (key, server) in &self.machines {
            server.check(key);
            assert_eq!(
                self.catalog.section(key).map(|section| tool_names(section.lists.items(ListKind::Tools))),
                server.published,
                "{key} in the catalog"
            );
        }
        for section in self.catalog.sections() {
            assert!(self.machines.contains_key(&section.key), "{} is in the catalog", section.key);
        }
    }

    /// Ends all faults, and runs until nothing is left to do. Checks that the end is what is declared.
    pub(super) fn run_to_end(&mut self, reference: &mut Reference) -> Outcome {
        for server in &mut self.servers {
            server.behavior = Behavior::Healthy;
        }
        for server in self.machines.values_mut() {
            server.connections.iter_mut().for_each(|connection| connection.calls = 0);
        }
        while self.machines.values().any(|server| !server.pending.is_empty()) {
            self.deliver(0);
        }
        self.apply_to_both(&Operation::HideDirectory(false), reference);
        self.apply_to_both(&Operation::RotateSecret, reference);
        for (file, (_, names)) in FILES.iter().enumerate() {
            let mut servers = match reference.files.get(&file) {
                None => continue,
                Some(FileContent::Valid(servers)) => servers.clone(),
                Some(FileContent::Broken) => reference.in_force.get(&file).cloned().unwrap_or_default(),
            };
            // A user requests a reconcile of the servers that wait for one. All others recover by themselves.
            for (name, server) in &mut servers {
                let key = ObjectKey::new("default", names[*name]);
                let observation = self.machines.get(&key).and_then(|server| server.observation.as_ref());
                if let Some(Phase::Failed { retry_at: None, .. }) =
                    observation.map(|observation| &observation.phase)
                {
                    server.reconcile = 9;
                }
            }
            self.apply_to_both(&Operation::Write(file, servers), reference);
        }
        self.apply_to_both(&Operation::Settle, reference);
        for _ in 0..MAX_STEPS_TO_END {
            let is_waiting = self.machines.values().any(|server| !server.pending.is_empty());
            // An idle server keeps the lists of its last connection: a call connects it, and they are read again.
            let idle = self.machines.iter().find(|(_, server)| server.machine.is_idle());
            let idle = idle.map(|(key, _)| key.clone());
            if is_waiting {
                self.deliver(0);
            } else if let Some(key) = idle {
                self.input(&key, &Input::CallWaiting);
            } else if self.difference(reference).is_none() {
                self.check(reference);
                return self.outcome();
            } else {
                let wakes = self.machines.values().filter_map(|server| server.machine.next_wake_at(self.now));
                let next = wakes.min().expect("something is due while the end is not reached");
                self.pass(next.saturating_duration_since(self.now));
            }
        }
        panic!(
            "the end is not reached: {}\n{}",
            self.difference(reference).unwrap_or_default(),
            self.describe()
        );
    }

    fn apply_to_both(&mut self, operation: &Operation, reference: &mut Reference) {
        reference.apply(operation);
        self.apply(operation);
    }

    /// Returns a difference between what is declared and what is live.
    fn difference(&self, reference: &Reference) -> Option<String> {
        for (name, declaration) in reference.servers() {
            let key = ObjectKey::new("default", name);
            let server = self.machines.get(&key);
            if declaration.suspend {
                if server.is_some() || self.catalog.section(&key).is_some() {
                    return Some(format!("{name} is suspended and not detached"));
                }
                continue;
            }
            let phase = server.and_then(|server| Some(&server.observation.as_ref()?.phase));
            match phase {
                Some(Phase::Attached) => {}
                phase => return Some(format!("{name} is {phase:?}")),
            }
            let mut tools: Vec<_> = self.servers[declaration.endpoint].tools.clone();
            tools.sort_unstable();
            tools.retain(|tool| !(declaration.deny_delete && *tool == "delete"));
            let published = server.and_then(|server| server.published.clone()).unwrap_or_default();
            if published != tools {
                return Some(format!("{name} publishes {published:?} and not {tools:?}"));
            }
        }
        let servers = reference.servers();
        let undeclared = self.machines.keys().find(|key| !servers.contains_key(&*key.name));
        undeclared.map(|key| format!("{key} is not declared"))
    }

    fn outcome(&self) -> Outcome {
        let phase = |server: &ManagedServer| format!("{:?}", server.observation.as_ref().unwrap().phase);
        let phases =
            self.machines.iter().map(|(key, server)| (key.name.to_string(), phase(server))).collect();
        let tools = self.catalog.sections().flat_map(|section| {
            tool_names(section.lists.items(ListKind::Tools))
                .into_iter()
                .map(move |tool| (section.key.name.to_string(), tool))
        });
        Outcome { phases, tools: tools.collect() }
    }

    pub(super) fn describe(&self) -> String {
        let server = |(key, server): (&ObjectKey, &ManagedServer)| {
            format!(
                "{key}#{} {:?} {:?} {:?}",
                server.instance, server.machine, server.connections, server.pending
            )
        };
        self.machines.iter().map(server).collect::<Vec<_>>().join("\n")
    }
}
