//! One list in one view: which item has which name, who waits for one, and what was there before.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use imbl::OrdMap;
use tokio::time::Instant;

use super::names::{Identity, Naming};
use super::{Conflict, Item, Route, Section, ViewName};
use crate::resource::{ObjectKey, Problem};
use crate::wire::List;

/// A list ends here and gives a cursor: generous, since some agents never ask for more.
const PAGE_ITEMS: usize = 1_000;
const PAGE_BYTES: usize = 1 << 20;
/// So many names are remembered after they went.
const REMEMBERED: usize = 4_096;

/// One list as agents see it at one path. Cheap to clone: generations share what did not change.
#[derive(Clone, Debug)]
pub struct Table {
    list: List,
    /// Where the namespace stands before the prefix: everywhere but in the home namespace.
    qualified: Option<Home>,
    names: OrdMap<Arc<str>, Slot>,
    gone: OrdMap<Arc<str>, (u64, Gone)>,
    gone_by_age: OrdMap<u64, Arc<str>>,
    version: u64,
    changed_at: Option<Instant>,
    /// How the list begins, once somebody asked: all agents ask for the same.
    first: Arc<OnceLock<Page>>,
}

/// The namespace whose names carry no namespace; `None` if there is none.
pub(super) type Home = Option<Arc<str>>;

/// A name, the item that has it, and the items that would have it if that one went.
#[derive(Clone, Debug)]
struct Slot {
    holder: Arc<Route>,
    /// In the order in which they go; almost always empty.
    waiting: Vec<Arc<Route>>,
}

/// What a name was before it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The server that it led to.
    pub server: ObjectKey,
    /// Why it went.
    pub problem: Problem,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The JSON array.
    pub items: Bytes,
    /// Where the next part begins, if there is one.
    pub cursor: Option<String>,
}

/// A cursor that was not given by a list.
#[derive(Debug, thiserror::Error)]
#[error("the cursor is not one that was given")]
pub struct BadCursor;

/// A change of names under way: what it touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Servers of which an item got another name.
    pub(super) servers: BTreeSet<ObjectKey>,
    /// True if the list is not what it was.
    pub(super) listed: bool,
}

impl Table {
    /// An empty one.
    pub(super) fn new(list: List, qualified: Option<Home>) -> Self {
        Self {
            list,
            qualified,
            names: OrdMap::new(),
            gone: OrdMap::new(),
            gone_by_age: OrdMap::new(),
            version: 0,
            changed_at: None,
            first: Arc::default(),
        }
    }

    /// Where a request goes.
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.names.get(name).map(|slot| &slot.holder)
    }

    /// What a name led to that leads nowhere now.
    pub fn gone(&self, name: &str) -> Option<&Gone> {
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
        self.names.iter().map(|(name, slot)| (&**name, &slot.holder))
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
    pub fn page(&self, cursor: Option<&str>) -> Result<Page, BadCursor> {
        let Some(cursor) = cursor else {
            return Ok(self.first.get_or_init(|| self.page_after(None)).clone());
        };
        let name = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| BadCursor)?;
        let name = String::from_utf8(name).map_err(|_| BadCursor)?;
        Ok(self.page_after(Some(&name)))
    }

    /// The list from behind a name on, put together anew.
    pub(super) fn page_after(&self, name: Option<&str>) -> Page {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let mut items = String::from("[");
        let mut last: Option<&str> = None;
        for (count, (name, slot)) in self.names.range::<_, str>((start, Bound::Unbounded)).enumerate() {
            if let Some(last) = last {
                if count >= PAGE_ITEMS || items.len() >= PAGE_BYTES {
                    items.push(']');
                    return Page { items: items.into(), cursor: Some(URL_SAFE_NO_PAD.encode(last)) };
                }
                items.push(',');
            }
            slot.holder.list_as(name, &mut items);
            last = Some(name);
        }
        items.push(']');
        Page { items: items.into(), cursor: None }
    }

    /// The items of a server that do not have the first of their wishes.
    pub(super) fn conflicts(&self, section: &Section, view: &ViewName) -> Vec<Conflict> {
        let conflict = |item: &Item| {
            let (given, number) = self.name_of(section, item.name())?;
            let wanted = self.wish(section, item.name(), 0);
            let holder = self.route(&wanted).filter(|_| number > 0)?;
            Some(Conflict {
                view: view.clone(),
                list: self.list,
                name: item.name().to_string(),
                holder: holder.section().key.clone(),
                wanted,
                given,
            })
        };
        section.lists.of(self.list).iter().filter_map(conflict).collect()
    }

    /// The name that an item has, and the number of its wish that this is.
    fn name_of(&self, section: &Section, item: &str) -> Option<(String, u32)> {
        let identity = Identity { server: &section.key, name: item };
        for number in 0.. {
            let name = self.wish(section, item, number);
            let slot = self.names.get(&*name)?;
            if slot.holder.identity() == identity {
                return Some((name, number));
            }
        }
        None
    }

    /// Puts the route in the place of an older one of the same item with the same wishes; if there is none,
    /// gives the item a name.
    pub(super) fn offer(&mut self, route: &Arc<Route>, touched: &mut Touched) {
        for number in 0.. {
            let name = self.wish(route.section(), route.name(), number);
            let Some(slot) = self.names.get_mut(&*name) else {
                return self.claim(route.clone(), touched);
            };
            if slot.holder.identity() == route.identity() {
                touched.listed |= !slot.holder.lists_like(route);
                slot.holder = route.clone();
                return;
            }
            for waiting in &mut slot.waiting {
                if waiting.identity() == route.identity() {
                    *waiting = route.clone();
                }
            }
        }
    }

    /// Gives an item the first of its wishes that no item before it wants; whom it displaces goes on.
    fn claim(&mut self, route: Arc<Route>, touched: &mut Touched) {
        touched.listed = true;
        let mut route = route;
        let mut number = 0;
        loop {
            let name = self.wish(route.section(), route.name(), number);
            let Some(slot) = self.names.get_mut(&*name) else {
                self.forget(&name);
                let slot = Slot { holder: route, waiting: Vec::new() };
                self.names.insert(name.into(), slot);
                return;
            };
            if route.identity() < slot.holder.identity() {
                let before = std::mem::replace(&mut slot.holder, route);
                slot.wait(before.clone());
                slot.touch(touched);
                number = self.number_of(&before, &name);
                route = before;
            } else {
                slot.wait(route.clone());
                slot.touch(touched);
            }
            number += 1;
        }
    }

    /// Takes an item out, and gives its name to the first that waits for it.
    pub(super) fn release(
        &mut self,
        section: &Section,
        item: &str,
        problem: &Problem,
        touched: &mut Touched,
    ) {
        self.retract(section, item, 0, problem, touched);
    }

    fn retract(
        &mut self,
        section: &Section,
        item: &str,
        from: u32,
        problem: &Problem,
        touched: &mut Touched,
    ) {
        let identity = Identity { server: &section.key, name: item };
        for number in from.. {
            let name = self.wish(section, item, number);
            let Some(slot) = self.names.get_mut(&*name) else {
                return;
            };
            if slot.holder.identity() != identity {
                slot.waiting.retain(|route| route.identity() != identity);
                continue;
            }
            touched.listed = true;
            if slot.waiting.is_empty() {
                self.names.remove(&*name);
                self.remember(name, &section.key, problem);
                return;
            }
            let heir = slot.waiting.remove(0);
            slot.holder = heir.clone();
            slot.touch(touched);
            let next = self.number_of(&heir, &name) + 1;
            let renamed = Problem::new(problem.reason, format!("it is called {name:?} now"));
            self.retract(heir.section(), heir.name(), next, &renamed, touched);
            return;
        }
    }

    fn wish(&self, section: &Section, item: &str, number: u32) -> String {
        let namespace = &section.key.namespace;
        let naming = Naming {
            list: self.list,
            namespace: match &self.qualified {
                Some(home) if home.as_ref() != Some(namespace) => Some(namespace),
                _ => None,
            },
            prefix: &section.prefix,
        };
        naming.wish(Identity { server: &section.key, name: item }, number)
    }

    /// The number of the wish that a name is, for an item that wishes for it.
    fn number_of(&self, route: &Route, name: &str) -> u32 {
        let mut number = 0;
        while self.wish(route.section(), route.name(), number) != name {
            number += 1;
        }
        number
    }

    fn remember(&mut self, name: String, server: &ObjectKey, problem: &Problem) {
        let name: Arc<str> = name.into();
        self.forget(&name);
        let age = self.gone_by_age.get_max().map_or(0, |(age, _)| age + 1);
        let gone = Gone { server: server.clone(), problem: problem.clone() };
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

impl Slot {
    fn wait(&mut self, route: Arc<Route>) {
        let place = self.waiting.partition_point(|waiting| waiting.identity() < route.identity());
        self.waiting.insert(place, route);
    }

    /// Every server that has the name or waits for it is told of another holder.
    fn touch(&self, touched: &mut Touched) {
        let routes = std::iter::once(&self.holder).chain(&self.waiting);
        touched.servers.extend(routes.map(|route| route.section().key.clone()));
    }
}
