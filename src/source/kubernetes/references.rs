//! The Secrets that servers refer to, the ConfigMaps that skills refer to, and what is known of them. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use secrecy::SecretString;

use crate::resource::bundle::{Bundle, SKILL_FILE, SkillError, SkillFile};
use crate::resource::{
    DigestKey, Endpoint, McpServerSpec, ObjectKey, Problem, Reason, SecretKeyRef, SkillContent, SkillSpec,
};
use crate::source::resolve::{ReferenceValues, SecretLookup, secret_references};
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
    Pending,
    /// What it holds.
    Found(V),
    Missing,
    /// It cannot be read, and why.
    Denied(Problem),
}

/// What endpoints are made by.
pub(super) struct EndpointRules {
    pub policy: StdioPolicy,
    pub digest_key: DigestKey,
}

/// What is referred to, and by whom.
pub(super) struct References<V> {
    entries: BTreeMap<ObjectKey, (ReferenceLookup<V>, BTreeSet<ObjectKey>)>,
    references_by_user: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl<V> Default for References<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), references_by_user: HashMap::new() }
    }
}

impl<V> References<V> {
    /// All that are referred to.
    pub fn names(&self) -> impl Iterator<Item = &ObjectKey> {
        self.entries.keys()
    }

    /// What is known of one; `None` if nobody refers to it.
    pub fn lookup(&self, name: &ObjectKey) -> Option<&ReferenceLookup<V>> {
        self.entries.get(name).map(|(look, _)| look)
    }

    /// Takes up what is known of one now; gives those who refer to it.
    pub fn update(&mut self, name: &ObjectKey, look: ReferenceLookup<V>) -> BTreeSet<ObjectKey> {
        let Some((known, users)) = self.entries.get_mut(name) else { return BTreeSet::new() };
        *known = look;
        users.clone()
    }

    /// Takes note of what an object refers to; gives what came into use and what went out of it.
    pub fn set_references(
        &mut self,
        key: &ObjectKey,
        now: BTreeSet<ObjectKey>,
    ) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        let before = self.references_by_user.remove(key).unwrap_or_default();
        let (mut appeared, mut left) = (Vec::new(), Vec::new());
        for name in now.difference(&before) {
            let (_, users) = self.entries.entry(name.clone()).or_insert_with(|| {
                appeared.push(name.clone());
                (ReferenceLookup::Pending, BTreeSet::new())
            });
            users.insert(key.clone());
        }
        for name in before.difference(&now) {
            if let Some((_, users)) = self.entries.get_mut(name) {
                users.remove(key);
                if users.is_empty() {
                    self.entries.remove(name);
                    left.push(name.clone());
                }
            }
        }
        if !now.is_empty() {
            self.references_by_user.insert(key.clone(), now);
        }
        (appeared, left)
    }

    /// Whether everything that an object refers to was looked at once.
    pub fn all_read(&self, key: &ObjectKey) -> bool {
        let used = self.references_by_user.get(key).into_iter().flatten();
        used.filter_map(|name| self.entries.get(name))
            .all(|(look, _)| !matches!(look, ReferenceLookup::Pending))
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
            secret_location: &|_| format!("namespace {}", key.namespace),
            environment: &Environment::default(),
            policy: &rules.policy,
            lookup_secret: &|reference| self.secret_value(key, reference),
            digest_key: &rules.digest_key,
        };
        sources.resolve(spec, None, Vec::new())
    }

    fn secret_value(&self, key: &ObjectKey, reference: &SecretKeyRef) -> SecretLookup {
        match self.entries.get(&secret_name(key, reference)).map(|(look, _)| look) {
            Some(ReferenceLookup::Found(values)) => match values.get(&reference.key) {
                Some(Some(value)) => SecretLookup::Found(value.clone()),
                Some(None) => SecretLookup::Unusable("holds it in bytes that are not text in UTF-8".into()),
                None => SecretLookup::Missing,
            },
            Some(ReferenceLookup::Denied(why)) => SecretLookup::Denied(why.clone()),
            Some(ReferenceLookup::Missing | ReferenceLookup::Pending) | None => SecretLookup::Missing,
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
        let Some(name) = referenced_config_map(key, spec) else {
            let text = spec.inline.as_deref().unwrap_or_default();
            let content = Bundle::from_text(&key.name, text).map(Arc::new);
            return Some(content.map_err(|mistake| invalid("spec.inline", &mistake)));
        };
        let missing = |message: String| Some(Err(Problem::new(Reason::ConfigMapNotFound, message)));
        let place = format!("ConfigMap {:?}", &*name.name);
        match self.lookup(&name)? {
            ReferenceLookup::Pending => None,
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
pub(super) fn referenced_config_map(key: &ObjectKey, spec: &SkillSpec) -> Option<ConfigMapName> {
    let reference = spec.config_map_ref.as_ref()?;
    Some(ObjectKey::new(key.namespace.clone(), reference.name.as_str()))
}

/// The Secrets that a server refers to.
pub(super) fn referenced_secrets(key: &ObjectKey, spec: &McpServerSpec) -> BTreeSet<SecretName> {
    secret_references(spec).map(|reference| secret_name(key, reference)).collect()
}

fn secret_name(key: &ObjectKey, reference: &SecretKeyRef) -> SecretName {
    ObjectKey::new(key.namespace.clone(), reference.name.as_str())
}
