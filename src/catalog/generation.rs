use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imbl::OrdMap;
use tokio::time::Instant;

use super::change::{NameWaiters, ServerChange};
use super::conflict::NameConflict;
use super::declared::{CatalogDeclaration, DeclaredServers};
use super::expected::{ExpectedItem, ExpectedItems};
use super::reserved_names::{RESERVATION_PERIOD, ReservedName, ReservedNames, ReservedUntil};
use super::{Route, Table, View};
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Section, ViewName};
use crate::wire::ListKind;

#[cfg(test)]
mod tests;

/// The time for which the removed names of an empty namespace stay recorded.
const REMOVED_NAMESPACE_RETENTION: Duration = Duration::from_hours(1);
/// The number of namespaces up to which no cleanup of stale namespaces runs.
const MIN_NAMESPACES_BEFORE_CLEANUP: usize = 64;

/// Everything that agents can list and call at one instant. Immutable: a change creates the next generation, which
/// shares the unchanged parts.
#[derive(Clone, Debug)]
pub struct Generation {
    number: u64,
    created_at: Instant,
    sections: OrdMap<ObjectKey, Arc<Section>>,
    everything: View,
    namespaces: OrdMap<Arc<str>, View>,
    /// The number of namespaces at which stale ones are removed.
    cleanup_threshold: usize,
    conflicts: OrdMap<ObjectKey, Arc<[NameConflict]>>,
    pub(super) declared: DeclaredServers,
    /// The items, besides those of servers, that may appear during startup.
    pub(super) expected: ExpectedItems,
    reserved_names: ReservedNames,
    name_waiters: NameWaiters,
}

/// One change between a generation and the next.
#[derive(Clone, Debug)]
pub enum CatalogUpdate {
    /// A server is declared: its names are reserved whether it is attached or not.
    Declare(ObjectKey, CatalogDeclaration),
    /// A server is no longer declared: its names stay reserved for one hour.
    Remove(ObjectKey),
    /// Every declaration was published once: servers with reserved names that were not declared are removed.
    DeclarationsComplete,
    /// A server's section is withdrawn, for this reason.
    Withdraw(ObjectKey, Problem),
    /// A server's new section, which replaces the previous one.
    Publish(Arc<Section>),
    /// The first attempt at a server has ended without a section.
    Attempted(ObjectKey),
    /// The items that a section of evenkeel itself may offer shortly; empty once it offers them or will not.
    Expect(ObjectKey, Arc<[ExpectedItem]>),
    /// All items that sections of evenkeel itself may offer were announced or offered once.
    ExpectedComplete,
    /// Every server that was declared at startup was attached or failed once.
    Settle,
}

impl Generation {
    /// Creates the first generation, which is empty except for reserved names. Names in the home namespace carry no
    /// namespace.
    pub fn new(home: Option<Arc<str>>, reserved_names: ReservedNames, now: Instant) -> Self {
        Self {
            number: 0,
            created_at: now,
            sections: OrdMap::new(),
            everything: View::everything(home),
            namespaces: OrdMap::new(),
            cleanup_threshold: MIN_NAMESPACES_BEFORE_CLEANUP,
            conflicts: OrdMap::new(),
            declared: DeclaredServers::default(),
            expected: ExpectedItems::default(),
            reserved_names,
            name_waiters: OrdMap::new(),
        }
    }

    /// Returns the next generation, with these updates applied at `now`. The cost depends on the updated servers'
    /// items, not on other servers.
    ///
    /// Of servers that are published together, the one that was created first gets names first. The generation number
    /// grows if the change may be visible to agents.
    #[must_use]
    pub fn with_updates(&self, updates: impl IntoIterator<Item = CatalogUpdate>, now: Instant) -> Self {
        let mut next = self.clone();
        next.number += 1;
        next.created_at = now;
        let (mut visible, mut published) = (next.expire_reserved_names(), BTreeMap::new());
        let mut settled = false;
        for update in updates {
            // During startup any update may end the wait of a call for an unknown name.
            visible |= !next.declared.is_settled()
                || matches!(update, CatalogUpdate::Publish(_) | CatalogUpdate::Withdraw(..));
            match update {
                CatalogUpdate::Declare(key, declaration) => {
                    next.declared.insert(&key, declaration);
                    next.reserved_names.reserve_all(&key, ReservedUntil::Removed);
                    next.refresh_waiter_conflicts(&key);
                }
                CatalogUpdate::Remove(key) => next.remove(&key),
                CatalogUpdate::DeclarationsComplete => {
                    next.declared.mark_complete();
                    next.remove_undeclared();
                }
                CatalogUpdate::Withdraw(key, problem) => {
                    next.declared.mark_attempted(&key);
                    next.withdraw(&key, &problem);
                }
                CatalogUpdate::Attempted(key) => next.declared.mark_attempted(&key),
                CatalogUpdate::Expect(section, items) => next.expected.set(section, items),
                CatalogUpdate::ExpectedComplete => next.expected.complete = true,
                CatalogUpdate::Publish(section) => {
                    published.insert(next.declared.rank(&section.key), section);
                }
                CatalogUpdate::Settle => settled = true,
            }
        }
        for section in published.into_values() {
            next.publish(&section);
        }
        if settled && next.declared.settle() {
            for key in next.conflicts.clone().keys() {
                next.relist(key);
            }
        }
        if !visible {
            next.number = self.number;
        }
        next
    }

    /// Returns when the next reservation of a name expires.
    pub fn next_expiry_at(&self) -> Option<Instant> {
        self.reserved_names.next_expiry_at()
    }

    /// Returns the names of a server, listed and reserved, each with the limit of its reservation once it is not
    /// listed.
    pub fn names_of(&self, key: &ObjectKey) -> Vec<(ReservedName, ReservedUntil)> {
        let mut names: Vec<_> = self.reserved_names.names_of(key).collect();
        if let Some(section) = self.sections.get(key) {
            for view in [ViewName::All, ViewName::Namespace(key.namespace.clone())] {
                let listed = self.view(&view).names_of(section).into_iter();
                names.extend(listed.map(|name| (name, ReservedUntil::Removed)));
            }
        }
        names
    }

    /// Returns the generation number, counted from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the view of an endpoint path; an empty one for a namespace without items.
    pub fn view(&self, name: &ViewName) -> &View {
        static EMPTY: LazyLock<View> = LazyLock::new(|| View::namespace("".into()));
        match name {
            ViewName::All => &self.everything,
            ViewName::Namespace(namespace) => self.namespaces.get(namespace).unwrap_or(&EMPTY),
        }
    }

    /// Returns true if a namespace has items, or had some in the last hour.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// Returns the section of a server.
    pub fn section(&self, key: &ObjectKey) -> Option<&Arc<Section>> {
        self.sections.get(key)
    }

    /// Returns the sections of all servers, in the order of their keys.
    pub fn sections(&self) -> impl Iterator<Item = &Arc<Section>> {
        self.sections.values()
    }

    /// Returns the items of a server that are listed under another name because of a name conflict.
    pub fn conflicts(&self, key: &ObjectKey) -> &[NameConflict] {
        self.conflicts.get(key).map_or(&[], |conflicts| conflicts)
    }

    /// Returns the conflicts of all servers that have any.
    pub fn all_conflicts(&self) -> &OrdMap<ObjectKey, Arc<[NameConflict]>> {
        &self.conflicts
    }

    fn publish(&mut self, section: &Arc<Section>) {
        let previous = self.sections.insert(section.key.clone(), section.clone());
        if previous.as_ref().is_some_and(|previous| Arc::ptr_eq(previous, section)) {
            return;
        }
        if previous.is_none() && self.namespaces.len() >= self.cleanup_threshold {
            self.remove_stale_namespaces();
        }
        let dropped_item =
            Problem::new(Reason::Removed, format!("server {} no longer offers it", section.key));
        let same_names = previous.as_ref().is_some_and(|previous| previous.prefix == section.prefix);
        for list in ListKind::ALL {
            let offered = section.lists.items(list).iter();
            let routes: BTreeMap<&str, Arc<Route>> =
                offered.map(|item| (&**item.name(), Arc::new(Route::new(section, item)))).collect();
            let until = match &previous {
                // The old prefix was given up: its names become free after the period even though the server is
                // declared.
                Some(previous) if previous.prefix != section.prefix => {
                    ReservedUntil::Released(self.created_at + RESERVATION_PERIOD)
                }
                _ => self.reserve_until(&section.key),
            };
            self.update_tables(&section.key, list, until, |table, change| {
                let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
                let mut unchanged_names = BTreeSet::new();
                if let Some(previous) = &previous {
                    for item in previous.lists.items(list) {
                        let is_still_listed = routes.contains_key(&**item.name());
                        if same_names && is_still_listed {
                            unchanged_names.insert(&**item.name());
                        } else if let Some(name) = table.remove(previous, item.name(), &dropped_item, change)
                            && is_still_listed
                        {
                            renamed.insert(item.name(), name);
                        }
                    }
                }
                for route in routes.values() {
                    let name = table.insert(route, unchanged_names.contains(route.name()), change);
                    if let Some(old_name) = renamed.get(route.name()) {
                        table.record_rename(old_name, &section.key, &name);
                    }
                }
            });
        }
    }

    /// Inserts a server's items again: a name that it waits for may be free.
    fn relist(&mut self, key: &ObjectKey) {
        let Some(section) = self.sections.get(key).cloned() else { return };
        for list in ListKind::ALL {
            let items = section.lists.items(list).iter();
            let routes: Vec<_> = items.map(|item| Arc::new(Route::new(&section, item))).collect();
            self.update_tables(key, list, self.reserve_until(key), |table, change| {
                for route in &routes {
                    table.insert(route, true, change);
                }
            });
        }
    }

    fn withdraw(&mut self, key: &ObjectKey, problem: &Problem) {
        let Some(section) = self.sections.remove(key) else {
            return;
        };
        for list in ListKind::ALL {
            self.update_tables(key, list, self.reserve_until(key), |table, change| {
                for item in section.lists.items(list) {
                    table.remove(&section, item.name(), problem, change);
                }
            });
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.declared.remove(key);
        self.reserved_names.reserve_all(key, self.reserve_until(key));
        self.refresh_waiter_conflicts(key);
    }

    /// Returns the limit of the reservation of a name that the server stops listing.
    fn reserve_until(&self, key: &ObjectKey) -> ReservedUntil {
        if self.declared.contains(key) {
            ReservedUntil::Removed
        } else {
            ReservedUntil::Time(self.created_at + RESERVATION_PERIOD)
        }
    }

    fn remove_undeclared(&mut self) {
        let undeclared = |key: &&ObjectKey| !self.declared.contains(key);
        for key in self.reserved_names.servers().filter(undeclared).cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Assigns names whose reservation expired to the servers that wait for them. Returns true if there are any.
    fn expire_reserved_names(&mut self) -> bool {
        let expired = self.reserved_names.remove_expired(self.created_at);
        let mut waiting_servers = BTreeSet::new();
        for name in expired {
            let waiting = self.name_waiters.get(&name).into_iter().flatten();
            waiting_servers.extend(waiting.map(|key| self.declared.rank(key)));
        }
        for (_, key) in &waiting_servers {
            self.relist(key);
        }
        !waiting_servers.is_empty()
    }

    /// Computes the conflicts of servers again that wait for a name that is reserved for this server.
    fn refresh_waiter_conflicts(&mut self, key: &ObjectKey) {
        if self.name_waiters.is_empty() {
            return;
        }
        let waiters = |(reserved, _): (ReservedName, ReservedUntil)| {
            self.name_waiters.get(&reserved.name).into_iter().flatten().cloned()
        };
        let affected: BTreeSet<_> = self.reserved_names.names_of(key).flat_map(waiters).collect();
        self.update_conflicts(affected);
    }

    /// Removes namespaces that have been empty for long. Scans all namespaces, but only once there are twice as many as
    /// the last cleanup left.
    fn remove_stale_namespaces(&mut self) {
        let is_stale = |view: &View| {
            let expired =
                |at: Instant| self.created_at.saturating_duration_since(at) > REMOVED_NAMESPACE_RETENTION;
            ListKind::ALL
                .into_iter()
                .all(|list| view.table(list).is_empty() && view.table(list).changed_at().is_none_or(expired))
        };
        let stale: Vec<_> =
            self.namespaces.iter().filter(|(_, view)| is_stale(view)).map(|(name, _)| name.clone()).collect();
        for name in stale {
            self.namespaces.remove(&name);
        }
        self.cleanup_threshold = MIN_NAMESPACES_BEFORE_CLEANUP.max(2 * self.namespaces.len());
    }

    /// Changes a list in both views that a server is in, and computes the conflicts of every affected server again.
    fn update_tables(
        &mut self,
        key: &ObjectKey,
        list: ListKind,
        until: ReservedUntil,
        update: impl Fn(&mut Table, &mut ServerChange<'_>),
    ) {
        let claimant = self.pending_claimant(key);
        let mut change = ServerChange {
            reserved: &mut self.reserved_names,
            waiters: &mut self.name_waiters,
            reserve_until: until,
            pending_claimant: claimant.as_ref(),
            affected_servers: BTreeSet::new(),
            list_changed: false,
        };
        if self.conflicts.contains_key(key) {
            change.affected_servers.insert(key.clone());
        }
        let new_view = || View::namespace(key.namespace.clone());
        let namespace = self.namespaces.entry(key.namespace.clone()).or_insert_with(new_view);
        for view in [&mut self.everything, namespace] {
            change.list_changed = false;
            let table = view.table_mut(list);
            update(table, &mut change);
            if change.list_changed {
                table.mark_changed(self.number, self.created_at);
            }
        }
        let affected = change.affected_servers;
        self.update_conflicts(affected);
    }

    /// Returns a server that may claim names of this one once it is attached for the first time.
    fn pending_claimant(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let prefix = &self.sections.get(key)?.prefix;
        let has_names =
            |key: &ObjectKey| self.sections.contains_key(key) || self.reserved_names.contains_server(key);
        self.declared.pending_claimant(key, prefix, has_names)
    }

    fn update_conflicts(&mut self, servers: BTreeSet<ObjectKey>) {
        for server in servers {
            let conflicts: Arc<[NameConflict]> = self.compute_conflicts(&server).into();
            if conflicts.is_empty() {
                self.conflicts.remove(&server);
            } else {
                self.conflicts.insert(server, conflicts);
            }
        }
    }

    fn compute_conflicts(&self, server: &ObjectKey) -> Vec<NameConflict> {
        let Some(section) = self.sections.get(server) else {
            return Vec::new();
        };
        let claimant = self.pending_claimant(server);
        [ViewName::All, ViewName::Namespace(server.namespace.clone())]
            .iter()
            .flat_map(|name| self.view(name).conflicts(section, &self.reserved_names, claimant.as_ref()))
            .collect()
    }
}
