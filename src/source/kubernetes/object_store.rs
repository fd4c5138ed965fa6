//! What the watches have told, as the next [`Desired`]. Pure.

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

/// Everything that is known of what is declared.
pub(super) struct ObjectStore {
    rules: EndpointRules,
    servers: KindStore<McpServerSpec, McpServerStatus>,
    skills: KindStore<SkillSpec, SkillStatus>,
    /// Servers whose newest form waits for a first look at a Secret.
    pending: HashMap<ObjectKey, LatestObject<McpServerSpec>>,
    secrets: ReferencedSecrets,
    /// What the skills hold, as far as it was looked at.
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

    /// Nothing is complete before this watch has answered.
    pub fn add_watch(&mut self, watch: WatchId) {
        self.watches.insert(watch, WatchState::default());
    }

    /// The Secrets that are referred to.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        self.secrets.names()
    }

    /// Whether a Secret is one of them.
    pub fn uses_secret(&self, name: &SecretName) -> bool {
        self.secrets.lookup(name).is_some()
    }

    /// The ConfigMaps that are referred to.
    pub fn config_maps(&self) -> impl Iterator<Item = &ConfigMapName> {
        self.config_maps.names()
    }

    /// Whether a ConfigMap is one of them.
    pub fn uses_config_map(&self, name: &ConfigMapName) -> bool {
        self.config_maps.lookup(name).is_some()
    }

    /// Takes up one piece of news: costs the objects that it is about.
    pub fn handle(&mut self, news: WatchMessage) {
        match news {
            WatchMessage::Server(object) => {
                let (newest, status) = decode::<McpServerSpec>(*object);
                let key = newest.meta.key.clone();
                self.statuses_changed |= self.servers.set_status(&key, status);
                if self.servers.is_terminating(&key) {
                    self.remove_server(&key);
                } else {
                    self.pending.insert(key.clone(), newest);
                    self.update_server(&key);
                }
            }
            WatchMessage::Skill(object) => {
                let (newest, status) = decode::<SkillSpec>(*object);
                let key = newest.meta.key.clone();
                self.statuses_changed |= self.skills.set_status(&key, status);
                if self.skills.is_terminating(&key) {
                    self.skills.objects.remove(&key);
                } else {
                    self.skills.upsert(newest, |_| None);
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
            WatchMessage::Secret(name, look) => self.update_secret(&name, look),
            WatchMessage::ConfigMap(name, look) => self.update_config_map(&name, look),
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
                // Not awaited any longer: what cannot be read must not hold up the others.
                let denied = |missing| {
                    let forbidden = problem.reason == Reason::NotPermitted;
                    let reason = if forbidden { Reason::NotPermitted } else { missing };
                    Problem::new(reason, problem.message.clone())
                };
                match &watch {
                    WatchId::Secret(name)
                        if matches!(self.secrets.lookup(name), Some(ReferenceLookup::Pending)) =>
                    {
                        self.update_secret(name, ReferenceLookup::Denied(denied(Reason::SecretNotFound)));
                    }
                    WatchId::ConfigMap(name)
                        if matches!(self.config_maps.lookup(name), Some(ReferenceLookup::Pending)) =>
                    {
                        self.update_config_map(
                            name,
                            ReferenceLookup::Denied(denied(Reason::ConfigMapNotFound)),
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

    /// What follows from the news, if anything: what is declared, and the statuses.
    pub fn publish(&mut self) -> (Option<Arc<Desired>>, Option<StoredStatuses>) {
        let source = self.source_state();
        let told = &self.published;
        let unchanged = *told.source == source
            && told.servers.ptr_eq(&self.servers.objects)
            && told.skills.ptr_eq(&self.skills.objects)
            && told.skill_contents.ptr_eq(&self.contents);
        let desired = (!unchanged).then(|| {
            let source = if *told.source == source { told.source.clone() } else { Arc::new(source) };
            let (servers, skills) = (self.servers.objects.clone(), self.skills.objects.clone());
            Arc::new(Desired {
                servers,
                skills,
                skill_contents: self.contents.clone(),
                source,
                ..Desired::default()
            })
        });
        self.published = desired.clone().unwrap_or_else(|| told.clone());
        let shown = std::mem::take(&mut self.statuses_changed).then(|| StoredStatuses {
            servers: self.servers.statuses.clone(),
            skills: self.skills.statuses.clone(),
        });
        (desired, shown)
    }

    /// Complete once every watch of servers has listed, but for those that are forbidden: another namespace
    /// must not wait for a permission. Skills and Secrets are waited for one by one.
    fn source_state(&self) -> SourceState {
        let servers = || self.watches.iter().filter(|(watch, _)| matches!(watch, WatchId::Servers(_)));
        let forbidden =
            |state: &WatchState| matches!(&state.problem, Some(why) if why.reason == Reason::NotPermitted);
        let synced = servers().any(|(_, state)| state.listed)
            && servers().all(|(_, state)| state.listed || forbidden(state))
            && self.pending.is_empty();
        let skills = || self.watches.iter().filter(|(watch, _)| matches!(watch, WatchId::Skills(_)));
        let skills_synced =
            skills().any(|(_, state)| state.listed) && skills().all(|(_, state)| state.listed);
        // One API server that is away is one fault, not one for each watch.
        let mut faults: Vec<SourceProblem> = Vec::new();
        for problem in self.watches.values().filter_map(|state| state.problem.clone()) {
            let fault = SourceProblem::new(None, problem);
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        let told = &self.published.source;
        SourceState {
            synced: told.synced || synced,
            skills_synced: told.skills_synced || skills_synced,
            problems: faults,
            empty_scope: self.empty_namespaces(),
            ..SourceState::default()
        }
    }

    /// Where nothing is declared, though everything was listed there.
    fn empty_namespaces(&self) -> Option<String> {
        let listed = |watch| self.watches.get(&watch).is_some_and(|state| state.listed);
        let empty = |scope: &Option<Arc<str>>| {
            let bare = match scope {
                None => self.servers.is_empty() && self.skills.is_empty(),
                Some(namespace) => {
                    self.servers.is_namespace_empty(namespace) && self.skills.is_namespace_empty(namespace)
                }
            };
            bare && listed(WatchId::Servers(scope.clone())) && listed(WatchId::Skills(scope.clone()))
        };
        let scopes = self.watches.keys().filter_map(|watch| match watch {
            WatchId::Servers(scope) => Some(scope),
            _ => None,
        });
        let empty: Vec<&str> =
            scopes.filter(|scope| empty(scope)).map(|scope| scope.as_deref().unwrap_or_default()).collect();
        match empty.as_slice() {
            [] => None,
            [""] => Some("any namespace".to_owned()),
            [one] => Some(format!("namespace {one}")),
            some => Some(format!("namespaces {}", some.join(", "))),
        }
    }

    /// Takes up the newest form of a server, unless it refers to a Secret that was not looked at yet.
    fn update_server(&mut self, key: &ObjectKey) {
        let Some(newest) = self.pending.get(key) else { return };
        let last = self.servers.objects.get(key).filter(|last| last.meta.uid == newest.meta.uid);
        let in_force = newest.spec.as_ref().ok().or_else(|| last.and_then(|last| last.spec.as_deref()));
        self.set_secret_references(
            key,
            in_force.map(|spec| referenced_secrets(key, spec)).unwrap_or_default(),
        );
        if self.secrets.all_read(key)
            && let Some(newest) = self.pending.remove(key)
        {
            let (secrets, rules) = (&self.secrets, &self.rules);
            self.servers.upsert(newest, |spec| Some(secrets.resolve(key, spec, rules)));
        }
    }

    /// A server is declared no more.
    fn remove_server(&mut self, key: &ObjectKey) {
        self.servers.objects.remove(key);
        self.pending.remove(key);
        self.set_secret_references(key, BTreeSet::new());
    }

    fn update_secret(&mut self, name: &SecretName, look: ReferenceLookup<SecretValues>) {
        for user in self.secrets.update(name, look) {
            if self.pending.contains_key(&user) {
                self.update_server(&user);
            } else {
                let (secrets, rules) = (&self.secrets, &self.rules);
                self.servers.update_endpoint(&user, |spec| secrets.resolve(&user, spec, rules));
            }
        }
    }

    /// Takes up what a skill holds now, if it is known. One whose ConfigMap was not looked at yet keeps what
    /// it had.
    fn update_skill(&mut self, key: &ObjectKey) {
        let skill = self.skills.objects.get(key).cloned();
        let spec = skill.as_ref().and_then(|skill| skill.spec.as_deref());
        let (appeared, left) = self.config_maps.set_references(
            key,
            spec.and_then(|spec| referenced_config_map(key, spec)).into_iter().collect(),
        );
        for name in appeared {
            self.watches.insert(WatchId::ConfigMap(name), WatchState::default());
        }
        for name in left {
            self.watches.remove(&WatchId::ConfigMap(name));
        }
        let Some(spec) = spec else {
            self.contents.remove(key);
            return;
        };
        if let Some(now) = self.config_maps.content(key, spec)
            && self.contents.get(key) != Some(&now)
        {
            self.contents.insert(key.clone(), now);
        }
    }

    fn update_config_map(&mut self, name: &ConfigMapName, look: ReferenceLookup<ConfigMapFiles>) {
        for user in self.config_maps.update(name, look) {
            self.update_skill(&user);
        }
    }

    fn set_secret_references(&mut self, key: &ObjectKey, now: BTreeSet<SecretName>) {
        let (appeared, left) = self.secrets.set_references(key, now);
        for name in appeared {
            self.watches.insert(WatchId::Secret(name), WatchState::default());
        }
        for name in left {
            self.watches.remove(&WatchId::Secret(name));
        }
    }
}
