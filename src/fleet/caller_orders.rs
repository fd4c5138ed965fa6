use std::collections::HashMap;

use tokio::sync::watch;

use super::state_machine::ServerOrder;
use crate::resource::ObjectKey;
use crate::upstream::{CallerConnectionKey, CallerId};

/// The orders to the actors of callers' connections.
#[derive(Default)]
pub(super) struct CallerOrders {
    pub(super) by_server: HashMap<ObjectKey, HashMap<u64, (CallerId, watch::Sender<ServerOrder>)>>,
    pub(super) last_number: u64,
}

impl CallerOrders {
    /// Removes an actor that has ended.
    pub(super) fn remove(&mut self, key: &CallerConnectionKey) {
        if let Some(actors) = self.by_server.get_mut(&key.server) {
            actors.remove(&key.number);
            if actors.is_empty() {
                self.by_server.remove(&key.server);
            }
        }
    }

    /// Sends an order to all actors.
    pub(super) fn order_all(&self, order: &ServerOrder) {
        for (_, orders) in self.by_server.values().flat_map(HashMap::values) {
            orders.send_replace(order.clone());
        }
    }
}
