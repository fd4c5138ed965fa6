//! One list in one view: which item has which name, and what was there before.

use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use imbl::OrdMap;
use tokio::time::Instant;

use super::change::ServerChange;
use super::conflict::{NameConflict, NameHolder};
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
const REMEMBERED: usize = 4_096;
/// So many tails are tried to find the one that an item has. It is the first unless two items have the same.
const TAILS: u32 = 64;

/// One list as agents see it at one path. Cheap to clone: generations share what did not change.
#[derive(Clone, Debug)]
pub struct Table {
    list: ListKind,
    view: ViewName,
    /// Where the namespace stands before the prefix: everywhere but in the home namespace.
    qualified: Option<HomeNamespace>,
    /// What is listed, bare names and those with a tail.
    names: OrdMap<Arc<str>, Arc<Route>>,
    /// Every item under its name with a tail, listed or not.
    tailed: OrdMap<Arc<str>, Arc<Route>>,
    gone: OrdMap<Arc<str>, (u64, RemovedName)>,
    gone_by_age: OrdMap<u64, Arc<str>>,
    version: u64,
    changed_at: Option<Instant>,
    /// How the list begins, once somebody asked: all agents ask for the same.
    first: Arc<OnceLock<ListPage>>,
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
            qualified,
            names: OrdMap::new(),
            tailed: OrdMap::new(),
            gone: OrdMap::new(),
            gone_by_age: OrdMap::new(),
            version: 0,
            changed_at: None,
            first: Arc::default(),
        }
    }

    /// Where a request goes. An item that is listed under its bare name can be reached by the name with a tail too.
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.names.get(name).or_else(|| self.tailed.get(name))
    }

    /// What a name led to that leads nowhere now.
    pub fn gone(&self, name: &str) -> Option<&RemovedName> {
        self.gone.get(name).map(|(_, gone)| gone)
    }

    /// The number of the generation in which the list last changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When that was; `None` if there never was one.
    pub fn changed_at(&self) -> Option<Instant> {
        self.changed_at
    }

    pub(super) fn changed(&mut self, version: u64, now: Instant) {
        self.version = version;
        self.changed_at = Some(now);
        self.first = Arc::default();
    }

    /// All names with where they lead, in their order.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        self.names.iter().map(|(name, route)| (&**name, route))
    }

    /// Lists all items under their names with a tail.
    pub(super) fn tailed(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        self.tailed.iter().map(|(name, route)| (&**name, route))
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
            return Ok(self.first.get_or_init(|| self.page_after(None)).clone());
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
            route.list_as(name, &mut items);
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
            let wanted = self.naming(section).bare(item.name())?;
            let holder = self.names.get(&*wanted);
            let (holder, holding) = if let Some(holder) = holder {
                if holder.identity() == identity {
                    return None;
                }
                (&holder.section().key, NameHolder::Has)
            } else if let Some(kept) = kept.get(NameId::of(&self.view, self.list, &wanted), identity) {
                (kept.server, if kept.declared { NameHolder::Has } else { NameHolder::Had })
            } else {
                (awaited?, NameHolder::MayHave)
            };
            Some(NameConflict {
                view: self.view.clone(),
                list: self.list,
                name: item.name().to_string(),
                holder: holder.clone(),
                holding,
                wanted: wanted.into_owned(),
                given: self.own_tailed(section, identity)?,
            })
        };
        section.lists.of(self.list).iter().filter_map(conflict).collect()
    }

    /// Gives the names under which a server's items are listed.
    pub(super) fn names_of(&self, section: &Section) -> impl Iterator<Item = ReservedName> {
        section.lists.of(self.list).iter().filter_map(move |item| {
            let identity = ItemId { server: &section.key, name: item.name() };
            let name = self.listed(section, identity)?;
            Some(ReservedName { name: NameId::of(&self.view, self.list, &name), item: identity.item() })
        })
    }

    /// Lists an item, in the place of what was listed of it before; gives its name. `before` says that this server
    /// offered it before by the same prefix.
    ///
    /// The name is the bare one if it is free: nobody has it, it is kept for nobody else, and no other server has to
    /// be waited for. Else it is the one with a tail.
    pub(super) fn offer(
        &mut self,
        route: &Arc<Route>,
        before: bool,
        change: &mut ServerChange<'_>,
    ) -> Arc<str> {
        let (section, identity) = (route.section(), route.identity());
        let tailed = self.offer_tailed(route, before, change.kept);
        let mut name = tailed.clone();
        if let Some(bare) = self.naming(section).bare(identity.name) {
            let free = self.is_free(&bare, identity, change);
            if !free || (before && !change.waiting.is_empty()) {
                let id = NameId::of(&self.view, self.list, &bare);
                if free {
                    change.wait_no_longer(id, identity.server);
                } else {
                    change.wait(id, identity.server);
                }
            }
            if free {
                name = bare.into();
                if self.names.get(&*tailed).is_some_and(|listed| listed.identity() == identity) {
                    self.unlist(&tailed, identity, &renamed(&name), change);
                }
            }
        }
        if let Some(listed) = self.names.get_mut(&*name) {
            change.listed |= !listed.lists_like(route);
            *listed = route.clone();
        } else {
            change.listed = true;
            self.forget(&name);
            self.names.insert(name.clone(), route.clone());
            if !change.kept.is_empty() || !change.waiting.is_empty() {
                let id = NameId::of(&self.view, self.list, &name);
                change.kept.forget(id);
                change.touch_waiting(id);
            }
        }
        name
    }

    /// Takes an item out and keeps its name for it; gives the name.
    pub(super) fn release(
        &mut self,
        section: &Section,
        item: &str,
        problem: &Problem,
        change: &mut ServerChange<'_>,
    ) -> Option<String> {
        let identity = ItemId { server: &section.key, name: item };
        let name = self.listed(section, identity)?;
        if let Some(bare) = self.naming(section).bare(item).filter(|bare| **bare != *name) {
            change.wait_no_longer(NameId::of(&self.view, self.list, &bare), identity.server);
        }
        if let Some(tailed) = self.own_tailed(section, identity) {
            self.tailed.remove(&*tailed);
        }
        self.unlist(&name, identity, problem, change);
        Some(name)
    }

    /// Says of a name that was given up which one took its place.
    pub(super) fn rename(&mut self, before: &str, server: &ObjectKey, name: &str) {
        if before != name && self.route(before).is_none() {
            self.remember(before, server, &renamed(name));
        }
    }

    fn unlist(&mut self, name: &str, identity: ItemId<'_>, problem: &Problem, change: &mut ServerChange<'_>) {
        self.names.remove(name);
        change.listed = true;
        let id = NameId::of(&self.view, self.list, name);
        change.kept.keep(identity.server, ReservedName { name: id, item: identity.item() }, change.until);
        change.touch_waiting(id);
        self.remember(name, identity.server, problem);
    }

    fn is_free(&self, bare: &str, identity: ItemId<'_>, change: &ServerChange<'_>) -> bool {
        if let Some(holder) = self.names.get(bare) {
            return holder.identity() == identity;
        }
        let waits = change.awaited.is_some() && matches!(self.list, ListKind::Tools | ListKind::Prompts);
        if change.kept.is_empty() {
            return !waits;
        }
        let kept = change.kept.get(NameId::of(&self.view, self.list, bare), identity);
        kept.map_or(!waits, |kept| kept.itself)
    }

    /// Makes an item reachable by its name with a tail; gives that.
    fn offer_tailed(&mut self, route: &Arc<Route>, before: bool, kept: &ReservedNames) -> Arc<str> {
        let (section, identity) = (route.section(), route.identity());
        let own = if before { self.own_tailed(section, identity) } else { None };
        let free = |name: &str| {
            let for_another = || kept.get(NameId::of(&self.view, self.list, name), identity);
            !self.tailed.contains_key(name)
                && (kept.is_empty() || for_another().is_none_or(|kept| kept.itself))
        };
        let mut number = 0;
        let name: Arc<str> = own.map_or_else(
            || loop {
                let name = self.naming(section).tailed(identity.name, route.tail(number));
                if free(&name) {
                    return name.into();
                }
                number += 1;
            },
            Into::into,
        );
        self.tailed.insert(name.clone(), route.clone());
        name
    }

    /// Finds the name under which an item is listed.
    fn listed(&self, section: &Section, identity: ItemId<'_>) -> Option<String> {
        let bare = self.naming(section).bare(identity.name);
        let own = |name: &&str| self.names.get(*name).is_some_and(|route| route.identity() == identity);
        bare.as_deref()
            .filter(own)
            .map(ToOwned::to_owned)
            .or_else(|| self.own_tailed(section, identity).filter(|name| own(&&**name)))
    }

    /// Finds the name with a tail that an item has.
    fn own_tailed(&self, section: &Section, identity: ItemId<'_>) -> Option<String> {
        let tails = (0..TAILS).map(|number| identity.tail(number));
        let mut names = tails.map(|tail| self.naming(section).tailed(identity.name, tail));
        names.find(|name| self.tailed.get(&**name).is_some_and(|route| route.identity() == identity))
    }

    fn naming<'a>(&self, section: &'a Section) -> NameScheme<'a> {
        let namespace = &section.key.namespace;
        NameScheme {
            list: self.list,
            namespace: match &self.qualified {
                Some(home) if home.as_ref() != Some(namespace) => Some(namespace),
                _ => None,
            },
            prefix: &section.prefix,
        }
    }

    fn remember(&mut self, name: &str, server: &ObjectKey, problem: &Problem) {
        let name: Arc<str> = name.into();
        self.forget(&name);
        let age = self.gone_by_age.get_max().map_or(0, |(age, _)| age + 1);
        let gone = RemovedName { server: server.clone(), problem: problem.clone() };
        self.gone.insert(name.clone(), (age, gone));
        self.gone_by_age.insert(age, name);
        if self.gone.len() > REMEMBERED
            && let Some((_, oldest)) = self.gone_by_age.get_min().cloned()
        {
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some((age, _)) = self.gone.remove(name) {
            self.gone_by_age.remove(&age);
        }
    }
}

fn renamed(name: &str) -> Problem {
    Problem::new(Reason::Removed, format!("it is called {name:?} now"))
}
