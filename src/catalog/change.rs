//! A change of one server's names under way.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};

use super::names::NameId;
use super::reserved_names::{ReservedNames, ReservedUntil};
use crate::resource::ObjectKey;

/// Which servers would have a name without a tail if it were not another's.
pub(super) type NameWaiters = OrdMap<NameId, OrdSet<ObjectKey>>;

/// A change of one server's names under way: what it goes by, and what it touched.
pub(super) struct ServerChange<'a> {
    pub(super) reserved: &'a mut ReservedNames,
    pub(super) waiters: &'a mut NameWaiters,
    /// How long a name is kept that the server lists no more.
    pub(super) reserve_until: ReservedUntil,
    /// A server that may want the same names and has to be waited for.
    pub(super) pending_claimant: Option<&'a ObjectKey>,
    /// Servers of which an item got another name, or may be told otherwise why it has not.
    pub(super) affected_servers: BTreeSet<ObjectKey>,
    /// True if the list is not what it was.
    pub(super) list_changed: bool,
}

impl ServerChange<'_> {
    pub(super) fn add_waiter(&mut self, name: NameId, server: &ObjectKey) {
        self.waiters.entry(name).or_default().insert(server.clone());
        self.affected_servers.insert(server.clone());
    }

    pub(super) fn remove_waiter(&mut self, name: NameId, server: &ObjectKey) {
        let Some(servers) = self.waiters.get_mut(&name) else { return };
        if servers.remove(server).is_some() {
            self.affected_servers.insert(server.clone());
        }
        if servers.is_empty() {
            self.waiters.remove(&name);
        }
    }

    /// Notes that the servers that wait for a name are to be told again which server has it.
    pub(super) fn mark_waiters_affected(&mut self, name: NameId) {
        self.affected_servers.extend(self.waiters.get(&name).into_iter().flatten().cloned());
    }
}
