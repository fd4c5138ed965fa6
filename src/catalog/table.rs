//! One list in one view: which item has which name, and what was there before.

use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use imbl::OrdMap;
use tokio::time::Instant;

use super::change::ServerChange;
use super::conflict::{NameConflict, NameHolderState};
use super::names::{ItemId, NameId, NameScheme};
use super::reserved_names::{ReservedName, ReservedNames};
use super::route::Route;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Item, Section, ViewName};
use crate::wire::ListKind;

/// A list ends here and gives a cursor: generous, since some agents never ask for more.
const PAGE_ITEMS: usize = 1_000;
const PAGE_BYTES: usize = 1 << 20;
/// So many names are remembered after they went.
const MAX_REMOVED_NAMES: usize = 4_096;
/// So many tails are tried to find the one that an item has. It is the first unless two items have the same.
const MAX_HASH_SUFFIX_ATTEMPTS: u32 = 64;

/// One list as agents see it at one path. Cheap to clone: generations share what did not change.
#[derive(Clone, Debug)]
pub struct Table {
    list: ListKind,
    view: ViewName,
    /// Where the namespace stands before the prefix: everywhere but in the home namespace.
    qualify_outside: Option<HomeNamespace>,
    /// What is listed, bare names and those with a tail.
    names: OrdMap<Arc<str>, Arc<Route>>,
    /// Every item under its name with a tail, listed or not.
    suffixed: OrdMap<Arc<str>, Arc<Route>>,
    removed: OrdMap<Arc<str>, (u64, RemovedName)>,
    removed_by_age: OrdMap<u64, Arc<str>>,
    version: u64,
    changed_at: Option<Instant>,
    /// How the list begins, once somebody asked: all agents ask for the same.
    first_page: Arc<OnceLock<ListPage>>,
}

/// The namespace whose names carry no namespace; `None` if there is none.
pub(super) type HomeNamespace = Option<Arc<str>>;

/// What a name was before it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedName {
    /// The server that it led to.
    pub server: ObjectKey,
    /// Why it went.
    pub problem: Problem,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    /// The JSON array.
    pub items: Bytes,
    /// Where the next part begins, if there is one.
    pub cursor: Option<String>,
}

/// A cursor that was not given by a list.
#[derive(Debug, thiserror::Error)]
#[error("the cursor is not one that was given")]
pub struct InvalidCursor;

impl Table {
    /// An empty one.
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
            first_page: Arc::default(),
        }
    }

    /// Where a request goes. An item that is listed under its bare name can be reached by the name with a tail too.
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.names.get(name).or_else(|| self.suffixed.get(name))
    }

    /// What a name led to that leads nowhere now.
    pub fn removed(&self, name: &str) -> Option<&RemovedName> {
        self.removed.get(name).map(|(_, gone)| gone)
    }

    /// The number of the generation in which the list last changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When that was; `None` if there never was one.
    pub fn changed_at(&self) -> Option<Instant> {
        self.changed_at
    }

    pub(super) fn mark_changed(&mut self, version: u64, now: Instant) {
        self.version = version;
        self.changed_at = Some(now);
        self.first_page = Arc::default();
    }

    /// All names with where they lead, in their order.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        self.names.iter().map(|(name, route)| (&**name, route))
    }

    /// Lists all items under their names with a tail.
    pub(super) fn suffixed(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        self.suffixed.iter().map(|(name, route)| (&**name, route))
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The list from the beginning or from a cursor, in the order of the names.
    pub fn page(&self, cursor: Option<&str>) -> Result<ListPage, InvalidCursor> {
        let Some(cursor) = cursor else {
            return Ok(self.first_page.get_or_init(|| self.page_after(None)).clone());
        };
        let name = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| InvalidCursor)?;
        let name = String::from_utf8(name).map_err(|_| InvalidCursor)?;
        Ok(self.page_after(Some(&name)))
    }

    /// The list from behind a name on, put together anew.
    pub(super) fn page_after(&self, name: Option<&str>) -> ListPage {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let mut items = String::from("[");
        let mut last: Option<&str> = None;
        for (count, (name, route)) in self.names.range::<_, str>((start, Bound::Unbounded)).enumerate() {
            if let Some(last) = last {
                if count >= PAGE_ITEMS || items.len() >= PAGE_BYTES {
                    items.push(']');
                    return ListPage { items: items.into(), cursor: Some(URL_SAFE_NO_PAD.encode(last)) };
                }
                items.push(',');
            }
            route.push_json_as(name, &mut items);
            last = Some(name);
        }
        items.push(']');
        ListPage { items: items.into(), cursor: None }
    }

    /// Lists the items of a server that have a tail because of another server. `awaited` is the one that had to be waited for.
    pub(super) fn conflicts(
        &self,
        section: &Section,
        kept: &ReservedNames,
        awaited: Option<&ObjectKey>,
    ) -> Vec<NameConflict> {
        let conflict = |item: &Item| {
            let identity = ItemId { server: &section.key, name: item.name() };
            let wanted = self.scheme(section).bare_name(item.name())?;
            let holder = self.names.get(&*wanted);
            let (holder, holding) = if let Some(holder) = holder {
                if holder.item_id() == identity {
                    return None;
                }
                (&holder.section().key, NameHolderState::Current)
            } else if let Some(kept) = kept.get(NameId::new(&self.view, self.list, &wanted), identity) {
                (kept.server, if kept.declared { NameHolderState::Current } else { NameHolderState::Former })
            } else {
                (awaited?, NameHolderState::Prospective)
            };
            Some(NameConflict {
                view: self.view.clone(),
                list: self.list,
                name: item.name().to_string(),
                holder: holder.clone(),
                holder_state: holding,
                bare_name: wanted.into_owned(),
                assigned_name: self.suffixed_name_of(section, identity)?,
            })
        };
        section.lists.items(self.list).iter().filter_map(conflict).collect()
    }

    /// Gives the names under which a server's items are listed.
    pub(super) fn names_of(&self, section: &Section) -> impl Iterator<Item = ReservedName> {
        section.lists.items(self.list).iter().filter_map(move |item| {
            let identity = ItemId { server: &section.key, name: item.name() };
            let name = self.listed_name(section, identity)?;
            Some(ReservedName {
                name: NameId::new(&self.view, self.list, &name),
                item_digest: identity.item_digest(),
            })
        })
    }

    /// Lists an item, in the place of what was listed of it before; gives its name. `before` says that this server
    /// offered it before by the same prefix.
    ///
    /// The name is the bare one if it is free: nobody has it, it is kept for nobody else, and no other server has to
    /// be waited for. Else it is the one with a tail.
    pub(super) fn insert(
        &mut self,
        route: &Arc<Route>,
        before: bool,
        change: &mut ServerChange<'_>,
    ) -> Arc<str> {
        let (section, identity) = (route.section(), route.item_id());
        let tailed = self.insert_suffixed(route, before, change.reserved);
        let mut name = tailed.clone();
        if let Some(bare) = self.scheme(section).bare_name(identity.name) {
            let free = self.is_free(&bare, identity, change);
            if !free || (before && !change.waiters.is_empty()) {
                let id = NameId::new(&self.view, self.list, &bare);
                if free {
                    change.remove_waiter(id, identity.server);
                } else {
                    change.add_waiter(id, identity.server);
                }
            }
            if free {
                name = bare.into();
                if self.names.get(&*tailed).is_some_and(|listed| listed.item_id() == identity) {
                    self.unlist(&tailed, identity, &renamed_problem(&name), change);
                }
            }
        }
        if let Some(listed) = self.names.get_mut(&*name) {
            change.list_changed |= !listed.has_same_json(route);
            *listed = route.clone();
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

    /// Takes an item out and keeps its name for it; gives the name.
    pub(super) fn remove(
        &mut self,
        section: &Section,
        item: &str,
        problem: &Problem,
        change: &mut ServerChange<'_>,
    ) -> Option<String> {
        let identity = ItemId { server: &section.key, name: item };
        let name = self.listed_name(section, identity)?;
        if let Some(bare) = self.scheme(section).bare_name(item).filter(|bare| **bare != *name) {
            change.remove_waiter(NameId::new(&self.view, self.list, &bare), identity.server);
        }
        if let Some(tailed) = self.suffixed_name_of(section, identity) {
            self.suffixed.remove(&*tailed);
        }
        self.unlist(&name, identity, problem, change);
        Some(name)
    }

    /// Says of a name that was given up which one took its place.
    pub(super) fn record_rename(&mut self, before: &str, server: &ObjectKey, name: &str) {
        if before != name && self.route(before).is_none() {
            self.record_removed(before, server, &renamed_problem(name));
        }
    }

    fn unlist(&mut self, name: &str, identity: ItemId<'_>, problem: &Problem, change: &mut ServerChange<'_>) {
        self.names.remove(name);
        change.list_changed = true;
        let id = NameId::new(&self.view, self.list, name);
        change.reserved.reserve(
            identity.server,
            ReservedName { name: id, item_digest: identity.item_digest() },
            change.reserve_until,
        );
        change.mark_waiters_affected(id);
        self.record_removed(name, identity.server, problem);
    }

    fn is_free(&self, bare: &str, identity: ItemId<'_>, change: &ServerChange<'_>) -> bool {
        if let Some(holder) = self.names.get(bare) {
            return holder.item_id() == identity;
        }
        let waits =
            change.pending_claimant.is_some() && matches!(self.list, ListKind::Tools | ListKind::Prompts);
        if change.reserved.is_empty() {
            return !waits;
        }
        let kept = change.reserved.get(NameId::new(&self.view, self.list, bare), identity);
        kept.map_or(!waits, |kept| kept.is_same_item)
    }

    /// Makes an item reachable by its name with a tail; gives that.
    fn insert_suffixed(&mut self, route: &Arc<Route>, before: bool, kept: &ReservedNames) -> Arc<str> {
        let (section, identity) = (route.section(), route.item_id());
        let own = if before { self.suffixed_name_of(section, identity) } else { None };
        let free = |name: &str| {
            let for_another = || kept.get(NameId::new(&self.view, self.list, name), identity);
            !self.suffixed.contains_key(name)
                && (kept.is_empty() || for_another().is_none_or(|kept| kept.is_same_item))
        };
        let mut number = 0;
        let name: Arc<str> = own.map_or_else(
            || loop {
                let name = self.scheme(section).suffixed_name(identity.name, route.hash_suffix(number));
                if free(&name) {
                    return name.into();
                }
                number += 1;
            },
            Into::into,
        );
        self.suffixed.insert(name.clone(), route.clone());
        name
    }

    /// Finds the name under which an item is listed.
    fn listed_name(&self, section: &Section, identity: ItemId<'_>) -> Option<String> {
        let bare = self.scheme(section).bare_name(identity.name);
        let own = |name: &&str| self.names.get(*name).is_some_and(|route| route.item_id() == identity);
        bare.as_deref()
            .filter(own)
            .map(ToOwned::to_owned)
            .or_else(|| self.suffixed_name_of(section, identity).filter(|name| own(&&**name)))
    }

    /// Finds the name with a tail that an item has.
    fn suffixed_name_of(&self, section: &Section, identity: ItemId<'_>) -> Option<String> {
        let tails = (0..MAX_HASH_SUFFIX_ATTEMPTS).map(|number| identity.hash_suffix(number));
        let mut names = tails.map(|tail| self.scheme(section).suffixed_name(identity.name, tail));
        names.find(|name| self.suffixed.get(&**name).is_some_and(|route| route.item_id() == identity))
    }

    fn scheme<'a>(&self, section: &'a Section) -> NameScheme<'a> {
        let namespace = &section.key.namespace;
        NameScheme {
            list: self.list,
            namespace: match &self.qualify_outside {
                Some(home) if home.as_ref() != Some(namespace) => Some(namespace),
                _ => None,
            },
            prefix: &section.prefix,
        }
    }

    fn record_removed(&mut self, name: &str, server: &ObjectKey, problem: &Problem) {
        let name: Arc<str> = name.into();
        self.forget_removed(&name);
        let age = self.removed_by_age.get_max().map_or(0, |(age, _)| age + 1);
        let gone = RemovedName { server: server.clone(), problem: problem.clone() };
        self.removed.insert(name.clone(), (age, gone));
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
    Problem::new(Reason::Removed, format!("it is called {name:?} now"))
}
