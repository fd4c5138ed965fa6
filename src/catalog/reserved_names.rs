//! Names that lead nowhere now and are still kept for the item that had them.

use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use tokio::time::Instant;

use super::names::{ItemId, NameId};
use crate::resource::ObjectKey;

/// How long a name is kept once its server is declared no more.
pub(super) const KEPT_FOR: Duration = Duration::from_hours(1);
/// The most names that are kept for one server beside those that it lists: of more, the first given up go.
const MOST_OF_ONE: usize = 8_192;
/// The most names that are kept together: of more, those go first whose time ends first.
const MOST: usize = 131_072;

/// How long a name is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedUntil {
    /// As long as its server is declared.
    Removed,
    /// Its server is declared no more: until then.
    Time(Instant),
    /// Its server gave it up for another prefix: until then, declared or not.
    GivenUp(Instant),
}

impl ReservedUntil {
    /// Gives the time, if it is known.
    pub fn time(self) -> Option<Instant> {
        match self {
            Self::Removed => None,
            Self::Time(time) | Self::GivenUp(time) => Some(time),
        }
    }
}

/// Names that are kept, and for which item. Cheap to clone: copies share what did not change.
///
/// Holds names of items that are not listed now: of servers that are declared and not attached, of items that a
/// server no longer offers, and, for an hour, of servers that are declared no more.
#[derive(Clone, Debug, Default)]
pub struct ReservedNames {
    names: OrdMap<NameId, Reservation>,
    servers: OrdMap<ObjectKey, OrdMap<u64, NameId>>,
    due: OrdSet<(Instant, NameId)>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Reservation {
    server: ObjectKey,
    item: u64,
    until: ReservedUntil,
    number: u64,
}

/// A name and the item that it is for, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReservedName {
    /// The name.
    pub name: NameId,
    /// The server's own name of the item, as 64 bits of its digest.
    pub item: u64,
}

/// The server that a name is kept for.
pub(super) struct NameOwner<'a> {
    pub(super) server: &'a ObjectKey,
    /// True for the item that asks.
    pub(super) itself: bool,
    pub(super) declared: bool,
}

impl ReservedNames {
    /// Keeps a name for an item.
    pub fn keep(&mut self, server: &ObjectKey, own: ReservedName, until: ReservedUntil) {
        let ReservedName { name, item } = own;
        self.forget(name);
        self.count += 1;
        let number = self.count;
        self.names.insert(name, Reservation { server: server.clone(), item, until, number });
        let names = self.servers.entry(server.clone()).or_default();
        names.insert(number, name);
        let first = names.get_min().filter(|_| names.len() > MOST_OF_ONE).map(|(_, name)| *name);
        if let Some(time) = until.time() {
            self.due.insert((time, name));
        }
        if let Some(first) = first {
            self.forget(first);
        }
        if self.names.len() > MOST {
            // With nothing due, this one is the newest, and the only one that nobody relies on yet.
            let due = self.due.get_min().map_or(name, |(_, due)| *due);
            self.forget(due);
        }
    }

    /// Tells for which server a name is kept, and whether that is for this very item.
    pub(super) fn get(&self, name: NameId, identity: ItemId<'_>) -> Option<NameOwner<'_>> {
        let Reservation { server, item, until, .. } = self.names.get(&name)?;
        let itself = server == identity.server && *item == identity.item();
        Some(NameOwner { server, itself, declared: *until == ReservedUntil::Removed })
    }

    /// Keeps a name no longer: it is listed again.
    pub(super) fn forget(&mut self, name: NameId) {
        let Some(Reservation { server, until, number, .. }) = self.names.remove(&name) else { return };
        if let Some(time) = until.time() {
            self.due.remove(&(time, name));
        }
        if let Some(names) = self.servers.get_mut(&server) {
            names.remove(&number);
            if names.is_empty() {
                self.servers.remove(&server);
            }
        }
    }

    /// Keeps all names of a server so long, but for those that it gave up.
    pub(super) fn keep_all(&mut self, server: &ObjectKey, until: ReservedUntil) {
        let names: Vec<_> =
            self.servers.get(server).map(|names| names.values().copied().collect()).unwrap_or_default();
        for name in names {
            let Some(kept) = self.names.get_mut(&name) else { continue };
            if matches!(kept.until, ReservedUntil::GivenUp(_)) {
                continue;
            }
            let before = std::mem::replace(&mut kept.until, until);
            if let Some(before) = before.time() {
                self.due.remove(&(before, name));
            }
            if let Some(time) = until.time() {
                self.due.insert((time, name));
            }
        }
    }

    /// Forgets the names whose time is over, and gives them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<NameId> {
        let mut over = Vec::new();
        while let Some((_, name)) = self.due.get_min().copied().filter(|(until, _)| *until <= now) {
            self.forget(name);
            over.push(name);
        }
        over
    }

    /// Tells when the next name's time is over.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.get_min().map(|(until, _)| *until)
    }

    /// Lists the servers that names are kept for.
    pub(super) fn servers(&self) -> impl Iterator<Item = &ObjectKey> {
        self.servers.keys()
    }

    /// Tells whether names are kept for this server.
    pub(super) fn knows(&self, server: &ObjectKey) -> bool {
        self.servers.contains_key(server)
    }

    /// Lists the names that are kept for a server, each with how long.
    pub fn of(&self, server: &ObjectKey) -> impl Iterator<Item = (ReservedName, ReservedUntil)> {
        let names = self.servers.get(server).into_iter().flat_map(OrdMap::values);
        names.filter_map(|name| {
            let kept = self.names.get(name)?;
            Some((ReservedName { name: *name, item: kept.item }, kept.until))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(number: u64) -> ReservedName {
        ReservedName { name: NameId::from_number(number), item: number }
    }

    fn names(kept: &ReservedNames, server: &ObjectKey) -> Vec<ReservedName> {
        kept.of(server).map(|(own, _)| own).collect()
    }

    #[test]
    fn a_name_is_kept_as_long_as_it_is_said() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let now = Instant::now();
        let later = now + KEPT_FOR;
        let mut kept = ReservedNames::default();
        kept.keep(&a, own(1), ReservedUntil::Removed);
        kept.keep(&a, own(2), ReservedUntil::GivenUp(later));
        kept.keep(&b, own(3), ReservedUntil::Time(now));
        assert_eq!((kept.expire(now), kept.due()), (vec![NameId::from_number(3)], Some(later)));
        assert!(!kept.knows(&b) && kept.knows(&a));
        kept.keep_all(&a, ReservedUntil::Time(later + KEPT_FOR));
        kept.keep_all(&a, ReservedUntil::Removed);
        let of_a: Vec<_> = kept.of(&a).collect();
        assert_eq!(of_a, [(own(1), ReservedUntil::Removed), (own(2), ReservedUntil::GivenUp(later))]);
        assert_eq!(kept.expire(later), [NameId::from_number(2)]);
        kept.keep_all(&a, ReservedUntil::Time(later));
        assert_eq!(kept.expire(later), [NameId::from_number(1)]);
        assert!(kept.is_empty() && kept.servers().next().is_none() && kept.due().is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_no_server_pushes_out_what_is_kept_for_another() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let mut kept = ReservedNames::default();
        kept.keep(&a, own(0), ReservedUntil::Removed);
        for number in 1..=20_000 {
            kept.keep(&b, own(number), ReservedUntil::Removed);
        }
        assert_eq!(names(&kept, &a), [own(0)]);
        let of_b = names(&kept, &b);
        assert_eq!((of_b.len(), of_b.last()), (MOST_OF_ONE, Some(&own(20_000))));

        let until = ReservedUntil::Time(Instant::now());
        for number in 100_000..=100_000 + MOST as u64 {
            kept.keep(&ObjectKey::new("gone", number.to_string()), own(number), until);
        }
        assert_eq!(kept.names.len(), MOST);
        assert_eq!(names(&kept, &a), [own(0)], "what is declared stays");
    }
}
