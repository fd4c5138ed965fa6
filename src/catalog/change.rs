//! A change of one server's names under way.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};

use super::names::NameId;
use super::reserved_names::{ReservedNames, ReservedUntil};
use crate::resource::ObjectKey;

/// Which servers would have a name without a tail if it were not another's.
pub(super) type Waiting = OrdMap<NameId, OrdSet<ObjectKey>>;

/// A change of one server's names under way: what it goes by, and what it touched.
pub(super) struct ServerChange<'a> {
    pub(super) kept: &'a mut ReservedNames,
    pub(super) waiting: &'a mut Waiting,
    /// How long a name is kept that the server lists no more.
    pub(super) until: ReservedUntil,
    /// A server that may want the same names and has to be waited for.
    pub(super) awaited: Option<&'a ObjectKey>,
    /// Servers of which an item got another name, or may be told otherwise why it has not.
    pub(super) touched: BTreeSet<ObjectKey>,
    /// True if the list is not what it was.
    pub(super) listed: bool,
}

impl ServerChange<'_> {
    pub(super) fn wait(&mut self, name: NameId, server: &ObjectKey) {
        self.waiting.entry(name).or_default().insert(server.clone());
        self.touched.insert(server.clone());
    }

    pub(super) fn wait_no_longer(&mut self, name: NameId, server: &ObjectKey) {
        let Some(servers) = self.waiting.get_mut(&name) else { return };
        if servers.remove(server).is_some() {
            self.touched.insert(server.clone());
        }
        if servers.is_empty() {
            self.waiting.remove(&name);
        }
    }

    /// Notes that the servers that wait for a name are to be told again which server has it.
    pub(super) fn touch_waiting(&mut self, name: NameId) {
        self.touched.extend(self.waiting.get(&name).into_iter().flatten().cloned());
    }
}
