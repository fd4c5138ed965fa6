use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imbl::OrdMap;
use tokio::time::Instant;

use super::change::{NameWaiters, ServerChange};
use super::conflict::NameConflict;
use super::declared::{CatalogDeclaration, DeclaredServers};
use super::reserved_names::{RESERVATION_PERIOD, ReservedName, ReservedNames, ReservedUntil};
use super::{Route, Table, View};
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Section, ViewName};
use crate::wire::ListKind;

#[cfg(test)]
mod tests;

/// So long it is remembered what a namespace had that has nothing any more.
const REMOVED_NAMESPACE_RETENTION: Duration = Duration::from_hours(1);
/// So many namespaces are never looked through.
const MIN_NAMESPACES_BEFORE_CLEANUP: usize = 64;

/// All that agents may see at one moment. Immutable: a change makes the next one, which shares the rest.
#[derive(Clone, Debug)]
pub struct Generation {
    number: u64,
    created_at: Instant,
    sections: OrdMap<ObjectKey, Arc<Section>>,
    everything: View,
    namespaces: OrdMap<Arc<str>, View>,
    /// As many namespaces as this are looked through for those that are long gone.
    cleanup_threshold: usize,
    conflicts: OrdMap<ObjectKey, Arc<[NameConflict]>>,
    declared: DeclaredServers,
    reserved_names: ReservedNames,
    name_waiters: NameWaiters,
}

/// One step from a generation to the next.
#[derive(Clone, Debug)]
pub enum CatalogUpdate {
    /// A server is declared: names are kept for it whether it is attached or not.
    Declare(ObjectKey, CatalogDeclaration),
    /// A server is declared no more: its names are kept for an hour.
    Remove(ObjectKey),
    /// Everything that is declared was told once: what names are kept for and was not is declared no more.
    DeclarationsComplete,
    /// A server offers nothing any more, and why.
    Withdraw(ObjectKey, Problem),
    /// A server offers this now, whatever it offered before.
    Publish(Arc<Section>),
    /// Every server that was declared at the start was attached or failed once.
    Settle,
}

impl Generation {
    /// The first generation: nothing, and the names that are kept. In the home namespace names carry no namespace.
    pub fn new(home: Option<Arc<str>>, kept: ReservedNames, now: Instant) -> Self {
        Self {
            number: 0,
            created_at: now,
            sections: OrdMap::new(),
            everything: View::everything(home),
            namespaces: OrdMap::new(),
            cleanup_threshold: MIN_NAMESPACES_BEFORE_CLEANUP,
            conflicts: OrdMap::new(),
            declared: DeclaredServers::default(),
            reserved_names: kept,
            name_waiters: OrdMap::new(),
        }
    }

    /// The generation after some steps, made now. Costs what the steps' servers have, not what others have.
    ///
    /// Of servers that are published in the same step the one that was created first gets names first. The number
    /// grows if agents may see a change.
    #[must_use]
    pub fn with_updates(&self, steps: impl IntoIterator<Item = CatalogUpdate>, now: Instant) -> Self {
        let mut next = self.clone();
        next.number += 1;
        next.created_at = now;
        let (mut seen, mut published) = (next.expire_reserved_names(), BTreeMap::new());
        let mut settled = false;
        for step in steps {
            seen |= matches!(
                step,
                CatalogUpdate::Publish(_) | CatalogUpdate::Withdraw(..) | CatalogUpdate::Settle
            );
            match step {
                CatalogUpdate::Declare(key, declaration) => {
                    next.declared.insert(&key, declaration);
                    next.reserved_names.reserve_all(&key, ReservedUntil::Removed);
                    next.refresh_waiter_conflicts(&key);
                }
                CatalogUpdate::Remove(key) => next.remove(&key),
                CatalogUpdate::DeclarationsComplete => next.remove_undeclared(),
                CatalogUpdate::Withdraw(key, problem) => next.withdraw(&key, &problem),
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
        if !seen {
            next.number = self.number;
        }
        next
    }

    /// Tells when the next name is free that was kept.
    pub fn next_expiry_at(&self) -> Option<Instant> {
        self.reserved_names.next_expiry_at()
    }

    /// Lists the names that are a server's, listed or kept, each with how long it is kept once it is not listed.
    pub fn names_of(&self, key: &ObjectKey) -> Vec<(ReservedName, ReservedUntil)> {
        let mut names: Vec<_> = self.reserved_names.names_of(key).collect();
        if let Some(section) = self.sections.get(key) {
            for view in [ViewName::All, ViewName::Namespace(key.namespace.clone())] {
                let listed = self.view(&view).names_of(section).into_iter();
                names.extend(listed.map(|own| (own, ReservedUntil::Removed)));
            }
        }
        names
    }

    /// Counts generations, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What agents see at a path; nothing in a namespace that has nothing.
    pub fn view(&self, name: &ViewName) -> &View {
        static NOTHING: LazyLock<View> = LazyLock::new(|| View::namespace("".into()));
        match name {
            ViewName::All => &self.everything,
            ViewName::Namespace(namespace) => self.namespaces.get(namespace).unwrap_or(&NOTHING),
        }
    }

    /// What a server offers.
    pub fn section(&self, key: &ObjectKey) -> Option<&Arc<Section>> {
        self.sections.get(key)
    }

    /// All servers with what they offer, in the order of their keys.
    pub fn sections(&self) -> impl Iterator<Item = &Arc<Section>> {
        self.sections.values()
    }

    /// The items of a server that have another name than they would have alone.
    pub fn conflicts(&self, key: &ObjectKey) -> &[NameConflict] {
        self.conflicts.get(key).map_or(&[], |conflicts| conflicts)
    }

    /// All servers with such items.
    pub fn all_conflicts(&self) -> &OrdMap<ObjectKey, Arc<[NameConflict]>> {
        &self.conflicts
    }

    fn publish(&mut self, section: &Arc<Section>) {
        let before = self.sections.insert(section.key.clone(), section.clone());
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, section)) {
            return;
        }
        if before.is_none() && self.namespaces.len() >= self.cleanup_threshold {
            self.remove_stale_namespaces();
        }
        let dropped = Problem::new(Reason::Removed, format!("server {} no longer offers it", section.key));
        let same_names = before.as_ref().is_some_and(|before| before.prefix == section.prefix);
        for list in ListKind::ALL {
            let offered = section.lists.items(list).iter();
            let routes: BTreeMap<&str, Arc<Route>> =
                offered.map(|item| (&**item.name(), Arc::new(Route::new(section, item)))).collect();
            let until = match &before {
                Some(before) if before.prefix != section.prefix => {
                    ReservedUntil::Released(self.created_at + RESERVATION_PERIOD)
                }
                _ => self.reserve_until(&section.key),
            };
            self.update_tables(&section.key, list, until, |table, change| {
                let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
                let mut known = BTreeSet::new();
                if let Some(before) = &before {
                    for item in before.lists.items(list) {
                        let stays = routes.contains_key(&**item.name());
                        if same_names && stays {
                            known.insert(&**item.name());
                        } else if let Some(name) = table.remove(before, item.name(), &dropped, change)
                            && stays
                        {
                            renamed.insert(item.name(), name);
                        }
                    }
                }
                for route in routes.values() {
                    let name = table.insert(route, known.contains(route.name()), change);
                    if let Some(before) = renamed.get(route.name()) {
                        table.record_rename(before, &section.key, &name);
                    }
                }
            });
        }
    }

    /// Offers again what a server lists: a name that it waits for may be free.
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

    /// Tells how long a name of a server is kept that it lists no more.
    fn reserve_until(&self, key: &ObjectKey) -> ReservedUntil {
        if self.declared.contains(key) {
            ReservedUntil::Removed
        } else {
            ReservedUntil::Time(self.created_at + RESERVATION_PERIOD)
        }
    }

    fn remove_undeclared(&mut self) {
        let gone = |key: &&ObjectKey| !self.declared.contains(key);
        for key in self.reserved_names.servers().filter(gone).cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Gives names that are kept no longer to those who wait for them. True if there are any.
    fn expire_reserved_names(&mut self) -> bool {
        let over = self.reserved_names.remove_expired(self.created_at);
        let mut again = BTreeSet::new();
        for name in over {
            let waiting = self.name_waiters.get(&name).into_iter().flatten();
            again.extend(waiting.map(|key| self.declared.rank(key)));
        }
        for (_, key) in &again {
            self.relist(key);
        }
        !again.is_empty()
    }

    /// Finds the conflicts of those again that wait for a name that is kept for this server.
    fn refresh_waiter_conflicts(&mut self, key: &ObjectKey) {
        if self.name_waiters.is_empty() {
            return;
        }
        let waiting = |(own, _): (ReservedName, ReservedUntil)| {
            self.name_waiters.get(&own.name).into_iter().flatten().cloned()
        };
        let touched: BTreeSet<_> = self.reserved_names.names_of(key).flat_map(waiting).collect();
        self.update_conflicts(touched);
    }

    /// Lets go of the namespaces that are long gone. Looks through all, but only once they are twice as many as the
    /// last time left.
    fn remove_stale_namespaces(&mut self) {
        let gone = |view: &View| {
            let over =
                |at: Instant| self.created_at.saturating_duration_since(at) > REMOVED_NAMESPACE_RETENTION;
            ListKind::ALL
                .into_iter()
                .all(|list| view.table(list).is_empty() && view.table(list).changed_at().is_none_or(over))
        };
        let gone: Vec<_> =
            self.namespaces.iter().filter(|(_, view)| gone(view)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.namespaces.remove(&name);
        }
        self.cleanup_threshold = MIN_NAMESPACES_BEFORE_CLEANUP.max(2 * self.namespaces.len());
    }

    /// Changes a list in both views that a server is in, and looks again at the names of every server that this
    /// touched.
    fn update_tables(
        &mut self,
        key: &ObjectKey,
        list: ListKind,
        until: ReservedUntil,
        work: impl Fn(&mut Table, &mut ServerChange<'_>),
    ) {
        let awaited = self.pending_claimant(key);
        let mut change = ServerChange {
            reserved: &mut self.reserved_names,
            waiters: &mut self.name_waiters,
            reserve_until: until,
            pending_claimant: awaited.as_ref(),
            affected_servers: BTreeSet::new(),
            list_changed: false,
        };
        if self.conflicts.contains_key(key) {
            change.affected_servers.insert(key.clone());
        }
        let own = || View::namespace(key.namespace.clone());
        let namespace = self.namespaces.entry(key.namespace.clone()).or_insert_with(own);
        for view in [&mut self.everything, namespace] {
            change.list_changed = false;
            let table = view.table_mut(list);
            work(table, &mut change);
            if change.list_changed {
                table.mark_changed(self.number, self.created_at);
            }
        }
        let touched = change.affected_servers;
        self.update_conflicts(touched);
    }

    /// Finds a server that may want the names of this one as soon as it is attached for the first time.
    fn pending_claimant(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let prefix = &self.sections.get(key)?.prefix;
        let known =
            |key: &ObjectKey| self.sections.contains_key(key) || self.reserved_names.contains_server(key);
        self.declared.pending_claimant(key, prefix, known)
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
        let awaited = self.pending_claimant(server);
        [ViewName::All, ViewName::Namespace(server.namespace.clone())]
            .iter()
            .flat_map(|name| self.view(name).conflicts(section, &self.reserved_names, awaited.as_ref()))
            .collect()
    }
}
