//! The actor of a connection that one caller has of its own: its start, and its end when it is not used.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::state_machine::{Input, ServerOrder};
use super::super::{CachedServer, FleetContext};
use super::Actor;
use super::caller_role::CallerRole;
use crate::plan::ConnectionTarget;
use crate::resource::{Reason, ServerInfo};
use crate::upstream::{CallerConnectionKey, UpstreamHandle};
use crate::wire::{ClientCapabilities, ServerDescription};

/// The shortest time between two checks whether a connection is used.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Actor {
    /// Creates the actor of a caller's own connection, which it begins to make. `catalog` is the
    /// connection from which the published lists were read.
    pub(in crate::fleet) fn for_caller(
        context: Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        orders: watch::Receiver<ServerOrder>,
        (key, capabilities): (CallerConnectionKey, ClientCapabilities),
        catalog: UpstreamHandle,
    ) -> Self {
        let description = Arc::new(ServerDescription {
            server_info: ServerInfo::default(),
            protocol_version: String::new(),
            instructions: None,
        });
        let cached = Some(Arc::new(CachedServer { description, lists: catalog.lists() }));
        let role = CallerRole::new(key, capabilities, catalog, target.spec.timeouts.idle.get());
        let mut actor = Self::start(context, target, orders, (None, cached), Some(Box::new(role)));
        actor.apply(Input::CallWaiting);
        actor
    }

    /// Ends a caller's connection that was closed, or was not used for `timeouts.idle`, and has the published lists read
    /// again if they differ from its own.
    pub(super) fn update_caller_connection(&mut self) {
        if let Some(role) = &mut self.role {
            role.request_read_if_due(Instant::now());
        }
        if self.machine.is_detaching() || !self.is_unused_caller_connection() {
            return;
        }
        if let Some(role) = &self.role {
            // First, so that a call that finds the connection closed gets another one.
            self.context.remove_caller_connection(&role.key);
            self.apply(Input::Ordered(ServerOrder::Detach(Reason::Idle)));
        }
    }

    fn is_unused_caller_connection(&mut self) -> bool {
        let Some(role) = &mut self.role else { return false };
        if self.machine.is_idle() {
            return true;
        }
        let now = Instant::now();
        if !role.check_is_due(now) {
            return false;
        }
        let idle_timeout = self.machine.target().spec.timeouts.idle.get();
        let unused_for = if self.live.is_some() {
            // A call in flight uses the connection.
            self.upstream.handle().idle_for().unwrap_or_default()
        } else {
            self.context.caller_connections.unused_for(&role.key).unwrap_or(idle_timeout)
        };
        role.check_at(now + idle_timeout.saturating_sub(unused_for).max(MIN_CHECK_INTERVAL));
        unused_for >= idle_timeout
    }
}
