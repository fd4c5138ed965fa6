use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imbl::OrdMap;
use tokio::time::Instant;

use super::change::{ServerChange, Waiting};
use super::conflict::NameConflict;
use super::declared::{CatalogDeclaration, DeclaredServers};
use super::reserved_names::{KEPT_FOR, ReservedName, ReservedNames, ReservedUntil};
use super::{Route, Table, View};
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Section, ViewName};
use crate::wire::ListKind;

#[cfg(test)]
mod tests;

/// So long it is remembered what a namespace had that has nothing any more.
const REMEMBERED: Duration = Duration::from_hours(1);
/// So many namespaces are never looked through.
const FEW: usize = 64;

/// All that agents may see at one moment. Immutable: a change makes the next one, which shares the rest.
#[derive(Clone, Debug)]
pub struct Generation {
    number: u64,
    made_at: Instant,
    sections: OrdMap<ObjectKey, Arc<Section>>,
    everything: View,
    namespaces: OrdMap<Arc<str>, View>,
    /// As many namespaces as this are looked through for those that are long gone.
    many: usize,
    conflicts: OrdMap<ObjectKey, Arc<[NameConflict]>>,
    declared: DeclaredServers,
    kept: ReservedNames,
    waiting: Waiting,
}

/// One step from a generation to the next.
#[derive(Clone, Debug)]
pub enum CatalogUpdate {
    /// A server is declared: names are kept for it whether it is attached or not.
    Declare(ObjectKey, CatalogDeclaration),
    /// A server is declared no more: its names are kept for an hour.
    Remove(ObjectKey),
    /// Everything that is declared was told once: what names are kept for and was not is declared no more.
    Complete,
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
            made_at: now,
            sections: OrdMap::new(),
            everything: View::everything(home),
            namespaces: OrdMap::new(),
            many: FEW,
            conflicts: OrdMap::new(),
            declared: DeclaredServers::default(),
            kept,
            waiting: OrdMap::new(),
        }
    }

    /// The generation after some steps, made now. Costs what the steps' servers have, not what others have.
    ///
    /// Of servers that are published in the same step the one that was created first gets names first. The number
    /// grows if agents may see a change.
    #[must_use]
    pub fn after(&self, steps: impl IntoIterator<Item = CatalogUpdate>, now: Instant) -> Self {
        let mut next = self.clone();
        next.number += 1;
        next.made_at = now;
        let (mut seen, mut published) = (next.expire(), BTreeMap::new());
        let mut settled = false;
        for step in steps {
            seen |= matches!(
                step,
                CatalogUpdate::Publish(_) | CatalogUpdate::Withdraw(..) | CatalogUpdate::Settle
            );
            match step {
                CatalogUpdate::Declare(key, declaration) => {
                    next.declared.insert(&key, declaration);
                    next.kept.keep_all(&key, ReservedUntil::Removed);
                    next.touch_waiting(&key);
                }
                CatalogUpdate::Remove(key) => next.remove(&key),
                CatalogUpdate::Complete => next.complete(),
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
                next.offer_again(key);
            }
        }
        if !seen {
            next.number = self.number;
        }
        next
    }

    /// Tells when the next name is free that was kept.
    pub fn due(&self) -> Option<Instant> {
        self.kept.due()
    }

    /// Lists the names that are a server's, listed or kept, each with how long it is kept once it is not listed.
    pub fn names_of(&self, key: &ObjectKey) -> Vec<(ReservedName, ReservedUntil)> {
        let mut names: Vec<_> = self.kept.of(key).collect();
        if let Some(section) = self.sections.get(key) {
            for view in [ViewName::Everything, ViewName::Namespace(key.namespace.clone())] {
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
            ViewName::Everything => &self.everything,
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
    pub fn conflicting(&self) -> &OrdMap<ObjectKey, Arc<[NameConflict]>> {
        &self.conflicts
    }

    fn publish(&mut self, section: &Arc<Section>) {
        let before = self.sections.insert(section.key.clone(), section.clone());
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, section)) {
            return;
        }
        if before.is_none() && self.namespaces.len() >= self.many {
            self.forget_namespaces();
        }
        let dropped = Problem::new(Reason::Removed, format!("server {} no longer offers it", section.key));
        let same_names = before.as_ref().is_some_and(|before| before.prefix == section.prefix);
        for list in ListKind::ALL {
            let offered = section.lists.of(list).iter();
            let routes: BTreeMap<&str, Arc<Route>> =
                offered.map(|item| (&**item.name(), Arc::new(Route::new(section, item)))).collect();
            let until = match &before {
                Some(before) if before.prefix != section.prefix => {
                    ReservedUntil::GivenUp(self.made_at + KEPT_FOR)
                }
                _ => self.until(&section.key),
            };
            self.change(&section.key, list, until, |table, change| {
                let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
                let mut known = BTreeSet::new();
                if let Some(before) = &before {
                    for item in before.lists.of(list) {
                        let stays = routes.contains_key(&**item.name());
                        if same_names && stays {
                            known.insert(&**item.name());
                        } else if let Some(name) = table.release(before, item.name(), &dropped, change)
                            && stays
                        {
                            renamed.insert(item.name(), name);
                        }
                    }
                }
                for route in routes.values() {
                    let name = table.offer(route, known.contains(route.name()), change);
                    if let Some(before) = renamed.get(route.name()) {
                        table.rename(before, &section.key, &name);
                    }
                }
            });
        }
    }

    /// Offers again what a server lists: a name that it waits for may be free.
    fn offer_again(&mut self, key: &ObjectKey) {
        let Some(section) = self.sections.get(key).cloned() else { return };
        for list in ListKind::ALL {
            let items = section.lists.of(list).iter();
            let routes: Vec<_> = items.map(|item| Arc::new(Route::new(&section, item))).collect();
            self.change(key, list, self.until(key), |table, change| {
                for route in &routes {
                    table.offer(route, true, change);
                }
            });
        }
    }

    fn withdraw(&mut self, key: &ObjectKey, problem: &Problem) {
        let Some(section) = self.sections.remove(key) else {
            return;
        };
        for list in ListKind::ALL {
            self.change(key, list, self.until(key), |table, change| {
                for item in section.lists.of(list) {
                    table.release(&section, item.name(), problem, change);
                }
            });
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.declared.remove(key);
        self.kept.keep_all(key, self.until(key));
        self.touch_waiting(key);
    }

    /// Tells how long a name of a server is kept that it lists no more.
    fn until(&self, key: &ObjectKey) -> ReservedUntil {
        if self.declared.contains(key) {
            ReservedUntil::Removed
        } else {
            ReservedUntil::Time(self.made_at + KEPT_FOR)
        }
    }

    fn complete(&mut self) {
        let gone = |key: &&ObjectKey| !self.declared.contains(key);
        for key in self.kept.servers().filter(gone).cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Gives names that are kept no longer to those who wait for them. True if there are any.
    fn expire(&mut self) -> bool {
        let over = self.kept.expire(self.made_at);
        let mut again = BTreeSet::new();
        for name in over {
            let waiting = self.waiting.get(&name).into_iter().flatten();
            again.extend(waiting.map(|key| self.declared.rank(key)));
        }
        for (_, key) in &again {
            self.offer_again(key);
        }
        !again.is_empty()
    }

    /// Finds the conflicts of those again that wait for a name that is kept for this server.
    fn touch_waiting(&mut self, key: &ObjectKey) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting = |(own, _): (ReservedName, ReservedUntil)| {
            self.waiting.get(&own.name).into_iter().flatten().cloned()
        };
        let touched: BTreeSet<_> = self.kept.of(key).flat_map(waiting).collect();
        self.find_conflicts(touched);
    }

    /// Lets go of the namespaces that are long gone. Looks through all, but only once they are twice as many as the
    /// last time left.
    fn forget_namespaces(&mut self) {
        let gone = |view: &View| {
            let over = |at: Instant| self.made_at.saturating_duration_since(at) > REMEMBERED;
            ListKind::ALL
                .into_iter()
                .all(|list| view.of(list).is_empty() && view.of(list).changed_at().is_none_or(over))
        };
        let gone: Vec<_> =
            self.namespaces.iter().filter(|(_, view)| gone(view)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.namespaces.remove(&name);
        }
        self.many = FEW.max(2 * self.namespaces.len());
    }

    /// Changes a list in both views that a server is in, and looks again at the names of every server that this
    /// touched.
    fn change(
        &mut self,
        key: &ObjectKey,
        list: ListKind,
        until: ReservedUntil,
        work: impl Fn(&mut Table, &mut ServerChange<'_>),
    ) {
        let awaited = self.awaited(key);
        let mut change = ServerChange {
            kept: &mut self.kept,
            waiting: &mut self.waiting,
            until,
            awaited: awaited.as_ref(),
            touched: BTreeSet::new(),
            listed: false,
        };
        if self.conflicts.contains_key(key) {
            change.touched.insert(key.clone());
        }
        let own = || View::namespace(key.namespace.clone());
        let namespace = self.namespaces.entry(key.namespace.clone()).or_insert_with(own);
        for view in [&mut self.everything, namespace] {
            change.listed = false;
            let table = view.of_mut(list);
            work(table, &mut change);
            if change.listed {
                table.changed(self.number, self.made_at);
            }
        }
        let touched = change.touched;
        self.find_conflicts(touched);
    }

    /// Finds a server that may want the names of this one as soon as it is attached for the first time.
    fn awaited(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let prefix = &self.sections.get(key)?.prefix;
        let known = |key: &ObjectKey| self.sections.contains_key(key) || self.kept.knows(key);
        self.declared.awaited(key, prefix, known)
    }

    fn find_conflicts(&mut self, servers: BTreeSet<ObjectKey>) {
        for server in servers {
            let conflicts: Arc<[NameConflict]> = self.conflicts_of(&server).into();
            if conflicts.is_empty() {
                self.conflicts.remove(&server);
            } else {
                self.conflicts.insert(server, conflicts);
            }
        }
    }

    fn conflicts_of(&self, server: &ObjectKey) -> Vec<NameConflict> {
        let Some(section) = self.sections.get(server) else {
            return Vec::new();
        };
        let awaited = self.awaited(server);
        [ViewName::Everything, ViewName::Namespace(server.namespace.clone())]
            .iter()
            .flat_map(|name| self.view(name).conflicts(section, &self.kept, awaited.as_ref()))
            .collect()
    }
}
