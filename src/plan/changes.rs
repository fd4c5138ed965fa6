use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;

use super::Target;
use crate::resource::{McpServerSpec, ObjectKey, Reason};
use crate::source::{Declared, Desired};

/// What the fleet was last told, per server: the declaration behind it and the target made from it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The servers that the fleet knows.
    pub servers: OrdMap<ObjectKey, (Arc<Declared<McpServerSpec>>, Arc<Target>)>,
}

/// One step for one server.
#[derive(Clone, Debug)]
pub enum Change {
    /// Connect a server that is not there yet.
    Attach(Arc<Target>),
    /// The connection itself changed: make a new one.
    Replace(Arc<Target>),
    /// Names, filters or limits changed: apply them to the live connection.
    Refilter(Arc<Target>),
    /// Take the server away.
    Detach {
        /// Which.
        key: ObjectKey,
        /// `Removed` or `Suspended`.
        reason: Reason,
    },
}

impl Change {
    /// The server that changes.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Attach(target) | Self::Replace(target) | Self::Refilter(target) => &target.key,
            Self::Detach { key, .. } => key,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self {
            Self::Attach(_) => "attach",
            Self::Replace(_) => "replace",
            Self::Refilter(_) => "refilter",
            Self::Detach { .. } => "detach",
        };
        write!(f, "{verb} {}", self.key())
    }
}

/// The steps from what is observed to what is desired, in the order of the keys.
///
/// Guarantees: a server whose declaration is the same object gets no step; one whose newest declaration is
/// refused, or whose reference was not found, keeps what it has; a source that has not been read
/// completely changes nothing.
pub fn changes(desired: &Desired, observed: &Observed) -> Vec<Change> {
    if !desired.source.synced {
        return Vec::new();
    }
    let removed = observed
        .servers
        .keys()
        .filter(|key| !desired.servers.contains_key(*key))
        .map(|key| Change::Detach {
            key: key.clone(),
            reason: Reason::Removed,
        });
    let declared =
        desired
            .servers
            .values()
            .filter_map(|declared| match observed.servers.get(&declared.meta.key) {
                Some((seen, _)) if Arc::ptr_eq(seen, declared) => None,
                Some((_, current)) => update(declared, current),
                None => Target::of(declared).map(|target| Change::Attach(Arc::new(target))),
            });
    removed.chain(declared).collect()
}

fn update(declared: &Declared<McpServerSpec>, current: &Target) -> Option<Change> {
    if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
        let key = declared.meta.key.clone();
        return Some(Change::Detach {
            key,
            reason: Reason::Suspended,
        });
    }
    let target = Target::of(declared)?;
    if target.uid != current.uid || target.endpoint.digest() != current.endpoint.digest() {
        Some(Change::Replace(Arc::new(target)))
    } else if target.settings != current.settings || target.generation != current.generation {
        Some(Change::Refilter(Arc::new(target)))
    } else {
        None
    }
}
