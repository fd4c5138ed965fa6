//! The Secrets that servers refer to, and what is known of them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use secrecy::SecretString;

use crate::resource::{DigestKey, Endpoint, McpServerSpec, ObjectKey, Problem, SecretKeyRef};
use crate::source::resolve::{Secret, Sources, references};
use crate::source::{Environment, Policy};

/// Namespace and name of a Secret.
pub(super) type SecretName = ObjectKey;

/// What is known of a Secret.
pub(super) enum Look {
    /// Nothing yet.
    Awaited,
    /// Its values by key; `None` for one that is not text.
    Found(BTreeMap<String, Option<SecretString>>),
    Missing,
    /// It cannot be read, and why.
    Denied(Problem),
}

/// What endpoints are made by.
pub(super) struct Rules {
    pub policy: Policy,
    pub key: DigestKey,
}

/// The Secrets that are referred to, and by whom.
#[derive(Default)]
pub(super) struct Secrets {
    known: BTreeMap<SecretName, (Look, BTreeSet<ObjectKey>)>,
    used: HashMap<ObjectKey, BTreeSet<SecretName>>,
}

impl Secrets {
    /// All that are referred to.
    pub fn all(&self) -> impl Iterator<Item = &SecretName> {
        self.known.keys()
    }

    /// What is known of one; `None` if nobody refers to it.
    pub fn look(&self, name: &SecretName) -> Option<&Look> {
        self.known.get(name).map(|(look, _)| look)
    }

    /// Takes up what is known of one now; gives those who refer to it.
    pub fn see(&mut self, name: &SecretName, look: Look) -> BTreeSet<ObjectKey> {
        let Some((known, users)) = self.known.get_mut(name) else { return BTreeSet::new() };
        *known = look;
        users.clone()
    }

    /// Takes note of what a server refers to; gives the Secrets that came into use and that went out of it.
    pub fn uses(&mut self, key: &ObjectKey, now: BTreeSet<SecretName>) -> (Vec<SecretName>, Vec<SecretName>) {
        let before = self.used.remove(key).unwrap_or_default();
        let (mut appeared, mut left) = (Vec::new(), Vec::new());
        for name in now.difference(&before) {
            let (_, users) = self.known.entry(name.clone()).or_insert_with(|| {
                appeared.push(name.clone());
                (Look::Awaited, BTreeSet::new())
            });
            users.insert(key.clone());
        }
        for name in before.difference(&now) {
            if let Some((_, users)) = self.known.get_mut(name) {
                users.remove(key);
                if users.is_empty() {
                    self.known.remove(name);
                    left.push(name.clone());
                }
            }
        }
        if !now.is_empty() {
            self.used.insert(key.clone(), now);
        }
        (appeared, left)
    }

    /// Whether every Secret that a server refers to was looked at once.
    pub fn all_looked_at(&self, key: &ObjectKey) -> bool {
        let used = self.used.get(key).into_iter().flatten();
        used.filter_map(|name| self.known.get(name)).all(|(look, _)| !matches!(look, Look::Awaited))
    }

    /// The endpoint of a server, or which Secret stands in the way.
    pub fn resolve(
        &self,
        key: &ObjectKey,
        spec: &McpServerSpec,
        rules: &Rules,
    ) -> Result<Arc<Endpoint>, Problem> {
        let sources = Sources {
            place: &|_| format!("namespace {}", key.namespace),
            environment: &Environment::default(),
            policy: &rules.policy,
            secret: &|reference| self.get(key, reference),
            key: &rules.key,
        };
        sources.resolve(spec, None)
    }

    fn get(&self, key: &ObjectKey, reference: &SecretKeyRef) -> Secret {
        match self.known.get(&name(key, reference)).map(|(look, _)| look) {
            Some(Look::Found(values)) => match values.get(&reference.key) {
                Some(Some(value)) => Secret::Found(value.clone()),
                Some(None) => Secret::Unusable("holds it in bytes that are not text in UTF-8".into()),
                None => Secret::Missing,
            },
            Some(Look::Denied(why)) => Secret::Denied(why.clone()),
            Some(Look::Missing | Look::Awaited) | None => Secret::Missing,
        }
    }
}

/// The Secrets that a server refers to.
pub(super) fn names(key: &ObjectKey, spec: &McpServerSpec) -> BTreeSet<SecretName> {
    references(spec).map(|reference| name(key, reference)).collect()
}

fn name(key: &ObjectKey, reference: &SecretKeyRef) -> SecretName {
    ObjectKey::new(key.namespace.clone(), reference.name.as_str())
}
