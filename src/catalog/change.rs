//! An update of one server's names in progress.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};

use super::names::NameId;
use super::reserved_names::{ReservedNames, ReservedUntil};
use crate::resource::ObjectKey;

/// The servers that list an item under a hash-suffixed name because another server holds the bare name.
pub(super) type NameWaiters = OrdMap<NameId, OrdSet<ObjectKey>>;

/// An update of one server's names in progress: its inputs, and the servers that it affected.
pub(super) struct ServerChange<'a> {
    pub(super) reserved: &'a mut ReservedNames,
    pub(super) waiters: &'a mut NameWaiters,
    /// The limit of the reservation of a name that the server stops listing.
    pub(super) reserve_until: ReservedUntil,
    /// A server that may claim the same names once it attaches; its first attach is waited for.
    pub(super) pending_claimant: Option<&'a ObjectKey>,
    /// Servers of which an item got another name, or whose name conflicts may have changed.
    pub(super) affected_servers: BTreeSet<ObjectKey>,
    /// True if the list changed.
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

    /// Marks the servers that wait for a name as affected: their conflicts are computed again.
    pub(super) fn mark_waiters_affected(&mut self, name: NameId) {
        self.affected_servers.extend(self.waiters.get(&name).into_iter().flatten().cloned());
    }
}
