//! Names that lead nowhere now and are still kept for the item that had them.

use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use tokio::time::Instant;

use super::names::{ItemId, NameId};
use crate::resource::ObjectKey;

/// How long a name is kept once its server is declared no more.
pub(super) const RESERVATION_PERIOD: Duration = Duration::from_hours(1);
/// The most names that are kept for one server beside those that it lists: of more, the first given up go.
const MAX_RESERVED_NAMES_PER_SERVER: usize = 8_192;
/// The most names that are kept together: of more, those go first whose time ends first.
const MAX_RESERVED_NAMES: usize = 131_072;

/// How long a name is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedUntil {
    /// As long as its server is declared.
    Removed,
    /// Its server is declared no more: until then.
    Time(Instant),
    /// Its server gave it up for another prefix: until then, declared or not.
    Released(Instant),
}

impl ReservedUntil {
    /// Gives the time, if it is known.
    pub fn time(self) -> Option<Instant> {
        match self {
            Self::Removed => None,
            Self::Time(time) | Self::Released(time) => Some(time),
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
    by_expiry: OrdSet<(Instant, NameId)>,
    last_sequence: u64,
}

#[derive(Clone, Debug)]
struct Reservation {
    server: ObjectKey,
    item_digest: u64,
    until: ReservedUntil,
    sequence: u64,
}

/// A name and the item that it is for, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReservedName {
    /// The name.
    pub name: NameId,
    /// The server's own name of the item, as 64 bits of its digest.
    pub item_digest: u64,
}

/// The server that a name is kept for.
pub(super) struct NameOwner<'a> {
    pub(super) server: &'a ObjectKey,
    /// True for the item that asks.
    pub(super) is_same_item: bool,
    pub(super) declared: bool,
}

impl ReservedNames {
    /// Keeps a name for an item.
    pub fn reserve(&mut self, server: &ObjectKey, own: ReservedName, until: ReservedUntil) {
        let ReservedName { name, item_digest: item } = own;
        self.release(name);
        self.last_sequence += 1;
        let number = self.last_sequence;
        self.names
            .insert(name, Reservation { server: server.clone(), item_digest: item, until, sequence: number });
        let names = self.servers.entry(server.clone()).or_default();
        names.insert(number, name);
        let first =
            names.get_min().filter(|_| names.len() > MAX_RESERVED_NAMES_PER_SERVER).map(|(_, name)| *name);
        if let Some(time) = until.time() {
            self.by_expiry.insert((time, name));
        }
        if let Some(first) = first {
            self.release(first);
        }
        if self.names.len() > MAX_RESERVED_NAMES {
            // With nothing due, this one is the newest, and the only one that nobody relies on yet.
            let due = self.by_expiry.get_min().map_or(name, |(_, due)| *due);
            self.release(due);
        }
    }

    /// Tells for which server a name is kept, and whether that is for this very item.
    pub(super) fn get(&self, name: NameId, identity: ItemId<'_>) -> Option<NameOwner<'_>> {
        let Reservation { server, item_digest: item, until, .. } = self.names.get(&name)?;
        let itself = server == identity.server && *item == identity.item_digest();
        Some(NameOwner { server, is_same_item: itself, declared: *until == ReservedUntil::Removed })
    }

    /// Keeps a name no longer: it is listed again.
    pub(super) fn release(&mut self, name: NameId) {
        let Some(Reservation { server, until, sequence: number, .. }) = self.names.remove(&name) else {
            return;
        };
        if let Some(time) = until.time() {
            self.by_expiry.remove(&(time, name));
        }
        if let Some(names) = self.servers.get_mut(&server) {
            names.remove(&number);
            if names.is_empty() {
                self.servers.remove(&server);
            }
        }
    }

    /// Keeps all names of a server so long, but for those that it gave up.
    pub(super) fn reserve_all(&mut self, server: &ObjectKey, until: ReservedUntil) {
        let names: Vec<_> =
            self.servers.get(server).map(|names| names.values().copied().collect()).unwrap_or_default();
        for name in names {
            let Some(kept) = self.names.get_mut(&name) else { continue };
            if matches!(kept.until, ReservedUntil::Released(_)) {
                continue;
            }
            let before = std::mem::replace(&mut kept.until, until);
            if let Some(before) = before.time() {
                self.by_expiry.remove(&(before, name));
            }
            if let Some(time) = until.time() {
                self.by_expiry.insert((time, name));
            }
        }
    }

    /// Forgets the names whose time is over, and gives them.
    pub(super) fn remove_expired(&mut self, now: Instant) -> Vec<NameId> {
        let mut over = Vec::new();
        while let Some((_, name)) = self.by_expiry.get_min().copied().filter(|(until, _)| *until <= now) {
            self.release(name);
            over.push(name);
        }
        over
    }

    /// Tells when the next name's time is over.
    pub(super) fn next_expiry_at(&self) -> Option<Instant> {
        self.by_expiry.get_min().map(|(until, _)| *until)
    }

    /// Lists the servers that names are kept for.
    pub(super) fn servers(&self) -> impl Iterator<Item = &ObjectKey> {
        self.servers.keys()
    }

    /// Tells whether names are kept for this server.
    pub(super) fn contains_server(&self, server: &ObjectKey) -> bool {
        self.servers.contains_key(server)
    }

    /// Lists the names that are kept for a server, each with how long.
    pub fn names_of(&self, server: &ObjectKey) -> impl Iterator<Item = (ReservedName, ReservedUntil)> {
        let names = self.servers.get(server).into_iter().flat_map(OrdMap::values);
        names.filter_map(|name| {
            let kept = self.names.get(name)?;
            Some((ReservedName { name: *name, item_digest: kept.item_digest }, kept.until))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved_name(number: u64) -> ReservedName {
        ReservedName { name: NameId::from_number(number), item_digest: number }
    }

    fn reserved_names_of(kept: &ReservedNames, server: &ObjectKey) -> Vec<ReservedName> {
        kept.names_of(server).map(|(own, _)| own).collect()
    }

    #[test]
    fn reservation_lasts_until_its_limit() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let now = Instant::now();
        let later = now + RESERVATION_PERIOD;
        let mut kept = ReservedNames::default();
        kept.reserve(&a, reserved_name(1), ReservedUntil::Removed);
        kept.reserve(&a, reserved_name(2), ReservedUntil::Released(later));
        kept.reserve(&b, reserved_name(3), ReservedUntil::Time(now));
        assert_eq!(
            (kept.remove_expired(now), kept.next_expiry_at()),
            (vec![NameId::from_number(3)], Some(later))
        );
        assert!(!kept.contains_server(&b) && kept.contains_server(&a));
        kept.reserve_all(&a, ReservedUntil::Time(later + RESERVATION_PERIOD));
        kept.reserve_all(&a, ReservedUntil::Removed);
        let of_a: Vec<_> = kept.names_of(&a).collect();
        assert_eq!(
            of_a,
            [(reserved_name(1), ReservedUntil::Removed), (reserved_name(2), ReservedUntil::Released(later))]
        );
        assert_eq!(kept.remove_expired(later), [NameId::from_number(2)]);
        kept.reserve_all(&a, ReservedUntil::Time(later));
        assert_eq!(kept.remove_expired(later), [NameId::from_number(1)]);
        assert!(kept.is_empty() && kept.servers().next().is_none() && kept.next_expiry_at().is_none());
    }

    #[test]
    fn reservations_are_bounded_per_server_and_in_total() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let mut kept = ReservedNames::default();
        kept.reserve(&a, reserved_name(0), ReservedUntil::Removed);
        for number in 1..=20_000 {
            kept.reserve(&b, reserved_name(number), ReservedUntil::Removed);
        }
        assert_eq!(reserved_names_of(&kept, &a), [reserved_name(0)]);
        let of_b = reserved_names_of(&kept, &b);
        assert_eq!((of_b.len(), of_b.last()), (MAX_RESERVED_NAMES_PER_SERVER, Some(&reserved_name(20_000))));

        let until = ReservedUntil::Time(Instant::now());
        for number in 100_000..=100_000 + MAX_RESERVED_NAMES as u64 {
            kept.reserve(&ObjectKey::new("gone", number.to_string()), reserved_name(number), until);
        }
        assert_eq!(kept.names.len(), MAX_RESERVED_NAMES);
        assert_eq!(reserved_names_of(&kept, &a), [reserved_name(0)], "what is declared stays");
    }
}
