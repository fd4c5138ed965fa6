//! The declared servers, in the order of their creation.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;

use crate::resource::ObjectKey;

/// The part of a declaration that the catalog needs, attached or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogDeclaration {
    /// The creation time. Of two servers that claim a name that no server had before, the one created first gets it.
    pub created: Timestamp,
    /// The name prefix; `None` if the server is not to be attached.
    pub prefix: Option<Arc<str>>,
}

/// The order in which servers get names: undeclared servers first, then by creation time, then by key.
pub(super) type ServerRank = (Option<Timestamp>, ObjectKey);

/// The declared servers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct DeclaredServers {
    servers: OrdMap<ObjectKey, CatalogDeclaration>,
    /// The servers by namespace and prefix; empty once every server was attached or failed once.
    by_prefix: OrdMap<(Arc<str>, Arc<str>), OrdSet<ServerRank>>,
    /// The servers whose first attempt has ended without a section.
    attempted: OrdSet<ObjectKey>,
    /// True once every declaration was inserted once.
    complete: bool,
    settled: bool,
}

impl DeclaredServers {
    /// Inserts a declaration, replacing the server's previous one.
    pub(super) fn insert(&mut self, key: &ObjectKey, declaration: CatalogDeclaration) {
        let was_attempted = self.attempted.contains(key);
        self.remove(key);
        if was_attempted {
            self.attempted.insert(key.clone());
        }
        if let Some(prefix) = declaration.prefix.clone().filter(|_| !self.settled) {
            let same = self.by_prefix.entry((key.namespace.clone(), prefix)).or_default();
            same.insert((Some(declaration.created), key.clone()));
        }
        self.servers.insert(key.clone(), declaration);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.attempted.remove(key);
        let Some(CatalogDeclaration { created, prefix }) = self.servers.remove(key) else { return };
        if let Some(prefix) = prefix
            && let Some(same) = self.by_prefix.get_mut(&(key.namespace.clone(), prefix))
        {
            same.remove(&(Some(created), key.clone()));
        }
    }

    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.servers.contains_key(key)
    }

    pub(super) fn rank(&self, key: &ObjectKey) -> ServerRank {
        (self.servers.get(key).map(|declaration| declaration.created), key.clone())
    }

    /// Ends the startup phase: every server that was declared at startup was attached or failed once.
    ///
    /// Returns true on the first call.
    pub(super) fn settle(&mut self) -> bool {
        self.by_prefix = OrdMap::new();
        self.attempted = OrdSet::new();
        !std::mem::replace(&mut self.settled, true)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Marks that every declaration was inserted once.
    pub(super) fn mark_complete(&mut self) {
        self.complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Marks that the first attempt at a server has ended without a section.
    pub(super) fn mark_attempted(&mut self, key: &ObjectKey) {
        if !self.settled && self.contains(key) {
            self.attempted.insert(key.clone());
        }
    }

    /// Returns the namespaces and prefixes of the servers whose first attempt has not ended, once each.
    pub(super) fn pending_prefixes(
        &self,
        is_attached: impl Fn(&ObjectKey) -> bool,
    ) -> impl Iterator<Item = (&Arc<str>, &str)> {
        let is_pending = move |(_, key): &ServerRank| !self.attempted.contains(key) && !is_attached(key);
        self.by_prefix
            .iter()
            .filter(move |(_, servers)| servers.iter().any(&is_pending))
            .map(|((namespace, prefix), _)| (namespace, &**prefix))
    }

    /// Returns a server that was created before this one, has the same prefix, and may list the same names once it is
    /// attached for the first time. `has_names` returns true for servers whose names are recorded.
    pub(super) fn pending_claimant(
        &self,
        key: &ObjectKey,
        prefix: &str,
        has_names: impl Fn(&ObjectKey) -> bool,
    ) -> Option<ObjectKey> {
        let same = self.by_prefix.get(&(key.namespace.clone(), prefix.into()))?;
        let own_rank = self.rank(key);
        let older = same.iter().take_while(|rank| **rank < own_rank);
        older.map(|(_, key)| key).find(|key| !has_names(key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_server_with_same_prefix_is_pending_until_settled() {
        let key = |name: &str| ObjectKey::new("default", name);
        let declaration = |second, prefix: Option<&str>| CatalogDeclaration {
            created: Timestamp::from_second(second).unwrap(),
            prefix: prefix.map(Arc::from),
        };
        let mut servers = DeclaredServers::default();
        for (name, second, prefix) in [
            ("z", 1, Some("x")),
            ("b", 2, Some("x")),
            ("c", 2, Some("x")),
            ("d", 0, Some("y")),
            ("e", 0, None),
        ] {
            servers.insert(&key(name), declaration(second, prefix));
        }
        let claimant = |servers: &DeclaredServers, name: &str, recorded: &[&str]| {
            let has_names = |key: &ObjectKey| recorded.contains(&&*key.name);
            servers.pending_claimant(&key(name), "x", has_names).map(|key| key.name.to_string())
        };
        assert_eq!(claimant(&servers, "z", &[]), None);
        assert_eq!(claimant(&servers, "c", &[]).as_deref(), Some("z"));
        assert_eq!(
            claimant(&servers, "c", &["z"]).as_deref(),
            Some("b"),
            "servers created in the same second are ordered by key"
        );
        assert_eq!(claimant(&servers, "c", &["z", "b"]), None);
        servers.insert(&key("z"), declaration(1, None));
        assert_eq!(claimant(&servers, "b", &[]), None, "z is not to be attached");
        assert!(servers.settle() && !servers.settle());
        assert_eq!(claimant(&servers, "c", &[]), None);
    }
}
