use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap as ApiConfigMap, Secret as ApiSecret};
use kube::core::{ApiResource, DynamicObject, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::object_store::ObjectStore;
use super::references::{ConfigMapFiles, ConfigMapName, ReferenceLookup, SecretName, SecretValues};
use super::watch::{WatchEvent, kind_config, object_config, watch_forever};
use super::watch_error::{self, WatchError};
use super::watch_message::{WatchId, WatchMessage};
use crate::net::SupervisedTasks;
use crate::resource::bundle::{SkillFile, is_part_of_skill};
use crate::resource::{Desired, DigestKey, McpServer, ObjectKey, Skill};
use crate::source::{SourceMetrics, StdioPolicy, StoredStatuses};

/// The number of messages that may be queued while the store is updated: a list arrives faster than it is handled.
const MAX_QUEUED_MESSAGES: usize = 1_024;
/// The number of messages that are handled before the result is published.
const MAX_BATCH_SIZE: usize = 256;

/// The objects to watch, and the settings for them.
#[derive(Clone)]
pub(super) struct Options {
    /// The client of the API server.
    pub(super) client: Client,
    /// The address of the API server, for messages.
    pub(super) server: Arc<str>,
    /// The watched namespaces; empty for all namespaces.
    pub(super) namespaces: Vec<Arc<str>>,
    /// The policy for stdio servers.
    pub(super) policy: StdioPolicy,
    /// The key of connection digests.
    pub(super) digest_key: DigestKey,
    /// The counters of restarted watches.
    pub(super) metrics: SourceMetrics,
}

/// Watches until `cancel` is cancelled. Publishes the declared objects on the first channel, whose first value is not
/// synced, and the stored statuses of the objects on the second channel, which is never behind the first.
pub(super) fn start(
    options: Options,
    tasks: &SupervisedTasks,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, channel::Receiver<StoredStatuses>) {
    let (desired_sender, desired_receiver) = channel::channel(Arc::default());
    let (statuses_sender, statuses_receiver) = channel::channel(StoredStatuses::default());
    let (sender, messages) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let spawner = WatchSpawner { options, sender, tasks: tasks.clone(), cancel: cancel.clone() };
    // Not started again after a panic: objects are missing until everything is listed again, which would be a removal.
    tasks.spawn("the collection of the watched objects", async move {
        cancel.run_until_cancelled(run(spawner, messages, desired_sender, statuses_sender)).await;
    });
    (desired_receiver, statuses_receiver)
}

async fn run(
    spawner: WatchSpawner,
    mut messages: mpsc::Receiver<WatchMessage>,
    desired_sender: channel::Sender<Arc<Desired>>,
    statuses_sender: channel::Sender<StoredStatuses>,
) {
    let Options { namespaces, policy, digest_key, .. } = &spawner.options;
    let mut store = ObjectStore::new(policy.clone(), digest_key.clone());
    let scopes: Vec<_> = match namespaces.as_slice() {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    };
    for scope in scopes {
        for watch in [WatchId::Servers(scope.clone()), WatchId::Skills(scope)] {
            store.add_watch(watch.clone());
            spawner.watch_kind(watch);
        }
    }
    let mut secrets: HashMap<SecretName, DropGuard> = HashMap::new();
    let mut config_maps: HashMap<ConfigMapName, DropGuard> = HashMap::new();
    let mut batch = Vec::with_capacity(MAX_BATCH_SIZE);
    while messages.recv_many(&mut batch, MAX_BATCH_SIZE).await > 0 {
        for message in batch.drain(..) {
            store.handle(message);
        }
        let (desired, statuses) = store.publish();
        if let Some(statuses) = statuses {
            statuses_sender.send_replace(statuses);
        }
        if let Some(desired) = desired {
            desired_sender.send_replace(desired);
        }
        // A watch ends when its guard is dropped from the map.
        secrets.retain(|name, _| store.uses_secret(name));
        for name in store.secrets() {
            if !secrets.contains_key(name) {
                secrets.insert(name.clone(), spawner.watch_secret(name.clone()));
            }
        }
        config_maps.retain(|name, _| store.uses_config_map(name));
        for name in store.config_maps() {
            if !config_maps.contains_key(name) {
                config_maps.insert(name.clone(), spawner.watch_config_map(name.clone()));
            }
        }
    }
}

/// Spawns the tasks of the watches.
struct WatchSpawner {
    options: Options,
    sender: mpsc::Sender<WatchMessage>,
    tasks: SupervisedTasks,
    cancel: CancellationToken,
}

impl WatchSpawner {
    /// Watches all objects of a kind, in one namespace or in all.
    fn watch_kind(&self, watch: WatchId) {
        let (resource, scope) = match &watch {
            WatchId::Servers(scope) => (ApiResource::erase::<McpServer>(&()), scope.clone()),
            WatchId::Skills(scope) => (ApiResource::erase::<Skill>(&()), scope.clone()),
            WatchId::Secret(_) | WatchId::ConfigMap(_) => return,
        };
        let client = self.options.client.clone();
        // Dynamic objects, not the types themselves: one object that does not decode must not hide the others.
        let api: Api<DynamicObject> = match &scope {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let failures = self.failures();
        let cancel = self.cancel.clone();
        let sender = self.sender.clone();
        self.tasks.spawn(format!("the watch of {}", watch.plural()), async move {
            let watching = watch_forever(api, kind_config(), sender, move |event| {
                let servers = matches!(watch, WatchId::Servers(_));
                match event {
                    WatchEvent::Object(object) if servers => WatchMessage::Server(Box::new(object)),
                    WatchEvent::Object(object) => WatchMessage::Skill(Box::new(object)),
                    WatchEvent::Deleted(key) if servers => WatchMessage::ServerDeleted(key),
                    WatchEvent::Deleted(key) => WatchMessage::SkillDeleted(key),
                    WatchEvent::Listed => WatchMessage::Listed(watch.clone()),
                    WatchEvent::Failed(error) => failures.message(watch.clone(), &error),
                }
            });
            cancel.run_until_cancelled(watching).await;
        });
    }

    fn failures(&self) -> WatchFailures {
        WatchFailures { server: self.options.server.clone(), metrics: self.options.metrics.clone() }
    }

    /// Watches one Secret until the guard is dropped.
    fn watch_secret(&self, name: SecretName) -> DropGuard {
        let watch = WatchId::Secret(name.clone());
        self.watch_object(&name.clone(), watch, move |secret: Option<ApiSecret>| {
            WatchMessage::Secret(
                name.clone(),
                secret
                    .map_or(ReferenceLookup::Missing, |secret| ReferenceLookup::Found(secret_values(secret))),
            )
        })
    }

    /// Watches one ConfigMap until the guard is dropped.
    fn watch_config_map(&self, name: ConfigMapName) -> DropGuard {
        let watch = WatchId::ConfigMap(name.clone());
        self.watch_object(&name.clone(), watch, move |map: Option<ApiConfigMap>| {
            WatchMessage::ConfigMap(
                name.clone(),
                map.map_or(ReferenceLookup::Missing, |map| ReferenceLookup::Found(config_map_files(map))),
            )
        })
    }

    /// Watches one object by its name. `to_message` converts its state, or `None` once it is deleted, into a message.
    fn watch_object<K>(
        &self,
        name: &ObjectKey,
        watch: WatchId,
        to_message: impl Fn(Option<K>) -> WatchMessage + Send + Sync + 'static,
    ) -> DropGuard
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api: Api<K> = Api::namespaced(self.options.client.clone(), &name.namespace);
        let config = object_config(&name.name);
        let failures = self.failures();
        let cancel = self.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let sender = self.sender.clone();
        self.tasks.spawn(format!("a watch of {}", watch.plural()), async move {
            let watching = watch_forever(api, config, sender, move |event| match event {
                WatchEvent::Object(object) => to_message(Some(object)),
                WatchEvent::Deleted(_) => to_message(None),
                WatchEvent::Listed => WatchMessage::Listed(watch.clone()),
                WatchEvent::Failed(error) => failures.message(watch.clone(), &error),
            });
            cancel.run_until_cancelled(watching).await;
        });
        guard
    }
}

/// Reports and counts the failures of a watch that restarts.
struct WatchFailures {
    server: Arc<str>,
    metrics: SourceMetrics,
}

impl WatchFailures {
    fn message(&self, watch: WatchId, error: &WatchError) -> WatchMessage {
        self.metrics.record_watch_restart(watch.plural(), watch_error::metric_reason(error));
        let problem = watch_error::watch_problem(error, &watch, &self.server);
        WatchMessage::Failed(watch, problem)
    }
}

/// Returns the keys of a ConfigMap, text and binary, that may be files of a skill.
fn config_map_files(map: ApiConfigMap) -> ConfigMapFiles {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
    let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0));
    let files = text.chain(bytes).filter(|(key, _)| is_part_of_skill(key));
    files.map(|(key, bytes)| (key.into(), SkillFile::new(bytes, false))).collect()
}

/// Returns the values of a Secret; `None` for a value that is not text.
fn secret_values(secret: ApiSecret) -> SecretValues {
    let text = |bytes| String::from_utf8(bytes).ok().map(SecretString::from);
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
}
