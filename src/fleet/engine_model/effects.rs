//! Runs state machines and their effects, and checks each effect.

use std::sync::Arc;
use std::time::Duration;

use super::super::state_machine::{CallRouting, Effect, Input, ServerOrder, StateMachine};
use super::engine::Engine;
use super::managed_server::{ManagedServer, tool_names};
use super::operations::SECRET_VALUE;
use super::world::{PendingEvent, Role, SimulatedConnection};
use crate::catalog::CatalogUpdate;
use crate::plan::ConnectionTarget;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{CallRefusal, UpstreamControl};
use crate::wire::ListKind;

impl Engine {
    pub(super) fn start_machine(&mut self, target: Arc<ConnectionTarget>) {
        let key = target.key.clone();
        let refusal = CallRefusal::Unavailable(Problem::new(Reason::Connecting, "not attached yet"));
        let upstream = UpstreamControl::new(key.clone(), refusal);
        let cached = self.disk.catalogs.get(&target.endpoint.digest()).cloned();
        let known_tools = cached.as_ref().map(|cached| tool_names(cached.lists.items(ListKind::Tools)));
        let (machine, effects) =
            StateMachine::start(target, upstream.handle().clone(), cached, self.step_time());
        self.next_instance += 1;
        let server = ManagedServer {
            machine,
            instance: self.next_instance,
            connections: Vec::new(),
            pending: Vec::new(),
            past: Vec::new(),
            routing: None,
            retry_after: None,
            observation: None,
            known_tools,
            published: None,
        };
        self.machines.insert(key.clone(), server);
        self.run_effects(&key, &Input::TimeReached, effects);
    }

    /// Passes an input to a state machine, and runs the effects.
    pub(super) fn input(&mut self, key: &ObjectKey, input: &Input) {
        let time = self.step_time();
        let Some(server) = self.machines.get_mut(key).filter(|_| !self.crashed) else { return };
        // A declaration of the same connection is from now on what the live connection is for.
        if let Input::Ordered(ServerOrder::Apply(target)) = input
            && let Some(live) = server.connections.iter_mut().find(|connection| connection.role == Role::Live)
            && target.same_connection(&live.target)
        {
            live.target = target.clone();
        }
        let effects = server.machine.step(input.clone(), time);
        self.run_effects(key, input, effects);
        let is_detached = self.machines.get(key).is_some_and(|server| server.machine.is_detached());
        if is_detached && !self.crashed {
            let server = self.machines.remove(key).unwrap();
            assert!(server.connections.is_empty(), "{key} is detached with {:?}", server.connections);
            // Does what the fleet does when an actor has ended: the server may be declared again.
            if let Some(target) = self.last_applied.target(key).cloned() {
                self.start_machine(target);
            }
        }
    }

    pub(super) fn run_effects(&mut self, key: &ObjectKey, cause: &Input, effects: Vec<Effect>) {
        let mut answers = Vec::new();
        for effect in effects {
            if self.crashed {
                return;
            }
            // What a server lists is its own text; everything else may hold no secret.
            if !matches!(effect, Effect::SetLists(_) | Effect::Publish(_) | Effect::StoreCatalog(..)) {
                let text = format!("{effect:?}");
                assert!(!text.contains(SECRET_VALUE), "{text} shows a secret");
            }
            *self.seen.entry(variant_name(&effect)).or_default() += 1;
            if let Effect::Report(observation) = &effect {
                *self.seen.entry(variant_name(&observation.phase)).or_default() += 1;
            }
            self.run_effect(key, cause, effect, &mut answers);
            self.end_effect();
        }
        for answer in answers {
            self.input(key, &answer);
        }
    }

    pub(super) fn run_effect(
        &mut self,
        key: &ObjectKey,
        cause: &Input,
        effect: Effect,
        answers: &mut Vec<Input>,
    ) {
        let now = self.now;
        let server = self.machines.get_mut(key).unwrap();
        match effect {
            Effect::StartAttempt { id, target, .. } => {
                server.assert_no_overlap(&target);
                let role = Role::Attempting;
                server.connections.push(SimulatedConnection {
                    id,
                    target,
                    role,
                    calls: 0,
                    drain_until: None,
                });
                server.pending.push(PendingEvent::AttemptEnds(id));
            }
            Effect::EndAttempt(id) => {
                let connection = server.connection(id).expect("an attempt ends once");
                assert_eq!(connection.role, Role::Attempting);
                connection.role = Role::Ended;
                server
                    .pending
                    .retain(|event| !matches!(event, PendingEvent::AttemptEnds(ended) if *ended == id));
                server.pending.push(PendingEvent::Closes(id));
            }
            Effect::RouteCalls(routing, drain) => server.route_calls(routing, drain, cause, now),
            Effect::CloseIfUnused { id, unused_for, .. } => {
                let live = server.connection(id).expect("the live connection");
                assert_eq!(live.role, Role::Live);
                if live.calls > 0 {
                    answers.push(Input::ConnectionUsed(id, unused_for));
                } else {
                    live.role = Role::Draining(false);
                    server.pending.push(PendingEvent::Closes(id));
                    server.routing = Some(CallRouting::WaitForConnection(Duration::ZERO));
                    answers.push(Input::ConnectionUnused(id));
                }
            }
            Effect::LimitDrains(limit, _) => {
                for connection in &mut server.connections {
                    connection.drain_until = connection.drain_until.map(|until| until.min(now + limit));
                }
            }
            Effect::EndConnection(id, error) => server.pending.push(PendingEvent::ConnectionEnds(id, error)),
            Effect::ReadList { id, list, .. } => {
                assert!(
                    server.live().is_some_and(|live| live.id == id),
                    "a list of a live connection is read"
                );
                server.pending.push(PendingEvent::ReadEnds(id, list));
            }
            Effect::CancelRead => server.pending.retain(|event| !matches!(event, PendingEvent::ReadEnds(..))),
            Effect::Publish(section) => {
                let tools = tool_names(section.lists.items(ListKind::Tools));
                let denied = server.machine.target().spec.expose.tools.deny.clone();
                let complete = server.known_tools.clone().expect("a complete list is known");
                let expected: Vec<_> = complete.into_iter().filter(|tool| !denied.contains(tool)).collect();
                assert_eq!(tools, expected, "{key} publishes what its last complete list has");
                server.published = Some(tools);
                self.update_catalog(vec![CatalogUpdate::Publish(section)]);
            }
            Effect::Withdraw(problem) => {
                assert!(server.published.take().is_some(), "only what is published is withdrawn");
                self.update_catalog(vec![CatalogUpdate::Withdraw(key.clone(), problem)]);
            }
            Effect::StoreCatalog(digest, cached) => {
                assert_eq!(digest, server.machine.target().endpoint.digest());
                let uses_secret = !server.machine.target().endpoint.referenced_values().is_empty();
                let has_secret = ListKind::ALL
                    .into_iter()
                    .flat_map(|list| cached.lists.items(list))
                    .any(|item| item.raw().contains(SECRET_VALUE));
                assert!(!(uses_secret && has_secret), "a catalog with a secret is stored");
                self.disk.catalogs.insert(digest, cached);
            }
            Effect::ResetRetryAfter => server.retry_after = None,
            Effect::Report(observation) => {
                assert_ne!(server.observation.as_ref(), Some(&observation), "an unchanged status is written");
                server.observation = Some(observation);
            }
            Effect::SetLists(_) | Effect::RestartHealthChecks(_) | Effect::EndStartup => {}
        }
    }
}

/// Returns the name of an enum's variant.
fn variant_name(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take_while(|character| character.is_alphanumeric()).collect()
}
