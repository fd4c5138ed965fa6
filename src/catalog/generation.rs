use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imbl::OrdMap;
use tokio::time::Instant;

use super::table::{Home, Touched};
use super::{Route, Section, Table, View, ViewName};
use crate::resource::{ObjectKey, Problem, Reason};
use crate::wire::List;

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
    conflicts: OrdMap<ObjectKey, Arc<[Conflict]>>,
}

/// One step from a generation to the next.
#[derive(Clone, Debug)]
pub enum Step {
    /// A server offers this now, whatever it offered before.
    Publish(Arc<Section>),
    /// A server offers nothing any more, and why.
    Withdraw(ObjectKey, Problem),
}

/// An item that carries a hash tail because another has the name it would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Where.
    pub view: ViewName,
    /// The list that it is in.
    pub list: List,
    /// The server's own name of it.
    pub name: String,
    /// The name it would have.
    pub wanted: String,
    /// The name it has.
    pub given: String,
    /// The server that has the wanted name.
    pub holder: ObjectKey,
}

impl Step {
    /// The server.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Publish(section) => &section.key,
            Self::Withdraw(key, _) => key,
        }
    }
}

impl Generation {
    /// The first generation: nothing. In the home namespace names carry no namespace.
    pub fn new(home: Option<Arc<str>>, now: Instant) -> Self {
        Self {
            number: 0,
            made_at: now,
            sections: OrdMap::new(),
            everything: View::everything(home as Home),
            namespaces: OrdMap::new(),
            many: FEW,
            conflicts: OrdMap::new(),
        }
    }

    /// The generation after some steps, made now. Costs what the steps' servers have, not what others have.
    #[must_use]
    pub fn after(&self, steps: impl IntoIterator<Item = Step>, now: Instant) -> Self {
        let mut next = self.clone();
        next.number += 1;
        next.made_at = now;
        for step in steps {
            match step {
                Step::Publish(section) => next.publish(&section),
                Step::Withdraw(key, problem) => next.withdraw(&key, &problem),
            }
        }
        next
    }

    /// Counts generations, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What agents see at a path; nothing in a namespace that has nothing.
    pub fn view(&self, name: &ViewName) -> &View {
        static NOTHING: LazyLock<View> = LazyLock::new(View::namespace);
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
    pub fn conflicts(&self, key: &ObjectKey) -> &[Conflict] {
        self.conflicts.get(key).map_or(&[], |conflicts| conflicts)
    }

    /// All servers with such items.
    pub fn conflicting(&self) -> &OrdMap<ObjectKey, Arc<[Conflict]>> {
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
        for list in List::ALL {
            let offered = section.lists.of(list).iter();
            let routes: BTreeMap<&str, Arc<Route>> =
                offered.map(|item| (&**item.name(), Arc::new(Route::new(section, item)))).collect();
            self.change(&section.key, list, |table, touched| {
                if let Some(before) = &before {
                    let same_names = before.prefix == section.prefix;
                    for item in before.lists.of(list) {
                        if !(same_names && routes.contains_key(&**item.name())) {
                            table.release(before, item.name(), &dropped, touched);
                        }
                    }
                }
                for route in routes.values() {
                    table.offer(route, touched);
                }
            });
        }
    }

    fn withdraw(&mut self, key: &ObjectKey, problem: &Problem) {
        let Some(section) = self.sections.remove(key) else {
            return;
        };
        for list in List::ALL {
            self.change(key, list, |table, touched| {
                for item in section.lists.of(list) {
                    table.release(&section, item.name(), problem, touched);
                }
            });
        }
    }

    /// Lets go of the namespaces that are long gone. Looks through all, but only once they are twice as many as the
    /// last time left.
    fn forget_namespaces(&mut self) {
        let gone = |view: &View| {
            let over = |at: Instant| self.made_at.saturating_duration_since(at) > REMEMBERED;
            List::ALL
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
    fn change(&mut self, key: &ObjectKey, list: List, change: impl Fn(&mut Table, &mut Touched)) {
        let mut touched = Touched::default();
        if self.conflicts.contains_key(key) {
            touched.servers.insert(key.clone());
        }
        let namespace = self.namespaces.entry(key.namespace.clone()).or_insert_with(View::namespace);
        for view in [&mut self.everything, namespace] {
            touched.listed = false;
            let table = view.of_mut(list);
            change(table, &mut touched);
            if touched.listed {
                table.changed(self.number, self.made_at);
            }
        }
        for server in touched.servers {
            let conflicts: Arc<[Conflict]> = self.find_conflicts(&server).into();
            if conflicts.is_empty() {
                self.conflicts.remove(&server);
            } else {
                self.conflicts.insert(server, conflicts);
            }
        }
    }

    fn find_conflicts(&self, server: &ObjectKey) -> Vec<Conflict> {
        let Some(section) = self.sections.get(server) else {
            return Vec::new();
        };
        [ViewName::Everything, ViewName::Namespace(server.namespace.clone())]
            .into_iter()
            .flat_map(|name| self.view(&name).conflicts(section, &name))
            .collect()
    }
}
