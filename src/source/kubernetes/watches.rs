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
use tokio_util::task::TaskTracker;

use super::object_store::ObjectStore;
use super::references::{ConfigMapFiles, ConfigMapName, ReferenceLookup, SecretName, SecretValues};
use super::watch::{WatchEvent, kind_config, object_config, watch_forever};
use super::watch_error::{self, WatchError};
use super::watch_message::{WatchId, WatchMessage};
use crate::resource::bundle::{SkillFile, is_part_of_skill};
use crate::resource::{Desired, DigestKey, McpServer, ObjectKey, Skill};
use crate::source::{SourceMetrics, StdioPolicy, StoredStatuses};

/// News that waits while the book is written: a list comes in faster than it is taken up.
const MAX_QUEUED_MESSAGES: usize = 1_024;
/// News that is taken up before anything follows from it.
const MAX_BATCH_SIZE: usize = 256;

/// What is watched, and what it may do.
#[derive(Clone)]
pub(super) struct Options {
    /// The API server.
    pub(super) client: Client,
    /// Its address, for messages.
    pub(super) server: Arc<str>,
    /// The namespaces that are watched; none is all of them.
    pub(super) namespaces: Vec<Arc<str>>,
    /// Which stdio servers may run.
    pub(super) policy: StdioPolicy,
    /// The key of connection digests.
    pub(super) digest_key: DigestKey,
    /// Where watches that begin anew are counted.
    pub(super) metrics: SourceMetrics,
}

/// Watches until `cancel`. What is declared is in the first channel, at first nothing that is synced; what
/// the objects' statuses are there is in the second, which is never behind the first.
pub(super) fn start(
    options: Options,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, channel::Receiver<StoredStatuses>) {
    let (desired, declared) = channel::channel(Arc::default());
    let (show, shown) = channel::channel(StoredStatuses::default());
    let (tell, news) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let watches = WatchSpawner { options, sender: tell, tasks: tracker.clone(), cancel: cancel.clone() };
    tracker.spawn(async move {
        cancel.run_until_cancelled(run(watches, news, desired, show)).await;
    });
    (declared, shown)
}

async fn run(
    watches: WatchSpawner,
    mut news: mpsc::Receiver<WatchMessage>,
    desired: channel::Sender<Arc<Desired>>,
    show: channel::Sender<StoredStatuses>,
) {
    let Options { namespaces, policy, digest_key: key, .. } = &watches.options;
    let mut book = ObjectStore::new(policy.clone(), key.clone());
    let scopes: Vec<_> = match namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    for scope in scopes {
        for watch in [WatchId::Servers(scope.clone()), WatchId::Skills(scope)] {
            book.add_watch(watch.clone());
            watches.watch_kind(watch);
        }
    }
    let mut secrets: HashMap<SecretName, DropGuard> = HashMap::new();
    let mut config_maps: HashMap<ConfigMapName, DropGuard> = HashMap::new();
    let mut batch = Vec::with_capacity(MAX_BATCH_SIZE);
    while news.recv_many(&mut batch, MAX_BATCH_SIZE).await > 0 {
        for news in batch.drain(..) {
            book.handle(news);
        }
        let (now, statuses) = book.publish();
        if let Some(statuses) = statuses {
            show.send_replace(statuses);
        }
        if let Some(now) = now {
            desired.send_replace(now);
        }
        // A watch that is dropped from the map ends.
        secrets.retain(|name, _| book.uses_secret(name));
        for name in book.secrets() {
            if !secrets.contains_key(name) {
                secrets.insert(name.clone(), watches.watch_secret(name.clone()));
            }
        }
        config_maps.retain(|name, _| book.uses_config_map(name));
        for name in book.config_maps() {
            if !config_maps.contains_key(name) {
                config_maps.insert(name.clone(), watches.watch_config_map(name.clone()));
            }
        }
    }
}

/// Starts watches.
struct WatchSpawner {
    options: Options,
    sender: mpsc::Sender<WatchMessage>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl WatchSpawner {
    /// All objects of a kind, in one namespace or in all.
    fn watch_kind(&self, watch: WatchId) {
        let (resource, scope) = match &watch {
            WatchId::Servers(scope) => (ApiResource::erase::<McpServer>(&()), scope.clone()),
            WatchId::Skills(scope) => (ApiResource::erase::<Skill>(&()), scope.clone()),
            WatchId::Secret(_) | WatchId::ConfigMap(_) => return,
        };
        let client = self.options.client.clone();
        // Not the types themselves: one object that does not decode must not hide the others.
        let api: Api<DynamicObject> = match &scope {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let troubles = self.failures();
        let cancel = self.cancel.clone();
        let tell = self.sender.clone();
        self.tasks.spawn(async move {
            let follow = watch_forever(api, kind_config(), tell, move |event| {
                let servers = matches!(watch, WatchId::Servers(_));
                match event {
                    WatchEvent::Object(object) if servers => WatchMessage::Server(Box::new(object)),
                    WatchEvent::Object(object) => WatchMessage::Skill(Box::new(object)),
                    WatchEvent::Deleted(key) if servers => WatchMessage::ServerDeleted(key),
                    WatchEvent::Deleted(key) => WatchMessage::SkillDeleted(key),
                    WatchEvent::Listed => WatchMessage::Listed(watch.clone()),
                    WatchEvent::Failed(error) => troubles.message(watch.clone(), &error),
                }
            });
            cancel.run_until_cancelled(follow).await;
        });
    }

    fn failures(&self) -> WatchFailures {
        WatchFailures { server: self.options.server.clone(), metrics: self.options.metrics.clone() }
    }

    /// One Secret, until the guard is dropped.
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

    /// One ConfigMap, until the guard is dropped.
    fn watch_config_map(&self, name: ConfigMapName) -> DropGuard {
        let watch = WatchId::ConfigMap(name.clone());
        self.watch_object(&name.clone(), watch, move |map: Option<ApiConfigMap>| {
            WatchMessage::ConfigMap(
                name.clone(),
                map.map_or(ReferenceLookup::Missing, |map| ReferenceLookup::Found(config_map_files(map))),
            )
        })
    }

    /// One object by its name; `news` is made of it, or of that it is gone.
    fn watch_object<K>(
        &self,
        name: &ObjectKey,
        watch: WatchId,
        news: impl Fn(Option<K>) -> WatchMessage + Send + Sync + 'static,
    ) -> DropGuard
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api: Api<K> = Api::namespaced(self.options.client.clone(), &name.namespace);
        let config = object_config(&name.name);
        let troubles = self.failures();
        let cancel = self.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let tell = self.sender.clone();
        self.tasks.spawn(async move {
            let follow = watch_forever(api, config, tell, move |event| match event {
                WatchEvent::Object(object) => news(Some(object)),
                WatchEvent::Deleted(_) => news(None),
                WatchEvent::Listed => WatchMessage::Listed(watch.clone()),
                WatchEvent::Failed(error) => troubles.message(watch.clone(), &error),
            });
            cancel.run_until_cancelled(follow).await;
        });
        guard
    }
}

/// Tells and counts what is wrong with a watch, which begins anew.
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

/// The keys of a ConfigMap, text and bytes alike, that may be files of a skill.
fn config_map_files(map: ApiConfigMap) -> ConfigMapFiles {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
    let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0));
    let all = text.chain(bytes).filter(|(key, _)| is_part_of_skill(key));
    all.map(|(key, bytes)| (key.into(), SkillFile::new(bytes, false))).collect()
}

/// The values of a Secret; `None` for one that is not text.
fn secret_values(secret: ApiSecret) -> SecretValues {
    let text = |bytes| String::from_utf8(bytes).ok().map(SecretString::from);
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
}
