use std::env::var;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use uuid::Uuid;

use super::watches::{self, Options};
use crate::net::api_server::{InferredApiServer, NoApiServer, infer};
use crate::resource::SourceId;
use crate::source::StdioPolicy;
use crate::source::source_handle::{ApiServer, Source, SourceContext, SourceHandle, SourceInfo};

/// The longest name of a replica, in bytes: what an event takes, less the random part.
const MAX_INSTANCE_NAME_BYTES: usize = 100;

/// Which objects of which API server, as the arguments say.
#[derive(Clone, Debug)]
pub struct Args {
    /// The namespaces that are watched; none is all of them.
    pub namespaces: Vec<String>,
    /// The Secret with the key of session ids, and the key in it.
    pub session_key: Option<(String, String)>,
    /// The Lease that the replica holds that writes statuses.
    pub lease: String,
    /// Where the Lease and the session key are; by default where this process runs.
    pub own_namespace: Option<String>,
    /// Which stdio servers may run.
    pub policy: StdioPolicy,
}

impl Args {
    /// Finds the API server of the kubeconfig, or the one that this process runs in.
    pub async fn open(self) -> Result<impl Source + use<>, NoApiServer> {
        let InferredApiServer { client, address: server, namespace } = infer().await?;
        let namespace = self.own_namespace.unwrap_or(namespace);
        let mut namespaces: Vec<Arc<str>> = self.namespaces.iter().map(|name| name.as_str().into()).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let (all, place) = match namespaces.as_slice() {
            [] => ("*".to_owned(), format!("{server}, all namespaces")),
            some => (some.join(","), format!("{server}, namespaces {}", some.join(", "))),
        };
        let mut name = var("POD_NAME").or_else(|_| var("HOSTNAME")).unwrap_or_else(|_| "evenkeel".into());
        name.truncate(name.floor_char_boundary(MAX_INSTANCE_NAME_BYTES));
        let instance = format!("{name}_{}", Uuid::new_v4()).into();
        let (lease, session_key) = (self.lease, self.session_key);
        let info = SourceInfo {
            edit_instruction: format!("change the objects in {place}").into(),
            id: SourceId { kind: "cluster", location: place },
            identity: PathBuf::from(format!("{server}/namespaces/{all}")),
            default_namespace: if let [one] = namespaces.as_slice() { Some(one.clone()) } else { None },
            policy: self.policy,
            root: None,
            api_server: Some(ApiServer { client: client.clone(), namespace, lease, session_key, instance }),
        };
        Ok(ClusterSource { info, client, server, namespaces })
    }
}

/// An API server, and the namespaces that are reconciled from it.
struct ClusterSource {
    info: SourceInfo,
    client: Client,
    server: Arc<str>,
    namespaces: Vec<Arc<str>>,
}

impl Source for ClusterSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn start(self: Box<Self>, start: SourceContext) -> SourceHandle {
        let SourceContext { digest_key: key, metrics, tracker, stop, .. } = start;
        let Self { info, client, server, namespaces } = *self;
        let options = Options { client, server, namespaces, policy: info.policy, digest_key: key, metrics };
        let (desired, shown) = watches::start(options, &tracker, stop);
        SourceHandle { desired, requests: None, control: None, stored_statuses: shown }
    }
}
