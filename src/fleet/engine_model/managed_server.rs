use tokio::time::Instant;

use super::super::state_machine::{CallRouting, ConnectionId, Drain, Input, ServerOrder, StateMachine};
use super::super::{Observation, Phase};
use super::world::{PendingEvent, Role, SimulatedConnection};
use crate::plan::ConnectionTarget;
use crate::resource::{Digest, ObjectKey, UpdateStrategy};
use crate::upstream::Item;

/// A state machine with what its actor would hold.
pub(super) struct ManagedServer {
    pub(super) machine: StateMachine,
    /// Distinguishes it from an earlier state machine of the same server.
    pub(super) instance: u64,
    pub(super) connections: Vec<SimulatedConnection>,
    pub(super) pending: Vec<PendingEvent>,
    /// Inputs that were delivered.
    pub(super) past: Vec<Input>,
    pub(super) routing: Option<CallRouting>,
    pub(super) retry_after: Option<(Digest, Instant)>,
    pub(super) observation: Option<Observation>,
    /// The tools of the last complete list.
    pub(super) known_tools: Option<Vec<String>>,
    pub(super) published: Option<Vec<String>>,
}

impl ManagedServer {
    pub(super) fn live(&self) -> Option<&SimulatedConnection> {
        self.connections.iter().find(|connection| connection.role == Role::Live)
    }

    pub(super) fn connection(&mut self, id: ConnectionId) -> Option<&mut SimulatedConnection> {
        self.connections.iter_mut().find(|connection| connection.id == id)
    }

    /// Checks that a new attempt overlaps with no earlier process of the server, and with `Recreate` with nothing.
    pub(super) fn assert_no_overlap(&self, target: &ConnectionTarget) {
        let recreate = target.spec.update == UpdateStrategy::Recreate;
        for connection in &self.connections {
            let is_replaced = matches!(connection.role, Role::Live | Role::Draining(true));
            let may_overlap = !recreate && (is_replaced || !connection.is_process());
            let same_object = connection.role != Role::Live || connection.target.uid == target.uid;
            assert!(may_overlap && same_object, "an attempt starts beside {connection:?}");
            assert!(connection.role != Role::Attempting, "two attempts at once");
        }
    }

    /// Checks that a healthy connection is not disturbed, and routes calls.
    pub(super) fn route_calls(
        &mut self,
        routing: CallRouting,
        drain: Option<Drain>,
        cause: &Input,
        now: Instant,
    ) {
        let target = self.machine.target().clone();
        let live = self.connections.iter_mut().find(|connection| connection.role == Role::Live);
        match (live, drain) {
            (Some(live), Some(drain)) => {
                assert_eq!(live.id, drain.id, "the live connection is drained");
                let is_allowed = match cause {
                    Input::ConnectionLost(id, _) => *id == live.id,
                    Input::AttemptSucceeded(..) | Input::Ordered(ServerOrder::Apply(_)) => {
                        !target.same_connection(&live.target)
                    }
                    Input::Ordered(ServerOrder::Detach(_)) => true,
                    _ => false,
                };
                assert!(is_allowed, "{cause:?} disturbs a healthy connection");
                live.role = Role::Draining(matches!(cause, Input::AttemptSucceeded(..)));
                live.drain_until = Some(now + drain.limit);
                self.pending.push(PendingEvent::Closes(drain.id));
                self.pending.retain(|event| match event {
                    PendingEvent::ConnectionEnds(id, _) | PendingEvent::Notification(id, _) => {
                        *id != drain.id
                    }
                    _ => true,
                });
            }
            (None, None) => {}
            (live, drain) => panic!("{live:?} is live, and {drain:?} is drained"),
        }
        if let CallRouting::Connection(id, target) = &routing {
            let (id, target) = (*id, target.clone());
            let opened = self.connection(id).expect("an opened connection");
            assert_eq!(opened.role, Role::Attempting);
            // The declaration may have changed during the attempt in a way that needs no other connection.
            opened.target = target;
            opened.role = Role::Live;
        }
        self.routing = Some(routing);
    }

    /// Checks that what is reported is true.
    pub(super) fn check(&self, key: &ObjectKey) {
        let observation = self.observation.as_ref().expect("every state is reported");
        let (target, live) = (self.machine.target(), self.live());
        let is_attempting = self.connections.iter().any(|connection| connection.role == Role::Attempting);
        let is_closing = self
            .connections
            .iter()
            .any(|connection| matches!(connection.role, Role::Draining(_) | Role::Ended));
        let is_current = live.is_some_and(|live| target.same_connection(&live.target));
        let is_true = match &observation.phase {
            Phase::Attached => is_current && !is_attempting,
            Phase::Idle => live.is_none() && !is_attempting && self.published.is_some(),
            Phase::Connecting { .. } => !is_current && (is_attempting || is_closing),
            Phase::Failed { .. } => !is_current && !is_attempting,
            Phase::Draining(_) => live.is_none() && !is_attempting && is_closing && self.published.is_none(),
            Phase::Detached(_) => self.connections.is_empty() && self.published.is_none(),
        };
        assert!(is_true, "{key} is reported as {:?} with {:?}", observation.phase, self.connections);
        assert_eq!(observation.generation, target.generation, "{key}");
        let has_live_server = live.is_some() || observation.phase == Phase::Idle;
        assert_eq!(observation.live_server.is_some(), has_live_server, "{key}");
        if let (Some(reported), Some(published)) = (&observation.live_server, &self.published) {
            assert_eq!(usize::try_from(reported.tools).unwrap(), published.len(), "{key}");
        }
        let routed = match &self.routing {
            Some(CallRouting::Connection(id, _)) => Some(*id),
            _ => None,
        };
        assert_eq!(routed, live.map(|live| live.id), "{key}: calls go to the live connection");
        assert!(live.is_none() || self.published.is_some(), "{key} is live and published");
    }
}

/// Returns the names of items.
pub(super) fn tool_names(items: &[Item]) -> Vec<String> {
    items.iter().map(|item| item.name().to_string()).collect()
}
