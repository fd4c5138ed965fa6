//! The Secrets that servers refer to, the ConfigMaps that skills refer to, and what is known of them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use secrecy::SecretString;

use crate::resource::bundle::{Bundle, SKILL_FILE, SkillError, SkillFile};
use crate::resource::{
    DigestKey, Endpoint, McpServerSpec, ObjectKey, Problem, Reason, SecretKeyRef, SkillContent, SkillSpec,
};
use crate::source::resolve::{ReferenceValues, SecretLookup, references};
use crate::source::{Environment, StdioPolicy};

/// Namespace and name of a Secret.
pub(super) type SecretName = ObjectKey;
/// The values of a Secret by key; `None` for one that is not text.
pub(super) type SecretValues = BTreeMap<String, Option<SecretString>>;
/// The Secrets that are referred to.
pub(super) type ReferencedSecrets = References<SecretValues>;

/// Namespace and name of a ConfigMap.
pub(super) type ConfigMapName = ObjectKey;
/// The files of a ConfigMap by key.
pub(super) type ConfigMapFiles = BTreeMap<Arc<str>, SkillFile>;
/// The ConfigMaps that are referred to.
pub(super) type ReferencedConfigMaps = References<ConfigMapFiles>;

/// What is known of something that is referred to.
pub(super) enum ReferenceLookup<V> {
    /// Nothing yet.
    Awaited,
    /// What it holds.
    Found(V),
    Missing,
    /// It cannot be read, and why.
    Denied(Problem),
}

/// What endpoints are made by.
pub(super) struct EndpointRules {
    pub policy: StdioPolicy,
    pub key: DigestKey,
}

/// What is referred to, and by whom.
pub(super) struct References<V> {
    known: BTreeMap<ObjectKey, (ReferenceLookup<V>, BTreeSet<ObjectKey>)>,
    used: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl<V> Default for References<V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), used: HashMap::new() }
    }
}

impl<V> References<V> {
    /// All that are referred to.
    pub fn all(&self) -> impl Iterator<Item = &ObjectKey> {
        self.known.keys()
    }

    /// What is known of one; `None` if nobody refers to it.
    pub fn look(&self, name: &ObjectKey) -> Option<&ReferenceLookup<V>> {
        self.known.get(name).map(|(look, _)| look)
    }

    /// Takes up what is known of one now; gives those who refer to it.
    pub fn see(&mut self, name: &ObjectKey, look: ReferenceLookup<V>) -> BTreeSet<ObjectKey> {
        let Some((known, users)) = self.known.get_mut(name) else { return BTreeSet::new() };
        *known = look;
        users.clone()
    }

    /// Takes note of what an object refers to; gives what came into use and what went out of it.
    pub fn uses(&mut self, key: &ObjectKey, now: BTreeSet<ObjectKey>) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        let before = self.used.remove(key).unwrap_or_default();
        let (mut appeared, mut left) = (Vec::new(), Vec::new());
        for name in now.difference(&before) {
            let (_, users) = self.known.entry(name.clone()).or_insert_with(|| {
                appeared.push(name.clone());
                (ReferenceLookup::Awaited, BTreeSet::new())
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

    /// Whether everything that an object refers to was looked at once.
    pub fn all_looked_at(&self, key: &ObjectKey) -> bool {
        let used = self.used.get(key).into_iter().flatten();
        used.filter_map(|name| self.known.get(name))
            .all(|(look, _)| !matches!(look, ReferenceLookup::Awaited))
    }
}

impl ReferencedSecrets {
    /// The endpoint of a server, or which Secret stands in the way.
    pub fn resolve(
        &self,
        key: &ObjectKey,
        spec: &McpServerSpec,
        rules: &EndpointRules,
    ) -> Result<Arc<Endpoint>, Problem> {
        let sources = ReferenceValues {
            place: &|_| format!("namespace {}", key.namespace),
            environment: &Environment::default(),
            policy: &rules.policy,
            secret: &|reference| self.get(key, reference),
            key: &rules.key,
        };
        sources.resolve(spec, None, Vec::new())
    }

    fn get(&self, key: &ObjectKey, reference: &SecretKeyRef) -> SecretLookup {
        match self.known.get(&name(key, reference)).map(|(look, _)| look) {
            Some(ReferenceLookup::Found(values)) => match values.get(&reference.key) {
                Some(Some(value)) => SecretLookup::Found(value.clone()),
                Some(None) => SecretLookup::Unusable("holds it in bytes that are not text in UTF-8".into()),
                None => SecretLookup::Missing,
            },
            Some(ReferenceLookup::Denied(why)) => SecretLookup::Denied(why.clone()),
            Some(ReferenceLookup::Missing | ReferenceLookup::Awaited) | None => SecretLookup::Missing,
        }
    }
}

impl ReferencedConfigMaps {
    /// What a skill holds, or why that is not known; `None` if its ConfigMap was not looked at yet.
    pub fn content(&self, key: &ObjectKey, spec: &SkillSpec) -> Option<SkillContent> {
        let invalid = |place: &str, mistake: &SkillError| {
            let colon = if mistake.file.is_empty() { ": " } else { ", " };
            Problem::new(Reason::InvalidSpec, format!("{place}{colon}{mistake}"))
        };
        let Some(name) = config_map(key, spec) else {
            let text = spec.inline.as_deref().unwrap_or_default();
            let content = Bundle::of_text(&key.name, text).map(Arc::new);
            return Some(content.map_err(|mistake| invalid("spec.inline", &mistake)));
        };
        let missing = |message: String| Some(Err(Problem::new(Reason::ConfigMapNotFound, message)));
        let place = format!("ConfigMap {:?}", &*name.name);
        match self.look(&name)? {
            ReferenceLookup::Awaited => None,
            ReferenceLookup::Missing => missing(format!("{place} is not in namespace {}", key.namespace)),
            ReferenceLookup::Denied(problem) => Some(Err(problem.clone())),
            ReferenceLookup::Found(keys) if !keys.contains_key(SKILL_FILE) => {
                missing(format!("{place} of namespace {} has no key {SKILL_FILE}", key.namespace))
            }
            ReferenceLookup::Found(keys) => {
                let content = Bundle::new(&key.name, keys.clone()).map(Arc::new);
                Some(content.map_err(|mistake| invalid(&place, &mistake)))
            }
        }
    }
}

/// The ConfigMap that a skill refers to.
pub(super) fn config_map(key: &ObjectKey, spec: &SkillSpec) -> Option<ConfigMapName> {
    let reference = spec.config_map_ref.as_ref()?;
    Some(ObjectKey::new(key.namespace.clone(), reference.name.as_str()))
}

/// The Secrets that a server refers to.
pub(super) fn names(key: &ObjectKey, spec: &McpServerSpec) -> BTreeSet<SecretName> {
    references(spec).map(|reference| name(key, reference)).collect()
}

fn name(key: &ObjectKey, reference: &SecretKeyRef) -> SecretName {
    ObjectKey::new(key.namespace.clone(), reference.name.as_str())
}
