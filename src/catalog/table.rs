//! One list in one view: the items by name, and the names that were removed.

use std::sync::Arc;

use imbl::OrdMap;
use tokio::time::Instant;

use super::change::ServerChange;
use super::conflict::{NameConflict, NameHolderState};
use super::list_page::{FirstPages, InvalidCursor, ListPage, PagePosition, build_page};
use super::names::{ItemId, NameId, NameScheme};
use super::reserved_names::{ReservedName, ReservedNames};
use super::route::Route;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Item, Section, ViewName};
use crate::wire::{Era, ListKind};

/// The most removed names that stay recorded.
const MAX_REMOVED_NAMES: usize = 4_096;
/// The most hash suffixes that are tried to find the one that an item has. It is the first unless two items have the
/// same.
const MAX_HASH_SUFFIX_ATTEMPTS: u32 = 64;

/// One list in one view. Cheap to clone: generations share unchanged parts.
#[derive(Clone, Debug)]
pub struct Table {
    list: ListKind,
    view: ViewName,
    /// The namespace outside of which names carry the namespace before the prefix; `None` if no name does.
    qualify_outside: Option<HomeNamespace>,
    /// The listed items by name, bare or hash-suffixed.
    names: OrdMap<Arc<str>, Arc<Route>>,
    /// Every item by its hash-suffixed name, whether it is listed under that name or not.
    suffixed: OrdMap<Arc<str>, Arc<Route>>,
    removed: OrdMap<Arc<str>, (u64, RemovedName)>,
    removed_by_age: OrdMap<u64, Arc<str>>,
    version: u64,
    changed_at: Option<Instant>,
    /// The first page for agents of each era, built at the first request: it is the same for all of them.
    first_pages: Arc<FirstPages>,
}

/// The namespace whose names carry no namespace; `None` if there is no such namespace.
pub(super) type HomeNamespace = Option<Arc<str>>;

/// The former target of a removed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedName {
    /// The server that the name routed to.
    pub server: ObjectKey,
    /// The reason of the removal.
    pub problem: Problem,
}

impl Table {
    /// Creates an empty table.
    pub(super) fn new(list: ListKind, view: ViewName, qualified: Option<HomeNamespace>) -> Self {
        Self {
            list,
            view,
            qualify_outside: qualified,
            names: OrdMap::new(),
            suffixed: OrdMap::new(),
            removed: OrdMap::new(),
            removed_by_age: OrdMap::new(),
            version: 0,
            changed_at: None,
            first_pages: Arc::default(),
        }
    }

    /// Returns the route of a name. An item that is listed under its bare name is routed under its hash-suffixed name
    /// too.
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.names.get(name).or_else(|| self.suffixed.get(name))
    }

    /// Returns the former target of a name that routes to nothing now.
    pub fn removed(&self, name: &str) -> Option<&RemovedName> {
        self.removed.get(name).map(|(_, removed)| removed)
    }

    /// Returns the number of the generation in which the list last changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns when the list last changed; `None` if it never did.
    pub fn changed_at(&self) -> Option<Instant> {
        self.changed_at
    }

    pub(super) fn mark_changed(&mut self, version: u64, now: Instant) {
        self.version = version;
        self.changed_at = Some(now);
        self.first_pages = Arc::default();
    }

    /// Returns all listed names with their routes, ordered by name.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> + Clone {
        self.names.iter().map(|(name, route)| (&**name, route))
    }

    /// Returns all items by their hash-suffixed names.
    pub(super) fn suffixed(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        self.suffixed.iter().map(|(name, route)| (&**name, route))
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns true if there are no items.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns the page from the beginning or from a cursor, for an agent of an era.
    ///
    /// # Errors
    ///
    /// Fails if no list returns such a cursor.
    pub fn page(&self, cursor: Option<&str>, era: Era) -> Result<ListPage, InvalidCursor> {
        let Some(cursor) = cursor else {
            return Ok(self.first_pages.get_or_build(era, || self.page_after(None, era)));
        };
        Ok(self.page_after(Some(&PagePosition::from_cursor(cursor)?), era))
    }

    /// Builds the page that begins after a position.
    pub(super) fn page_after(&self, position: Option<&PagePosition>, era: Era) -> ListPage {
        build_page(self.routes(), position, era)
    }

    /// Returns the items of a server that are hash-suffixed because of another server. `pending_claimant` is a server
    /// whose first attach had to be waited for.
    pub(super) fn conflicts(
        &self,
        section: &Section,
        reserved: &ReservedNames,
        pending_claimant: Option<&ObjectKey>,
    ) -> Vec<NameConflict> {
        let conflict = |item: &Item| {
            let item_id = ItemId { server: &section.key, name: item.name() };
            let bare_name = self.scheme(section).bare_name(item.name())?;
            let holder = self.names.get(&*bare_name);
            let (holder, holder_state) = if let Some(holder) = holder {
                if holder.item_id() == item_id {
                    return None;
                }
                (&holder.section().key, NameHolderState::Current)
            } else if let Some(owner) = reserved.get(NameId::new(&self.view, self.list, &bare_name), item_id)
            {
                (
                    owner.server,
                    if owner.declared { NameHolderState::Current } else { NameHolderState::Former },
                )
            } else {
                (pending_claimant?, NameHolderState::Prospective)
            };
            Some(NameConflict {
                view: self.view.clone(),
                list: self.list,
                name: item.name().to_string(),
                holder: holder.clone(),
                holder_state,
                bare_name: bare_name.into_owned(),
                assigned_name: self.suffixed_name_of(section, item_id)?,
            })
        };
        section.lists.items(self.list).iter().filter_map(conflict).collect()
    }

    /// Returns the names under which a server's items are listed.
    pub(super) fn names_of(&self, section: &Section) -> impl Iterator<Item = ReservedName> {
        section.lists.items(self.list).iter().filter_map(move |item| {
            let item_id = ItemId { server: &section.key, name: item.name() };
            let name = self.listed_name(section, item_id)?;
            Some(ReservedName {
                name: NameId::new(&self.view, self.list, &name),
                item_digest: item_id.item_digest(),
            })
        })
    }

    /// Inserts an item, replacing its previous entry, and returns its name. `is_update` is true if this server listed
    /// the item before with the same prefix.
    ///
    /// The name is the bare one if it is free: no item has it, it is not reserved for another item, and no other
    /// server's first attach has to be waited for. Otherwise it is the hash-suffixed one.
    pub(super) fn insert(
        &mut self,
        route: &Arc<Route>,
        is_update: bool,
        change: &mut ServerChange<'_>,
    ) -> Arc<str> {
        let (section, item_id) = (route.section(), route.item_id());
        let suffixed = self.insert_suffixed(route, is_update, change.reserved);
        let mut name = suffixed.clone();
        if let Some(bare) = self.scheme(section).bare_name(item_id.name) {
            let is_free = self.is_free(&bare, item_id, change);
            if !is_free || (is_update && !change.waiters.is_empty()) {
                let id = NameId::new(&self.view, self.list, &bare);
                if is_free {
                    change.remove_waiter(id, item_id.server);
                } else {
                    change.add_waiter(id, item_id.server);
                }
            }
            if is_free {
                name = bare.into();
                if self.names.get(&*suffixed).is_some_and(|entry| entry.item_id() == item_id) {
                    self.unlist(&suffixed, item_id, &renamed_problem(&name), change);
                }
            }
        }
        if let Some(entry) = self.names.get_mut(&*name) {
            change.list_changed |= !entry.has_same_json(route);
            *entry = route.clone();
        } else {
            change.list_changed = true;
            self.forget_removed(&name);
            self.names.insert(name.clone(), route.clone());
            if !change.reserved.is_empty() || !change.waiters.is_empty() {
                let id = NameId::new(&self.view, self.list, &name);
                change.reserved.release(id);
                change.mark_waiters_affected(id);
            }
        }
        name
    }

    /// Removes an item, reserves its name for it, and returns the name.
    pub(super) fn remove(
        &mut self,
        section: &Section,
        item: &str,
        problem: &Problem,
        change: &mut ServerChange<'_>,
    ) -> Option<String> {
        let item_id = ItemId { server: &section.key, name: item };
        let name = self.listed_name(section, item_id)?;
        if let Some(bare) = self.scheme(section).bare_name(item).filter(|bare| **bare != *name) {
            change.remove_waiter(NameId::new(&self.view, self.list, &bare), item_id.server);
        }
        if let Some(suffixed) = self.suffixed_name_of(section, item_id) {
            self.suffixed.remove(&*suffixed);
        }
        self.unlist(&name, item_id, problem, change);
        Some(name)
    }

    /// Records for a released name which name replaced it.
    pub(super) fn record_rename(&mut self, previous: &str, server: &ObjectKey, name: &str) {
        if previous != name && self.route(previous).is_none() {
            self.record_removed(previous, server, &renamed_problem(name));
        }
    }

    fn unlist(&mut self, name: &str, item_id: ItemId<'_>, problem: &Problem, change: &mut ServerChange<'_>) {
        self.names.remove(name);
        change.list_changed = true;
        let id = NameId::new(&self.view, self.list, name);
        change.reserved.reserve(
            item_id.server,
            ReservedName { name: id, item_digest: item_id.item_digest() },
            change.reserve_until,
        );
        change.mark_waiters_affected(id);
        self.record_removed(name, item_id.server, problem);
    }

    fn is_free(&self, bare: &str, item_id: ItemId<'_>, change: &ServerChange<'_>) -> bool {
        if let Some(holder) = self.names.get(bare) {
            return holder.item_id() == item_id;
        }
        let must_wait =
            change.pending_claimant.is_some() && matches!(self.list, ListKind::Tools | ListKind::Prompts);
        if change.reserved.is_empty() {
            return !must_wait;
        }
        let owner = change.reserved.get(NameId::new(&self.view, self.list, bare), item_id);
        owner.map_or(!must_wait, |owner| owner.is_same_item)
    }

    /// Inserts an item under its hash-suffixed name, and returns the name.
    fn insert_suffixed(&mut self, route: &Arc<Route>, is_update: bool, reserved: &ReservedNames) -> Arc<str> {
        let (section, item_id) = (route.section(), route.item_id());
        let current = if is_update { self.suffixed_name_of(section, item_id) } else { None };
        let is_free = |name: &str| {
            let owner = || reserved.get(NameId::new(&self.view, self.list, name), item_id);
            !self.suffixed.contains_key(name)
                && (reserved.is_empty() || owner().is_none_or(|owner| owner.is_same_item))
        };
        let mut number = 0;
        let name: Arc<str> = current.map_or_else(
            || loop {
                let name = self.scheme(section).suffixed_name(item_id.name, route.hash_suffix(number));
                if is_free(&name) {
                    return name.into();
                }
                number += 1;
            },
            Into::into,
        );
        self.suffixed.insert(name.clone(), route.clone());
        name
    }

    /// Returns the name under which an item is listed.
    fn listed_name(&self, section: &Section, item_id: ItemId<'_>) -> Option<String> {
        let bare = self.scheme(section).bare_name(item_id.name);
        let is_own = |name: &&str| self.names.get(*name).is_some_and(|route| route.item_id() == item_id);
        bare.as_deref()
            .filter(is_own)
            .map(ToOwned::to_owned)
            .or_else(|| self.suffixed_name_of(section, item_id).filter(|name| is_own(&&**name)))
    }

    /// Returns the hash-suffixed name that an item has.
    fn suffixed_name_of(&self, section: &Section, item_id: ItemId<'_>) -> Option<String> {
        let suffixes = (0..MAX_HASH_SUFFIX_ATTEMPTS).map(|number| item_id.hash_suffix(number));
        let mut names = suffixes.map(|suffix| self.scheme(section).suffixed_name(item_id.name, suffix));
        names.find(|name| self.suffixed.get(&**name).is_some_and(|route| route.item_id() == item_id))
    }

    fn scheme<'a>(&self, section: &'a Section) -> NameScheme<'a> {
        self.scheme_of(&section.key.namespace, &section.prefix)
    }

    /// Returns the rules for the names of a server with this namespace and prefix.
    pub(super) fn scheme_of<'a>(&self, namespace: &'a Arc<str>, prefix: &'a str) -> NameScheme<'a> {
        NameScheme {
            list: self.list,
            namespace: match &self.qualify_outside {
                Some(home) if home.as_ref() != Some(namespace) => Some(namespace),
                _ => None,
            },
            prefix,
        }
    }

    fn record_removed(&mut self, name: &str, server: &ObjectKey, problem: &Problem) {
        let name: Arc<str> = name.into();
        self.forget_removed(&name);
        let age = self.removed_by_age.get_max().map_or(0, |(age, _)| age + 1);
        let removed = RemovedName { server: server.clone(), problem: problem.clone() };
        self.removed.insert(name.clone(), (age, removed));
        self.removed_by_age.insert(age, name);
        if self.removed.len() > MAX_REMOVED_NAMES
            && let Some((_, oldest)) = self.removed_by_age.get_min().cloned()
        {
            self.forget_removed(&oldest);
        }
    }

    fn forget_removed(&mut self, name: &str) {
        if let Some((age, _)) = self.removed.remove(name) {
            self.removed_by_age.remove(&age);
        }
    }
}

fn renamed_problem(name: &str) -> Problem {
    Problem::new(Reason::Removed, format!("it was renamed to {name:?}"))
}
