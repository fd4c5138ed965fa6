//! Tracks the Secrets that servers refer to, the ConfigMaps that skills refer to, and their contents. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use secrecy::SecretString;

use crate::resource::bundle::{Bundle, SKILL_FILE, SkillFile, SkillLocation};
use crate::resource::{
    DigestKey, Endpoint, McpServerSpec, ObjectKey, Problem, Reason, SecretKeyRef, SkillContent, SkillSpec,
};
use crate::source::resolve::{ReferenceValues, SecretLookup, secret_references};
use crate::source::{Environment, StdioPolicy};

/// The namespace and name of a Secret.
pub(super) type SecretName = ObjectKey;
/// The values of a Secret by key; `None` for a value that is not text.
pub(super) type SecretValues = BTreeMap<String, Option<SecretString>>;
/// The referenced Secrets.
pub(super) type ReferencedSecrets = References<SecretValues>;

/// The namespace and name of a ConfigMap.
pub(super) type ConfigMapName = ObjectKey;
/// The files of a ConfigMap by key.
pub(super) type ConfigMapFiles = BTreeMap<Arc<str>, SkillFile>;
/// The referenced ConfigMaps.
pub(super) type ReferencedConfigMaps = References<ConfigMapFiles>;

/// The state of a referenced object.
pub(super) enum ReferenceLookup<V> {
    /// It was not read yet.
    Pending,
    /// It was read; holds its content.
    Found(V),
    Missing,
    /// It cannot be read; holds the reason.
    Denied(Problem),
}

/// The settings with which endpoints are resolved.
pub(super) struct EndpointRules {
    pub policy: StdioPolicy,
    pub digest_key: DigestKey,
}

/// The referenced objects, and the objects that refer to them.
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
    /// Returns the names of all referenced objects.
    pub fn names(&self) -> impl Iterator<Item = &ObjectKey> {
        self.entries.keys()
    }

    /// Returns the state of a referenced object; `None` if no object refers to it.
    pub fn lookup(&self, name: &ObjectKey) -> Option<&ReferenceLookup<V>> {
        self.entries.get(name).map(|(lookup, _)| lookup)
    }

    /// Updates the state of a referenced object, and returns the objects that refer to it.
    pub fn update(&mut self, name: &ObjectKey, lookup: ReferenceLookup<V>) -> BTreeSet<ObjectKey> {
        let Some((entry, users)) = self.entries.get_mut(name) else { return BTreeSet::new() };
        *entry = lookup;
        users.clone()
    }

    /// Sets the references of an object. Returns the names that are newly referenced and those that are no longer
    /// referenced.
    pub fn set_references(
        &mut self,
        key: &ObjectKey,
        references: BTreeSet<ObjectKey>,
    ) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        let previous = self.references_by_user.remove(key).unwrap_or_default();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for name in references.difference(&previous) {
            let (_, users) = self.entries.entry(name.clone()).or_insert_with(|| {
                added.push(name.clone());
                (ReferenceLookup::Pending, BTreeSet::new())
            });
            users.insert(key.clone());
        }
        for name in previous.difference(&references) {
            if let Some((_, users)) = self.entries.get_mut(name) {
                users.remove(key);
                if users.is_empty() {
                    self.entries.remove(name);
                    removed.push(name.clone());
                }
            }
        }
        if !references.is_empty() {
            self.references_by_user.insert(key.clone(), references);
        }
        (added, removed)
    }

    /// True if everything that an object refers to was read at least once.
    pub fn all_read(&self, key: &ObjectKey) -> bool {
        let used = self.references_by_user.get(key).into_iter().flatten();
        used.filter_map(|name| self.entries.get(name))
            .all(|(lookup, _)| !matches!(lookup, ReferenceLookup::Pending))
    }
}

impl ReferencedSecrets {
    /// Returns the endpoint of a server.
    ///
    /// Errors: the Secret that cannot be used.
    pub fn resolve(
        &self,
        key: &ObjectKey,
        spec: &McpServerSpec,
        rules: &EndpointRules,
    ) -> Result<Arc<Endpoint>, Problem> {
        let values = ReferenceValues {
            secret_location: &|_| format!("namespace {}", key.namespace),
            environment: &Environment::default(),
            policy: &rules.policy,
            lookup_secret: &|reference| self.secret_value(key, reference),
            digest_key: &rules.digest_key,
        };
        values.resolve(spec, None, Vec::new())
    }

    fn secret_value(&self, key: &ObjectKey, reference: &SecretKeyRef) -> SecretLookup {
        match self.entries.get(&secret_name(key, reference)).map(|(lookup, _)| lookup) {
            Some(ReferenceLookup::Found(values)) => match values.get(&reference.key) {
                Some(Some(value)) => SecretLookup::Found(value.clone()),
                Some(None) => SecretLookup::Unusable("has a value for it that is not valid UTF-8".into()),
                None => SecretLookup::Missing,
            },
            Some(ReferenceLookup::Denied(problem)) => SecretLookup::Denied(problem.clone()),
            Some(ReferenceLookup::Missing | ReferenceLookup::Pending) | None => SecretLookup::Missing,
        }
    }
}

impl ReferencedConfigMaps {
    /// Returns the content of a skill, or the reason it is not available; `None` if its ConfigMap was not read yet.
    pub fn content(&self, key: &ObjectKey, spec: &SkillSpec) -> Option<SkillContent> {
        let Some(name) = referenced_config_map(key, spec) else {
            let text = spec.inline.as_deref().unwrap_or_default();
            let files = BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]);
            let location = SkillLocation::Text("spec.inline".to_owned());
            return Some(Bundle::from_source(&key.name, &location, files, &[]).map(Arc::new));
        };
        let missing = |message: String| Some(Err(Problem::new(Reason::ConfigMapNotFound, message)));
        let location = format!("ConfigMap {:?}", &*name.name);
        match self.lookup(&name)? {
            ReferenceLookup::Pending => None,
            ReferenceLookup::Missing => missing(format!("{location} is not in namespace {}", key.namespace)),
            ReferenceLookup::Denied(problem) => Some(Err(problem.clone())),
            ReferenceLookup::Found(keys) if !keys.contains_key(SKILL_FILE) => {
                missing(format!("{location} of namespace {} has no key {SKILL_FILE}", key.namespace))
            }
            ReferenceLookup::Found(keys) => {
                let location = SkillLocation::Text(location);
                Some(Bundle::from_source(&key.name, &location, keys.clone(), &[]).map(Arc::new))
            }
        }
    }
}

/// Returns the ConfigMap that a skill refers to.
pub(super) fn referenced_config_map(key: &ObjectKey, spec: &SkillSpec) -> Option<ConfigMapName> {
    let reference = spec.config_map_ref.as_ref()?;
    Some(ObjectKey::new(key.namespace.clone(), reference.name.as_str()))
}

/// Returns the Secrets that a server refers to.
pub(super) fn referenced_secrets(key: &ObjectKey, spec: &McpServerSpec) -> BTreeSet<SecretName> {
    secret_references(spec).map(|reference| secret_name(key, reference)).collect()
}

fn secret_name(key: &ObjectKey, reference: &SecretKeyRef) -> SecretName {
    ObjectKey::new(key.namespace.clone(), reference.name.as_str())
}
