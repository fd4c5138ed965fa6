//! The actors of the connections that callers have of their own (`isolation: Session`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::{debug, error};

use super::actor::Actor;
use super::connection_key::ConnectionKey;
use super::reconcile::Fleet;
use super::state_machine::ServerOrder;
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, Isolation, McpServerSpec, ObjectKey, Problem, Reason};
use crate::upstream::{
    CallRefusal, CallerConnectionKey, CallerId, CallerRequest, ConnectRefusal, ConnectRequest, UpstreamHandle,
};

impl Fleet {
    /// Handles a request of the gateway.
    pub(super) fn on_caller_request(&mut self, request: CallerRequest) {
        match request {
            // The call was cancelled meanwhile.
            CallerRequest::Connect(request) if request.answer.is_closed() => {}
            CallerRequest::Connect(mut request) => {
                let answer = self.connect_caller(&mut request);
                // The call may have been cancelled.
                let _ = request.answer.send(answer);
            }
            CallerRequest::End(caller) => self.end_caller(&caller),
        }
    }

    fn connect_caller(&mut self, request: &mut ConnectRequest) -> Result<UpstreamHandle, ConnectRefusal> {
        let ConnectRequest { server, caller, capabilities, catalog, answer: _ } = request;
        let connections = self.context.caller_connections.clone();
        // Another call of the caller has requested it at the same time.
        if let Some(handle) = connections.find(server, caller) {
            return Ok(handle);
        }
        let Some(target) = self.last_applied.target(server).cloned() else {
            let problem = Problem::new(Reason::Removed, "it is not declared any more, or suspended");
            return Err(ConnectRefusal::Refused(CallRefusal::Removed(problem)));
        };
        if target.spec.isolation == Isolation::Shared {
            let problem = Problem::new(Reason::Connecting, "its declaration has just changed");
            return Err(ConnectRefusal::Refused(CallRefusal::Unavailable(problem)));
        }
        let limit = target.spec.max_sessions;
        if connections.count(server) >= u32::from(limit) {
            return Err(ConnectRefusal::TooMany(limit));
        }
        self.caller_orders.last_number += 1;
        let number = self.caller_orders.last_number;
        let key = CallerConnectionKey { server: server.clone(), caller: caller.clone(), number };
        let (sender, receiver) = watch::channel(ServerOrder::Apply(caller_target(&target)));
        let (context, catalog) = (self.context.clone(), catalog.clone());
        let (actor_key, capabilities) = (key.clone(), *capabilities);
        // A panic must not end the fleet.
        let actor = catch_unwind(AssertUnwindSafe(|| {
            Actor::for_caller(context, caller_target(&target), receiver, (actor_key, capabilities), catalog)
        }));
        let Ok(mut actor) = actor else {
            let problem =
                Problem::new(Reason::ConnectFailed, "an internal error of evenkeel; please report it");
            return Err(ConnectRefusal::Refused(CallRefusal::Unavailable(problem)));
        };
        debug!(%server, %caller, "a connection for one caller is made");
        let handle = actor.handle().clone();
        self.context.add_caller_connection(&key, handle.clone(), target.spec.roots);
        let actors = self.caller_orders.by_server.entry(key.server.clone()).or_default();
        actors.insert(number, (key.caller.clone(), sender));
        self.actors.spawn(ConnectionKey::Caller(key), async move { actor.run().await });
        Ok(handle)
    }

    /// Ends all connections of a caller.
    fn end_caller(&mut self, ended: &CallerId) {
        for (server, actors) in &self.caller_orders.by_server {
            for (number, (caller, orders)) in actors.iter().filter(|(_, (caller, _))| caller == ended) {
                let (server, caller, number) = (server.clone(), caller.clone(), *number);
                self.context.remove_caller_connection(&CallerConnectionKey { server, caller, number });
                orders.send_replace(ServerOrder::Detach(Reason::Idle));
            }
        }
    }

    /// Passes an order for a server on to the connections of its callers. They follow a changed declaration like a shared
    /// connection, and end if the server is not isolated any more.
    pub(super) fn order_caller_connections(&self, server: &ObjectKey, order: &ServerOrder) {
        let Some(actors) = self.caller_orders.by_server.get(server) else { return };
        let order = match order {
            ServerOrder::Apply(target) if target.spec.isolation == Isolation::Session => {
                ServerOrder::Apply(caller_target(target))
            }
            ServerOrder::Apply(_) => ServerOrder::Detach(Reason::Idle),
            ServerOrder::Detach(reason) => ServerOrder::Detach(*reason),
        };
        for (number, (caller, orders)) in actors {
            let key = CallerConnectionKey { server: server.clone(), caller: caller.clone(), number: *number };
            // One that is ending is not used again.
            if self.context.caller_connections.unused_for(&key).is_none() {
                continue;
            }
            if let ServerOrder::Detach(_) = order {
                self.context.remove_caller_connection(&key);
            }
            orders.send_replace(order.clone());
        }
    }

    /// Removes the actor of a caller's connection, which has ended or panicked. The next call starts another one.
    pub(super) fn on_caller_actor_ended(&mut self, key: &CallerConnectionKey, ended: Result<(), JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            error!(server = %key.server, caller = %key.caller, "the task of a caller's connection panicked");
        }
        self.context.remove_caller_connection(key);
        self.caller_orders.remove(key);
    }
}

/// Returns the target of a caller's connection: it is held like that of an `OnDemand` server, and shared by nobody else.
fn caller_target(target: &ConnectionTarget) -> Arc<ConnectionTarget> {
    let spec = McpServerSpec {
        isolation: Isolation::Shared,
        activation: Activation::OnDemand,
        ..McpServerSpec::clone(&target.spec)
    };
    Arc::new(ConnectionTarget { spec: Arc::new(spec), ..target.clone() })
}
