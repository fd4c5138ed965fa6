//! Builds the next [`Desired`] from the messages of the watches. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use imbl::OrdMap;

use kind_store::KindStore;

use super::object::{LatestObject, decode};
use super::references::{
    ConfigMapFiles, ConfigMapName, EndpointRules, ReferenceLookup, ReferencedConfigMaps, ReferencedSecrets,
    SecretName, SecretValues, referenced_config_map, referenced_secrets,
};
use super::watch_message::{WatchId, WatchMessage};
use crate::resource::{
    Desired, DigestKey, McpServerSpec, McpServerStatus, ObjectKey, Problem, Reason, SkillContent, SkillSpec,
    SkillStatus, SourceProblem, SourceState,
};
use crate::source::{StdioPolicy, StoredStatuses};

mod kind_store;
#[cfg(test)]
mod tests;

/// The current state of all watched objects.
pub(super) struct ObjectStore {
    rules: EndpointRules,
    servers: KindStore<McpServerSpec, McpServerStatus>,
    skills: KindStore<SkillSpec, SkillStatus>,
    /// Servers whose latest declaration waits for the first read of a Secret.
    pending: HashMap<ObjectKey, LatestObject<McpServerSpec>>,
    secrets: ReferencedSecrets,
    /// The contents of the skills that were read.
    contents: OrdMap<ObjectKey, SkillContent>,
    config_maps: ReferencedConfigMaps,
    watches: BTreeMap<WatchId, WatchState>,
    published: Arc<Desired>,
    statuses_changed: bool,
}

#[derive(Default)]
struct WatchState {
    listed: bool,
    problem: Option<Problem>,
}

impl ObjectStore {
    pub fn new(policy: StdioPolicy, key: DigestKey) -> Self {
        Self {
            rules: EndpointRules { policy, digest_key: key },
            servers: KindStore::default(),
            skills: KindStore::default(),
            pending: HashMap::new(),
            secrets: ReferencedSecrets::default(),
            contents: OrdMap::new(),
            config_maps: ReferencedConfigMaps::default(),
            watches: BTreeMap::new(),
            published: Arc::default(),
            statuses_changed: false,
        }
    }

    /// Adds a watch. The state is not complete before this watch has listed.
    pub fn add_watch(&mut self, watch: WatchId) {
        self.watches.insert(watch, WatchState::default());
    }

    /// Returns the referenced Secrets.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        self.secrets.names()
    }

    /// True if a Secret is referenced.
    pub fn uses_secret(&self, name: &SecretName) -> bool {
        self.secrets.lookup(name).is_some()
    }

    /// Returns the referenced ConfigMaps.
    pub fn config_maps(&self) -> impl Iterator<Item = &ConfigMapName> {
        self.config_maps.names()
    }

    /// True if a ConfigMap is referenced.
    pub fn uses_config_map(&self, name: &ConfigMapName) -> bool {
        self.config_maps.lookup(name).is_some()
    }

    /// Handles one message. The cost is proportional to the objects that it concerns.
    pub fn handle(&mut self, message: WatchMessage) {
        match message {
            WatchMessage::Server(object) => {
                let (latest, status) = decode::<McpServerSpec>(*object);
                let key = latest.meta.key.clone();
                self.statuses_changed |= self.servers.set_status(&key, status);
                if self.servers.is_terminating(&key) {
                    self.remove_server(&key);
                } else {
                    self.pending.insert(key.clone(), latest);
                    self.update_server(&key);
                }
            }
            WatchMessage::Skill(object) => {
                let (latest, status) = decode::<SkillSpec>(*object);
                let key = latest.meta.key.clone();
                self.statuses_changed |= self.skills.set_status(&key, status);
                if self.skills.is_terminating(&key) {
                    self.skills.objects.remove(&key);
                } else {
                    self.skills.upsert(latest, |_| None);
                }
                self.update_skill(&key);
            }
            WatchMessage::ServerDeleted(key) => {
                self.statuses_changed |= self.servers.statuses.remove(&key).is_some();
                self.remove_server(&key);
            }
            WatchMessage::SkillDeleted(key) => {
                self.statuses_changed |= self.skills.statuses.remove(&key).is_some();
                self.skills.objects.remove(&key);
                self.update_skill(&key);
            }
            WatchMessage::Secret(name, lookup) => self.update_secret(&name, lookup),
            WatchMessage::ConfigMap(name, lookup) => self.update_config_map(&name, lookup),
            WatchMessage::Listed(watch) => {
                match &watch {
                    WatchId::Secret(name)
                        if matches!(
                            self.secrets.lookup(name),
                            Some(ReferenceLookup::Pending | ReferenceLookup::Denied(_))
                        ) =>
                    {
                        self.update_secret(name, ReferenceLookup::Missing);
                    }
                    WatchId::ConfigMap(name)
                        if matches!(
                            self.config_maps.lookup(name),
                            Some(ReferenceLookup::Pending | ReferenceLookup::Denied(_))
                        ) =>
                    {
                        self.update_config_map(name, ReferenceLookup::Missing);
                    }
                    _ => {}
                }
                if let Some(state) = self.watches.get_mut(&watch) {
                    *state = WatchState { listed: true, problem: None };
                }
            }
            WatchMessage::Failed(watch, problem) => {
                // No longer pending: an object that cannot be read must not delay the others.
                let to_denied = |missing| {
                    let forbidden = problem.reason == Reason::NotPermitted;
                    let reason = if forbidden { Reason::NotPermitted } else { missing };
                    Problem::new(reason, problem.message.clone())
                };
                match &watch {
                    WatchId::Secret(name)
                        if matches!(self.secrets.lookup(name), Some(ReferenceLookup::Pending)) =>
                    {
                        self.update_secret(name, ReferenceLookup::Denied(to_denied(Reason::SecretNotFound)));
                    }
                    WatchId::ConfigMap(name)
                        if matches!(self.config_maps.lookup(name), Some(ReferenceLookup::Pending)) =>
                    {
                        self.update_config_map(
                            name,
                            ReferenceLookup::Denied(to_denied(Reason::ConfigMapNotFound)),
                        );
                    }
                    _ => {}
                }
                if let Some(state) = self.watches.get_mut(&watch) {
                    state.problem = Some(problem);
                }
            }
        }
    }

    /// Returns the declared objects and the stored statuses, each if they changed since the last call.
    pub fn publish(&mut self) -> (Option<Arc<Desired>>, Option<StoredStatuses>) {
        let source = self.source_state();
        let published = &self.published;
        let unchanged = *published.source == source
            && published.servers.ptr_eq(&self.servers.objects)
            && published.skills.ptr_eq(&self.skills.objects)
            && published.skill_contents.ptr_eq(&self.contents);
        let desired = (!unchanged).then(|| {
            let source =
                if *published.source == source { published.source.clone() } else { Arc::new(source) };
            let (servers, skills) = (self.servers.objects.clone(), self.skills.objects.clone());
            Arc::new(Desired {
                servers,
                skills,
                skill_contents: self.contents.clone(),
                source,
                ..Desired::default()
            })
        });
        self.published = desired.clone().unwrap_or_else(|| published.clone());
        let statuses = std::mem::take(&mut self.statuses_changed).then(|| StoredStatuses {
            servers: self.servers.statuses.clone(),
            skills: self.skills.statuses.clone(),
        });
        (desired, statuses)
    }

    /// Returns the state of the source. It is complete once every watch of servers has listed, except those that are
    /// forbidden: a namespace must not wait for a permission of another one. Skills and Secrets are waited for
    /// individually.
    fn source_state(&self) -> SourceState {
        let servers = || self.watches.iter().filter(|(watch, _)| matches!(watch, WatchId::Servers(_)));
        let forbidden = |state: &WatchState| {
            state.problem.as_ref().is_some_and(|problem| problem.reason == Reason::NotPermitted)
        };
        let synced = servers().any(|(_, state)| state.listed)
            && servers().all(|(_, state)| state.listed || forbidden(state))
            && self.pending.is_empty();
        let skills = || self.watches.iter().filter(|(watch, _)| matches!(watch, WatchId::Skills(_)));
        let skills_synced =
            skills().any(|(_, state)| state.listed) && skills().all(|(_, state)| state.listed);
        // An unreachable API server is one problem, not one for each watch.
        let mut problems: Vec<SourceProblem> = Vec::new();
        for problem in self.watches.values().filter_map(|state| state.problem.clone()) {
            let problem = SourceProblem::new(None, problem);
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let published = &self.published.source;
        SourceState {
            synced: published.synced || synced,
            skills_synced: published.skills_synced || skills_synced,
            problems,
            empty_scope: self.empty_namespaces(),
            ..SourceState::default()
        }
    }

    /// Returns the namespaces in which nothing is declared although everything was listed.
    fn empty_namespaces(&self) -> Option<String> {
        let is_listed = |watch| self.watches.get(&watch).is_some_and(|state| state.listed);
        let is_empty = |scope: &Option<Arc<str>>| {
            let nothing_declared = match scope {
                None => self.servers.is_empty() && self.skills.is_empty(),
                Some(namespace) => {
                    self.servers.is_namespace_empty(namespace) && self.skills.is_namespace_empty(namespace)
                }
            };
            nothing_declared
                && is_listed(WatchId::Servers(scope.clone()))
                && is_listed(WatchId::Skills(scope.clone()))
        };
        let scopes = self.watches.keys().filter_map(|watch| match watch {
            WatchId::Servers(scope) => Some(scope),
            _ => None,
        });
        let empty: Vec<&str> = scopes
            .filter(|scope| is_empty(scope))
            .map(|scope| scope.as_deref().unwrap_or_default())
            .collect();
        match empty.as_slice() {
            [] => None,
            [""] => Some("any namespace".to_owned()),
            [name] => Some(format!("namespace {name}")),
            names => Some(format!("namespaces {}", names.join(", "))),
        }
    }

    /// Applies the latest declaration of a server, unless it refers to a Secret that was not read yet.
    fn update_server(&mut self, key: &ObjectKey) {
        let Some(latest) = self.pending.get(key) else { return };
        let last = self.servers.objects.get(key).filter(|last| last.meta.uid == latest.meta.uid);
        let spec_in_force = latest.spec.as_ref().ok().or_else(|| last.and_then(|last| last.spec.as_deref()));
        self.set_secret_references(
            key,
            spec_in_force.map(|spec| referenced_secrets(key, spec)).unwrap_or_default(),
        );
        if self.secrets.all_read(key)
            && let Some(latest) = self.pending.remove(key)
        {
            let (secrets, rules) = (&self.secrets, &self.rules);
            self.servers.upsert(latest, |spec| Some(secrets.resolve(key, spec, rules)));
        }
    }

    /// Removes a server that is no longer declared.
    fn remove_server(&mut self, key: &ObjectKey) {
        self.servers.objects.remove(key);
        self.pending.remove(key);
        self.set_secret_references(key, BTreeSet::new());
    }

    fn update_secret(&mut self, name: &SecretName, lookup: ReferenceLookup<SecretValues>) {
        for user in self.secrets.update(name, lookup) {
            if self.pending.contains_key(&user) {
                self.update_server(&user);
            } else {
                let (secrets, rules) = (&self.secrets, &self.rules);
                self.servers.update_endpoint(&user, |spec| secrets.resolve(&user, spec, rules));
            }
        }
    }

    /// Updates the content of a skill, if it is available. A skill whose ConfigMap was not read yet keeps its earlier
    /// content.
    fn update_skill(&mut self, key: &ObjectKey) {
        let skill = self.skills.objects.get(key).cloned();
        let spec = skill.as_ref().and_then(|skill| skill.spec.as_deref());
        let (added, removed) = self.config_maps.set_references(
            key,
            spec.and_then(|spec| referenced_config_map(key, spec)).into_iter().collect(),
        );
        for name in added {
            self.watches.insert(WatchId::ConfigMap(name), WatchState::default());
        }
        for name in removed {
            self.watches.remove(&WatchId::ConfigMap(name));
        }
        let Some(spec) = spec else {
            self.contents.remove(key);
            return;
        };
        if let Some(content) = self.config_maps.content(key, spec)
            && self.contents.get(key) != Some(&content)
        {
            self.contents.insert(key.clone(), content);
        }
    }

    fn update_config_map(&mut self, name: &ConfigMapName, lookup: ReferenceLookup<ConfigMapFiles>) {
        for user in self.config_maps.update(name, lookup) {
            self.update_skill(&user);
        }
    }

    fn set_secret_references(&mut self, key: &ObjectKey, references: BTreeSet<SecretName>) {
        let (added, removed) = self.secrets.set_references(key, references);
        for name in added {
            self.watches.insert(WatchId::Secret(name), WatchState::default());
        }
        for name in removed {
            self.watches.remove(&WatchId::Secret(name));
        }
    }
}
