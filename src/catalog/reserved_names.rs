//! Names that route to no item now and stay reserved for the item that had them.

use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use tokio::time::Instant;

use super::names::{ItemId, NameId};
use crate::resource::ObjectKey;

/// The time for which a name stays reserved once its server is no longer declared.
pub(super) const RESERVATION_PERIOD: Duration = Duration::from_hours(1);
/// The most names reserved for one server in addition to those that it lists. Beyond that, the oldest reservations are
/// dropped.
const MAX_RESERVED_NAMES_PER_SERVER: usize = 8_192;
/// The most reserved names in total. Beyond that, reservations that expire first are dropped first.
const MAX_RESERVED_NAMES: usize = 131_072;

/// The limit of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedUntil {
    /// Until its server is removed: the name is reserved as long as the server is declared.
    Removed,
    /// Until this time; the server is no longer declared.
    Time(Instant),
    /// Until this time, whether the server is declared or not: the server released the name for another prefix.
    Released(Instant),
}

impl ReservedUntil {
    /// Returns the expiry time, if there is one.
    pub fn time(self) -> Option<Instant> {
        match self {
            Self::Removed => None,
            Self::Time(time) | Self::Released(time) => Some(time),
        }
    }
}

/// Reserved names and their items. Cheap to clone: copies share unchanged parts.
///
/// Holds names of items that are not listed now: of servers that are declared and not attached, of items that a
/// server no longer offers, and, for one hour, of servers that are no longer declared.
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

/// A name and its item, in the form in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReservedName {
    /// The name.
    pub name: NameId,
    /// The server's own name for the item, as 64 bits of its digest.
    pub item_digest: u64,
}

/// The server that a name is reserved for.
pub(super) struct NameOwner<'a> {
    pub(super) server: &'a ObjectKey,
    /// True if the name is reserved for the item of the lookup itself.
    pub(super) is_same_item: bool,
    pub(super) declared: bool,
}

impl ReservedNames {
    /// Reserves a name for an item.
    pub fn reserve(&mut self, server: &ObjectKey, reserved: ReservedName, until: ReservedUntil) {
        let ReservedName { name, item_digest: item } = reserved;
        self.release(name);
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.names.insert(name, Reservation { server: server.clone(), item_digest: item, until, sequence });
        let names = self.servers.entry(server.clone()).or_default();
        names.insert(sequence, name);
        let oldest =
            names.get_min().filter(|_| names.len() > MAX_RESERVED_NAMES_PER_SERVER).map(|(_, name)| *name);
        if let Some(time) = until.time() {
            self.by_expiry.insert((time, name));
        }
        if let Some(oldest) = oldest {
            self.release(oldest);
        }
        if self.names.len() > MAX_RESERVED_NAMES {
            // If no reservation expires, the new one is dropped: it is the only one that no agent relies on yet.
            let dropped = self.by_expiry.get_min().map_or(name, |(_, name)| *name);
            self.release(dropped);
        }
    }

    /// Returns the server that a name is reserved for.
    pub(super) fn get(&self, name: NameId, item: ItemId<'_>) -> Option<NameOwner<'_>> {
        let Reservation { server, item_digest, until, .. } = self.names.get(&name)?;
        let is_same_item = server == item.server && *item_digest == item.item_digest();
        Some(NameOwner { server, is_same_item, declared: *until == ReservedUntil::Removed })
    }

    /// Drops the reservation of a name, which is listed again.
    pub(super) fn release(&mut self, name: NameId) {
        let Some(Reservation { server, until, sequence, .. }) = self.names.remove(&name) else {
            return;
        };
        if let Some(time) = until.time() {
            self.by_expiry.remove(&(time, name));
        }
        if let Some(names) = self.servers.get_mut(&server) {
            names.remove(&sequence);
            if names.is_empty() {
                self.servers.remove(&server);
            }
        }
    }

    /// Sets the limit of all reservations of a server, except for names that it released.
    pub(super) fn reserve_all(&mut self, server: &ObjectKey, until: ReservedUntil) {
        let names: Vec<_> =
            self.servers.get(server).map(|names| names.values().copied().collect()).unwrap_or_default();
        for name in names {
            let Some(reservation) = self.names.get_mut(&name) else { continue };
            if matches!(reservation.until, ReservedUntil::Released(_)) {
                continue;
            }
            let previous = std::mem::replace(&mut reservation.until, until);
            if let Some(time) = previous.time() {
                self.by_expiry.remove(&(time, name));
            }
            if let Some(time) = until.time() {
                self.by_expiry.insert((time, name));
            }
        }
    }

    /// Removes and returns the names whose reservation expired.
    pub(super) fn remove_expired(&mut self, now: Instant) -> Vec<NameId> {
        let mut expired = Vec::new();
        while let Some((_, name)) = self.by_expiry.get_min().copied().filter(|(until, _)| *until <= now) {
            self.release(name);
            expired.push(name);
        }
        expired
    }

    /// Returns when the next reservation expires.
    pub(super) fn next_expiry_at(&self) -> Option<Instant> {
        self.by_expiry.get_min().map(|(until, _)| *until)
    }

    /// Returns the servers with reserved names.
    pub(super) fn servers(&self) -> impl Iterator<Item = &ObjectKey> {
        self.servers.keys()
    }

    /// Returns true if names are reserved for this server.
    pub(super) fn contains_server(&self, server: &ObjectKey) -> bool {
        self.servers.contains_key(server)
    }

    /// Returns the names reserved for a server, each with its limit.
    pub fn names_of(&self, server: &ObjectKey) -> impl Iterator<Item = (ReservedName, ReservedUntil)> {
        let names = self.servers.get(server).into_iter().flat_map(OrdMap::values);
        names.filter_map(|name| {
            let reservation = self.names.get(name)?;
            Some((ReservedName { name: *name, item_digest: reservation.item_digest }, reservation.until))
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

    fn reserved_names_of(reserved: &ReservedNames, server: &ObjectKey) -> Vec<ReservedName> {
        reserved.names_of(server).map(|(name, _)| name).collect()
    }

    #[test]
    fn reservation_lasts_until_its_limit() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let now = Instant::now();
        let later = now + RESERVATION_PERIOD;
        let mut reserved = ReservedNames::default();
        reserved.reserve(&a, reserved_name(1), ReservedUntil::Removed);
        reserved.reserve(&a, reserved_name(2), ReservedUntil::Released(later));
        reserved.reserve(&b, reserved_name(3), ReservedUntil::Time(now));
        assert_eq!(
            (reserved.remove_expired(now), reserved.next_expiry_at()),
            (vec![NameId::from_number(3)], Some(later))
        );
        assert!(!reserved.contains_server(&b) && reserved.contains_server(&a));
        reserved.reserve_all(&a, ReservedUntil::Time(later + RESERVATION_PERIOD));
        reserved.reserve_all(&a, ReservedUntil::Removed);
        let of_a: Vec<_> = reserved.names_of(&a).collect();
        assert_eq!(
            of_a,
            [(reserved_name(1), ReservedUntil::Removed), (reserved_name(2), ReservedUntil::Released(later))]
        );
        assert_eq!(reserved.remove_expired(later), [NameId::from_number(2)]);
        reserved.reserve_all(&a, ReservedUntil::Time(later));
        assert_eq!(reserved.remove_expired(later), [NameId::from_number(1)]);
        assert!(
            reserved.is_empty() && reserved.servers().next().is_none() && reserved.next_expiry_at().is_none()
        );
    }

    #[test]
    fn reservations_are_bounded_per_server_and_in_total() {
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("default", "b"));
        let mut reserved = ReservedNames::default();
        reserved.reserve(&a, reserved_name(0), ReservedUntil::Removed);
        for number in 1..=20_000 {
            reserved.reserve(&b, reserved_name(number), ReservedUntil::Removed);
        }
        assert_eq!(reserved_names_of(&reserved, &a), [reserved_name(0)]);
        let of_b = reserved_names_of(&reserved, &b);
        assert_eq!((of_b.len(), of_b.last()), (MAX_RESERVED_NAMES_PER_SERVER, Some(&reserved_name(20_000))));

        let until = ReservedUntil::Time(Instant::now());
        for number in 100_000..=100_000 + MAX_RESERVED_NAMES as u64 {
            reserved.reserve(&ObjectKey::new("gone", number.to_string()), reserved_name(number), until);
        }
        assert_eq!(reserved.names.len(), MAX_RESERVED_NAMES);
        assert_eq!(
            reserved_names_of(&reserved, &a),
            [reserved_name(0)],
            "names of declared servers stay reserved"
        );
    }
}
