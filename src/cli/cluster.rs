use std::env::var;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Config};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Failure;
use super::tasks::Tasks;
use crate::gateway::SessionKey;
use crate::report::Snapshot;
use crate::report::kubernetes::{Inputs, Leadership, tell};
use crate::resource::{DigestKey, is_namespace};
use crate::source::{Policy, Shown, SourceMetrics, kubernetes};

/// How long a request for the session key may take.
const REQUEST: Duration = Duration::from_secs(5);
/// The time between two such requests.
const PAUSE: Duration = Duration::from_secs(2);
/// The shortest session key, in bytes.
const SHORTEST_KEY: usize = 32;
/// What makes such a key, in a shell.
const RANDOM: &str = "$(head -c 32 /dev/urandom | base64)";
/// The longest name of a replica: what an event takes, less the random part.
const LONGEST_NAME: usize = 100;

/// Why something has to be waited for; `None` once it has not.
pub(super) type Wait = watch::Receiver<Option<String>>;

/// Which objects of which API server, as the arguments say.
#[derive(Clone, Debug)]
pub(super) struct ClusterArgs {
    /// The namespaces that are watched; none is all of them.
    pub namespaces: Vec<String>,
    /// The Secret with the key of session ids, and the key in it.
    pub session_key: Option<(String, String)>,
    /// The Lease that the replica holds that writes statuses.
    pub lease: String,
    /// Where the Lease and the session key are; by default where this process runs.
    pub own_namespace: Option<String>,
    /// Which stdio servers may run.
    pub policy: Policy,
}

/// An API server and what is reconciled from it.
pub(super) struct Cluster {
    args: ClusterArgs,
    client: Client,
    server: Arc<str>,
    namespaces: Vec<Arc<str>>,
    own_namespace: String,
    /// Another for every process, so that no two take one Lease for theirs.
    instance: Arc<str>,
}

/// An empty name would be every namespace, and one with a slash another path of the API server.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    if is_namespace(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no namespace: at most 63 lower-case letters, digits and -, beginning and ending with a letter or digit"
    ))
}

/// The API server that a process is told of by its surroundings.
pub(super) struct ApiServer {
    pub client: Client,
    /// Its address.
    pub server: Arc<str>,
    /// The namespace of the kubeconfig's context, or that this process runs in.
    pub namespace: String,
}

impl ApiServer {
    /// The API server of the kubeconfig, or the one that this process runs in. That it answers is not known.
    pub async fn infer() -> Result<Self, Failure> {
        let none = |error: &dyn fmt::Display| {
            Failure::Failed(format!(
                "no API server is known: {error}; set KUBECONFIG, or run evenkeel in a cluster"
            ))
        };
        let mut config = Config::infer().await.map_err(|error| none(&error))?;
        config.connect_timeout = Some(REQUEST);
        let agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
        config.headers.push((USER_AGENT, agent));
        let server = config.cluster_url.to_string().trim_end_matches('/').into();
        let namespace = config.default_namespace.clone();
        let client = kubernetes::connect(config).map_err(|error| none(&error))?;
        Ok(Self { client, server, namespace })
    }
}

impl Cluster {
    /// The API server that is known here.
    pub async fn find(args: &ClusterArgs) -> Result<Self, Failure> {
        let ApiServer { client, server, namespace } = ApiServer::infer().await?;
        let own_namespace = args.own_namespace.clone().unwrap_or(namespace);
        let mut namespaces: Vec<Arc<str>> = args.namespaces.iter().map(|name| name.as_str().into()).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let mut name = var("POD_NAME").or_else(|_| var("HOSTNAME")).unwrap_or_else(|_| "evenkeel".into());
        name.truncate(name.floor_char_boundary(LONGEST_NAME));
        let instance = format!("{name}_{}", Uuid::new_v4()).into();
        Ok(Self { args: args.clone(), client, server, namespaces, own_namespace, instance })
    }

    /// What stands for the path of a directory.
    pub fn identity(&self) -> PathBuf {
        let namespaces = if self.namespaces.is_empty() { "*".to_owned() } else { self.namespaces.join(",") };
        PathBuf::from(format!("{}/namespaces/{namespaces}", self.server))
    }

    pub fn policy(&self) -> &Policy {
        &self.args.policy
    }

    pub fn home(&self) -> Option<Arc<str>> {
        match self.namespaces.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    }

    pub fn options(&self, key: DigestKey, metrics: SourceMetrics) -> kubernetes::Options {
        kubernetes::Options {
            client: self.client.clone(),
            server: self.server.clone(),
            namespaces: self.namespaces.clone(),
            policy: self.args.policy.clone(),
            key,
            metrics,
        }
    }

    /// The key of session ids from its Secret, as soon as it is there; why it is not is in the channel until then.
    /// `None` if none is named.
    pub fn session_key(&self) -> Option<(impl Future<Output = SessionKey> + use<>, Wait)> {
        let (name, key) = self.args.session_key.clone()?;
        let namespace = self.own_namespace.clone();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let (tell, told) = watch::channel(Some("the session key has not been read yet".to_owned()));
        let found = async move {
            let mut warned = false;
            loop {
                let found = match timeout(REQUEST, api.get_opt(&name)).await {
                    Ok(Ok(Some(secret))) => session_key(secret, &key).map_err(|why| {
                        let patch = format!("{{\"stringData\":{{\"{key}\":\"'{RANDOM}'\"}}}}");
                        format!("{why}; to put another in: kubectl patch secret {name} -n {namespace} -p '{patch}'")
                    }),
                    Ok(Ok(None)) => Err(format!(
                        "it is not found; to make it: kubectl create secret generic {name} -n {namespace} \
                         --from-literal={key}=\"{RANDOM}\""
                    )),
                    Ok(Err(error)) => Err(kubernetes::in_words(&error)),
                    Err(_) => Err(format!("no answer within {} s", REQUEST.as_secs())),
                };
                let why = match found {
                    Ok(key) => {
                        if warned {
                            tracing::info!("the session key has been read; agents wait no longer");
                        }
                        tell.send_replace(None);
                        return key;
                    }
                    Err(why) => format!(
                        "agents wait for the session key, which cannot be read: secret {name:?} with key {key:?} in \
                         namespace {namespace}: {why}"
                    ),
                };
                tell.send_if_modified(|told| {
                    let news = told.as_ref() != Some(&why);
                    if news {
                        tracing::warn!("{why}");
                        *told = Some(why);
                    }
                    news
                });
                warned = true;
                sleep(PAUSE).await;
            }
        };
        Some((found, told))
    }

    /// Writes statuses and events while this replica holds the Lease.
    pub fn tell(&self, store: watch::Receiver<Snapshot>, shown: watch::Receiver<Shown>, tasks: &mut Tasks) {
        let (lead, leading) = watch::channel(false);
        let lease =
            Leadership::new(self.client.clone(), &self.own_namespace, &self.args.lease, &self.instance);
        let stop = tasks.stop();
        tasks.spawn("the lease", async move {
            lease.run(lead, stop).await;
            Ok(())
        });
        let inputs =
            Inputs { client: self.client.clone(), store, shown, leading, instance: self.instance.clone() };
        let stop = tasks.stop();
        tasks.spawn("the writer of statuses", async move {
            // Three loops in one: too large for the stack of whoever starts it.
            Box::pin(tell(inputs, stop)).await;
            Ok(())
        });
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespaces.as_slice() {
            [] => write!(f, "{}, all namespaces", self.server),
            some => write!(f, "{}, namespaces {}", self.server, some.join(", ")),
        }
    }
}

fn session_key(secret: Secret, key: &str) -> Result<SessionKey, String> {
    let bytes = secret.data.unwrap_or_default().remove(key).ok_or("it has no such key")?.0;
    if bytes.len() < SHORTEST_KEY {
        return Err(format!("it holds {} bytes; {SHORTEST_KEY} or more are needed", bytes.len()));
    }
    SessionKey::new(&bytes).map_err(|error| error.to_string())
}
