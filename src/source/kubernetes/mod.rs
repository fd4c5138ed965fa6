//! The custom resources of an API server as a source of declarations.
//!
//! Promises that what is declared is complete before anything follows from it, that a list which begins anew
//! takes nothing away until a consistent read agrees, and that an API server which is away, says no, or gives
//! something that cannot be read is told and asked again while everything stays as it is. Each Secret that a
//! server refers to, and each ConfigMap that a skill does, is watched by its name and no other is ever read: that
//! needs the least permission (a Role may name them) and the least memory, at the price of one connection for each. Never writes.

mod book;
mod client;
mod fault;
mod list;
mod object;
mod references;
mod watch;

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

use self::book::{Book, News, Watch};
use self::references::{ConfigMapName, Keys, Look, SecretName, Values};
use self::watch::{Event, follow, of_all, of_one};
use crate::resource::{DigestKey, McpServer, ObjectKey, Skill};
use crate::skills::{File, belongs};
use crate::source::{Desired, Policy, Shown, SourceMetrics};

pub use self::client::{connect, retry_after};
pub use self::fault::in_words;
pub use self::list::list;

/// News that waits while the book is written: a list comes in faster than it is taken up.
const WAITING: usize = 1_024;
/// News that is taken up before anything follows from it.
const BATCH: usize = 256;

/// What is watched, and what it may do.
#[derive(Clone)]
pub struct Options {
    /// The API server.
    pub client: Client,
    /// Its address, for messages.
    pub server: Arc<str>,
    /// The namespaces that are watched; none is all of them.
    pub namespaces: Vec<Arc<str>>,
    /// Which stdio servers may run.
    pub policy: Policy,
    /// The key of connection digests.
    pub key: DigestKey,
    /// Where watches that begin anew are counted.
    pub metrics: SourceMetrics,
}

/// Watches until `cancel`. What is declared is in the first channel, at first nothing that is synced; what
/// the objects' statuses are there is in the second, which is never behind the first.
pub fn start(
    options: Options,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) -> (channel::Receiver<Arc<Desired>>, channel::Receiver<Shown>) {
    let (desired, declared) = channel::channel(Arc::default());
    let (show, shown) = channel::channel(Shown::default());
    let (tell, news) = mpsc::channel(WAITING);
    let watches = Watches { options, tell, tasks: tracker.clone(), cancel: cancel.clone() };
    tracker.spawn(async move {
        cancel.run_until_cancelled(run(watches, news, desired, show)).await;
    });
    (declared, shown)
}

async fn run(
    watches: Watches,
    mut news: mpsc::Receiver<News>,
    desired: channel::Sender<Arc<Desired>>,
    show: channel::Sender<Shown>,
) {
    let Options { namespaces, policy, key, .. } = &watches.options;
    let mut book = Book::new(policy.clone(), key.clone());
    let scopes: Vec<_> = match namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    for scope in scopes {
        for watch in [Watch::Servers(scope.clone()), Watch::Skills(scope)] {
            book.expect(watch.clone());
            watches.objects(watch);
        }
    }
    let mut secrets: HashMap<SecretName, DropGuard> = HashMap::new();
    let mut config_maps: HashMap<ConfigMapName, DropGuard> = HashMap::new();
    let mut batch = Vec::with_capacity(BATCH);
    while news.recv_many(&mut batch, BATCH).await > 0 {
        for news in batch.drain(..) {
            book.take(news);
        }
        let (now, statuses) = book.settle();
        if let Some(statuses) = statuses {
            show.send_replace(statuses);
        }
        if let Some(now) = now {
            desired.send_replace(now);
        }
        // A watch that is dropped from the map ends.
        secrets.retain(|name, _| book.refers_to(name));
        for name in book.secrets() {
            if !secrets.contains_key(name) {
                secrets.insert(name.clone(), watches.secret(name.clone()));
            }
        }
        config_maps.retain(|name, _| book.refers_to_map(name));
        for name in book.config_maps() {
            if !config_maps.contains_key(name) {
                config_maps.insert(name.clone(), watches.config_map(name.clone()));
            }
        }
    }
}

/// Starts watches.
struct Watches {
    options: Options,
    tell: mpsc::Sender<News>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Watches {
    /// All objects of a kind, in one namespace or in all.
    fn objects(&self, watch: Watch) {
        let (resource, scope) = match &watch {
            Watch::Servers(scope) => (ApiResource::erase::<McpServer>(&()), scope.clone()),
            Watch::Skills(scope) => (ApiResource::erase::<Skill>(&()), scope.clone()),
            Watch::Secret(_) | Watch::ConfigMap(_) => return,
        };
        let client = self.options.client.clone();
        // Not the types themselves: one object that does not decode must not hide the others.
        let api: Api<DynamicObject> = match &scope {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let troubles = self.troubles();
        let cancel = self.cancel.clone();
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let follow = follow(api, of_all(), tell, move |event| {
                let servers = matches!(watch, Watch::Servers(_));
                match event {
                    Event::Object(object) if servers => News::Server(Box::new(object)),
                    Event::Object(object) => News::Skill(Box::new(object)),
                    Event::Gone(key) if servers => News::ServerGone(key),
                    Event::Gone(key) => News::SkillGone(key),
                    Event::Listed => News::Listed(watch.clone()),
                    Event::Trouble(error) => troubles.news(watch.clone(), &error),
                }
            });
            cancel.run_until_cancelled(follow).await;
        });
    }

    fn troubles(&self) -> Troubles {
        Troubles { server: self.options.server.clone(), metrics: self.options.metrics.clone() }
    }

    /// One Secret, until the guard is dropped.
    fn secret(&self, name: SecretName) -> DropGuard {
        let watch = Watch::Secret(name.clone());
        self.one(&name.clone(), watch, move |secret: Option<ApiSecret>| {
            News::Secret(name.clone(), secret.map_or(Look::Missing, |secret| Look::Found(values(secret))))
        })
    }

    /// One ConfigMap, until the guard is dropped.
    fn config_map(&self, name: ConfigMapName) -> DropGuard {
        let watch = Watch::ConfigMap(name.clone());
        self.one(&name.clone(), watch, move |map: Option<ApiConfigMap>| {
            News::ConfigMap(name.clone(), map.map_or(Look::Missing, |map| Look::Found(keys(map))))
        })
    }

    /// One object by its name; `news` is made of it, or of that it is gone.
    fn one<K>(
        &self,
        name: &ObjectKey,
        watch: Watch,
        news: impl Fn(Option<K>) -> News + Send + Sync + 'static,
    ) -> DropGuard
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api: Api<K> = Api::namespaced(self.options.client.clone(), &name.namespace);
        let config = of_one(&name.name);
        let troubles = self.troubles();
        let cancel = self.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let follow = follow(api, config, tell, move |event| match event {
                Event::Object(object) => news(Some(object)),
                Event::Gone(_) => news(None),
                Event::Listed => News::Listed(watch.clone()),
                Event::Trouble(error) => troubles.news(watch.clone(), &error),
            });
            cancel.run_until_cancelled(follow).await;
        });
        guard
    }
}

/// Tells and counts what is wrong with a watch, which begins anew.
struct Troubles {
    server: Arc<str>,
    metrics: SourceMetrics,
}

impl Troubles {
    fn news(&self, watch: Watch, error: &watch::Error) -> News {
        self.metrics.restarted(watch.plural(), fault::word(error));
        let problem = fault::told(error, &watch, &self.server);
        News::Trouble(watch, problem)
    }
}

/// The keys of a ConfigMap, text and bytes alike, that may be files of a skill.
fn keys(map: ApiConfigMap) -> Keys {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
    let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0));
    let all = text.chain(bytes).filter(|(key, _)| belongs(key));
    all.map(|(key, bytes)| (key.into(), File::new(bytes, false))).collect()
}

/// The values of a Secret; `None` for one that is not text.
fn values(secret: ApiSecret) -> Values {
    let text = |bytes| String::from_utf8(bytes).ok().map(SecretString::from);
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
}
