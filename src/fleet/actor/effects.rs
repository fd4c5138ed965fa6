//! Runs the effects of the state machine.

use std::sync::Arc;
use std::time::Duration;

use super::super::attach::timeout_error;
use super::super::health::HealthChecks;
use super::super::listing::read_list;
use super::super::state_machine::{CallRouting, ConnectionId, Drain, Effect, Input};
use super::super::subscriptions;
use super::attempt::RunningAttempt;
use super::drain::{DrainDeadline, drain_and_close};
use super::{Actor, BackgroundTask, LiveConnection, OpenedConnection};
use crate::net::jitter;
use crate::plan::ConnectionTarget;
use crate::resource::{Problem, Reason};
use crate::upstream::{DrainingConnection, UpstreamHandle};
use crate::wire::{Connection, ListKind, RetryAfter};

impl Actor {
    /// Runs an effect. Returns its answer, if it has one.
    pub(super) fn run_effect(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::StartAttempt { id, target, opening_era } => {
                let shared = (self.retry_after.clone(), self.stop_timeout.clone());
                let attempt =
                    RunningAttempt::new(id, &self.context, target, opening_era, shared, self.role.as_deref());
                self.attempt = Some(attempt);
            }
            Effect::EndAttempt(id) => {
                if let Some(attempt) = self.attempt.take_if(|attempt| attempt.id == id) {
                    let tasks = attempt.tasks.clone();
                    drop(attempt);
                    tasks.close();
                    self.closing.push((id, Box::pin(async move { tasks.wait().await })));
                }
            }
            Effect::RouteCalls(routing, drain) => self.route_calls(routing, drain),
            Effect::CloseIfUnused { id, unused_for, connect_timeout } => {
                return Some(self.close_if_unused(id, unused_for, connect_timeout));
            }
            Effect::LimitDrains(timeout, problem) => {
                self.drain_deadline.send_replace(Some(DrainDeadline { timeout, problem }));
            }
            Effect::EndConnection(id, error) => {
                if let Some(live) = self.live.as_ref().filter(|live| live.id == id) {
                    live.connection.mark_ended(error);
                }
            }
            Effect::RestartHealthChecks(target) => {
                if let Some(live) = &mut self.live {
                    live.health_task = health_checks(&live.connection, self.upstream.handle(), &target);
                }
            }
            Effect::ReadList { id, list, target } => self.start_read(id, list, target),
            Effect::CancelRead => self.read = None,
            Effect::SetLists(lists) => {
                if let Some(role) = &mut self.role {
                    role.compare_lists(&lists);
                }
                self.upstream.set_lists(lists);
            }
            // The lists and the status of the server are those of its shared connection.
            Effect::Publish(_) | Effect::Withdraw(_) | Effect::StoreCatalog(..) | Effect::EndStartup
                if self.role.is_some() => {}
            Effect::Report(observation) if let Some(role) = &mut self.role => role.log_failure(&observation),
            Effect::Publish(section) => self.context.publisher.publish(section),
            Effect::Withdraw(problem) => {
                self.context.publisher.withdraw(self.machine.target().key.clone(), problem);
            }
            Effect::StoreCatalog(digest, cached) => self.context.server_cache.store_catalog(digest, cached),
            Effect::ResetRetryAfter => self.retry_after = RetryAfter::default(),
            Effect::EndStartup => {
                // Without a section the server cannot own an unknown name any more.
                self.context.publisher.mark_attempted(self.machine.target().key.clone());
                self.startup_guard = None;
            }
            // The reporter outlives the fleet except at the very end of a shutdown.
            Effect::Report(observation) => drop(self.context.observations.send(observation)),
        }
        None
    }

    fn route_calls(&mut self, routing: CallRouting, drain: Option<Drain>) {
        // The tasks of the previous connection end with it.
        self.live = None;
        let displaced = match routing {
            CallRouting::Connection(id, target) => self.serve(id, &target),
            CallRouting::Wait(problem, deadline) => self.upstream.set_pending(problem, deadline),
            CallRouting::WaitForConnection(connect_timeout) => self.upstream.set_idle(connect_timeout),
            CallRouting::Refuse(refusal) => self.upstream.set_refused(refusal),
        };
        if let Some((connection, Drain { id, limit, problem })) = displaced.zip(drain) {
            self.drain(id, connection, DrainDeadline { timeout: limit, problem });
        }
    }

    /// Makes the opened connection the live one. Returns the previous one.
    fn serve(&mut self, id: ConnectionId, target: &Arc<ConnectionTarget>) -> Option<DrainingConnection> {
        let OpenedConnection { id, connection, events } = *self.opened.take_if(|opened| opened.id == id)?;
        let displaced = self.upstream.set_connection(connection.clone());
        let health_task = health_checks(&connection, self.upstream.handle(), target);
        let subscriptions_task = subscriptions::are_supported(&connection).then(|| -> BackgroundTask {
            let requests = self.context.subscriptions.clone();
            Box::pin(subscriptions::maintain(connection.clone(), requests, target.key.clone()))
        });
        self.live = Some(LiveConnection { id, connection, events, health_task, subscriptions_task });
        displaced
    }

    fn close_if_unused(
        &mut self,
        id: ConnectionId,
        unused_for: Duration,
        connect_timeout: Duration,
    ) -> Input {
        // A server with resource subscriptions is in use.
        let key = &self.machine.target().key;
        if !self.context.subscriptions.requested(key).resource_uris.is_empty() {
            return Input::ConnectionUsed(id, unused_for);
        }
        match self.upstream.set_idle_if_unused(unused_for, connect_timeout) {
            Ok(connection) => {
                self.live = None;
                let problem = Problem::new(Reason::Idle, "the connection was closed because it was idle");
                self.drain(id, connection, DrainDeadline { timeout: Duration::ZERO, problem });
                Input::ConnectionUnused(id)
            }
            Err(check_after) => Input::ConnectionUsed(id, check_after),
        }
    }

    fn drain(&mut self, id: ConnectionId, connection: DrainingConnection, deadline: DrainDeadline) {
        let deadlines = self.drain_deadline.subscribe();
        self.closing.push((id, Box::pin(drain_and_close(connection, deadline, deadlines))));
    }

    fn start_read(&mut self, id: ConnectionId, list: ListKind, target: Arc<ConnectionTarget>) {
        let Some(live) = self.live.as_ref().filter(|live| live.id == id) else { return };
        let connection = live.connection.clone();
        self.read = Some(Box::pin(async move {
            let limit = target.spec.timeouts.connect.get();
            let timed_out = || timeout_error(format!("{} timed out after {limit:?}", list.method()));
            let read = tokio::time::timeout(limit, read_list(&connection, &target.spec, list)).await;
            Input::ListRead(id, list, read.unwrap_or_else(|_| Err(timed_out())))
        }));
    }
}

/// Returns the task that checks the health of a live connection.
fn health_checks(
    connection: &Connection,
    handle: &UpstreamHandle,
    target: &ConnectionTarget,
) -> BackgroundTask {
    let (health, call_timeout) = (target.spec.health.clone(), target.spec.timeouts.call.get());
    let mut checks = HealthChecks::new(connection.clone(), handle.clone(), health, call_timeout);
    Box::pin(async move { checks.run(jitter()).await })
}
