//! Delivers the events of the simulated servers, late, twice or in another order, and lets time pass.

use std::time::Duration;

use super::super::state_machine::{CallRouting, Input, RetryAfterPeriod, RetryAfterState};
use super::engine::Engine;
use super::managed_server::{ManagedServer, tool_names};
use super::operations::ENDPOINTS;
use super::world::{PendingEvent, RETRY_AFTER, endpoint_name, nth};
use crate::plan::ConnectionTarget;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::wire::ListKind;

impl Engine {
    pub(super) fn notify(&mut self, endpoint: &str) {
        for server in self.machines.values_mut() {
            if let Some(live) = server.live().filter(|live| endpoint_name(&live.target) == endpoint) {
                let notification = PendingEvent::Notification(live.id, ListKind::Tools);
                server.pending.push(notification);
            }
        }
    }

    pub(super) fn deliver(&mut self, index: usize) {
        let events: Vec<_> = self
            .machines
            .iter()
            .flat_map(|(key, server)| (0..server.pending.len()).map(|event| (key.clone(), event)))
            .collect();
        let Some((key, event)) = nth(events.into_iter(), index) else { return };
        let now = self.now;
        let server = self.machines.get_mut(&key).unwrap();
        // A connection with calls in flight closes at the end of its drain.
        if let PendingEvent::Closes(id) = server.pending[event]
            && let Some(connection) = server.connection(id)
            && connection.calls > 0
            && connection.drain_until.is_some_and(|until| until > now)
        {
            return;
        }
        let input = match server.pending.remove(event) {
            PendingEvent::AttemptEnds(id) => {
                let target = server.connection(id).expect("an attempt in progress").target.clone();
                let simulated = &self.servers[endpoint_index(&target)];
                match simulated.attempt_result(&target) {
                    Ok(attached) => {
                        let tools = attached.listing.lists.items(ListKind::Tools);
                        server.known_tools = Some(tool_names(tools));
                        Input::AttemptSucceeded(id, Box::new(attached))
                    }
                    Err(error) => {
                        if error.retry_after.is_some() {
                            server.retry_after = Some((target.endpoint.digest(), now + RETRY_AFTER));
                        }
                        Input::AttemptFailed(id, error)
                    }
                }
            }
            PendingEvent::ReadEnds(id, list) => {
                let target = server.connection(id).expect("a live connection").target.clone();
                let result = self.servers[endpoint_index(&target)].read_result(&target, list);
                if let (Ok(read), ListKind::Tools) = (&result, list) {
                    server.known_tools = Some(tool_names(&read.items));
                }
                Input::ListRead(id, list, result)
            }
            PendingEvent::Notification(id, list) => Input::ListChanged(id, list),
            PendingEvent::ConnectionEnds(id, error) => Input::ConnectionLost(id, error),
            PendingEvent::Closes(id) => {
                server.connections.retain(|connection| connection.id != id);
                Input::ConnectionClosed(id)
            }
        };
        server.past.push(input.clone());
        self.update_retry_after(&key);
        self.input(&key, &input);
    }

    /// Delivers a past event again: it changes nothing.
    pub(super) fn deliver_again(&mut self, index: usize) {
        let time = self.step_time();
        let is_stale = |server: &ManagedServer, input: &Input| match input {
            // The list is being read again.
            Input::ListRead(id, list, _) => !server
                .pending
                .iter()
                .any(|event| matches!(event, PendingEvent::ReadEnds(of, read) if of == id && read == list)),
            // A notification is never too late for its own connection.
            Input::ListChanged(id, _) => server.live().is_none_or(|live| live.id != *id),
            _ => true,
        };
        let past: Vec<_> = self
            .machines
            .iter()
            .flat_map(|(key, server)| server.past.iter().map(move |input| (key, server, input)))
            .filter(|(_, server, input)| is_stale(server, input))
            .map(|(key, _, input)| (key.clone(), input.clone()))
            .collect();
        let Some((key, input)) = nth(past.into_iter(), index) else { return };
        let machine = &mut self.machines.get_mut(&key).unwrap().machine;
        // What is due anyway is done first.
        let due = machine.step(Input::TimeReached, time);
        self.run_effects(&key, &Input::TimeReached, due);
        let Some(server) = self.machines.get_mut(&key).filter(|_| !self.crashed) else { return };
        if !is_stale(server, &input) {
            return;
        }
        let effects = server.machine.step(input.clone(), time);
        assert!(effects.is_empty(), "{input:?} came twice and had the effects {effects:?}");
    }

    pub(super) fn begin_call(&mut self, index: usize) {
        let keys: Vec<_> = self.machines.keys().cloned().collect();
        let Some(key) = nth(keys.into_iter(), index) else { return };
        let server = self.machines.get_mut(&key).unwrap();
        match &server.routing {
            Some(CallRouting::Connection(id, _)) => {
                let live = server.connections.iter_mut().find(|connection| connection.id == *id);
                live.expect("calls go to a connection that exists").calls += 1;
            }
            Some(CallRouting::WaitForConnection(_)) => self.input(&key, &Input::CallWaiting),
            _ => {}
        }
    }

    pub(super) fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let next = self
                .machines
                .iter()
                .filter_map(|(key, server)| Some((server.machine.next_wake_at(self.now)?, key)))
                .filter(|(at, _)| *at <= until)
                .min()
                .map(|(at, key)| (at, key.clone()));
            let Some((at, key)) = next.filter(|_| !self.crashed) else { break };
            self.now = at.max(self.now);
            self.update_retry_after(&key);
            self.input(&key, &Input::TimeReached);
        }
        self.now = self.now.max(until);
        let keys: Vec<_> = self.machines.keys().cloned().collect();
        for key in keys {
            self.update_retry_after(&key);
        }
    }

    /// Tells a state machine if its server's Retry-After began or is over.
    pub(super) fn update_retry_after(&mut self, key: &ObjectKey) {
        let Some(server) = self.machines.get(key) else { return };
        let period = |target: &ConnectionTarget| {
            let (digest, ends_at) = server.retry_after?;
            (digest == target.endpoint.digest() && ends_at > self.now).then(|| {
                let problem = Problem::new(Reason::ConnectFailed, "Retry-After");
                Box::new(RetryAfterPeriod { ends_at, problem })
            })
        };
        let live = server.live().and_then(|live| period(&live.target));
        let state = RetryAfterState { target: period(server.machine.target()), live };
        if *server.machine.retry_after() != state {
            self.input(key, &Input::RetryAfterChanged(state));
        }
    }
}

fn endpoint_index(target: &ConnectionTarget) -> usize {
    let name = endpoint_name(target);
    ENDPOINTS.iter().position(|endpoint| *endpoint == name).expect("a simulated server")
}
