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

/// The maximum length of the name of a replica, in bytes: the limit of the reporting instance of an event, minus the
/// random part.
const MAX_INSTANCE_NAME_BYTES: usize = 100;

/// The objects to reconcile and the API server that holds them.
#[derive(Clone, Debug)]
pub struct Args {
    /// The watched namespaces; empty for all namespaces.
    pub namespaces: Vec<String>,
    /// The Secret with the key of session ids, and the key within the Secret.
    pub session_key: Option<(String, String)>,
    /// The name of the Lease. The replica that holds it writes statuses.
    pub lease: String,
    /// The namespace of the Lease and of the session key; by default the namespace of this process.
    pub own_namespace: Option<String>,
    /// The policy for stdio servers.
    pub policy: StdioPolicy,
}

impl Args {
    /// Opens the API server of the kubeconfig, or the one of the cluster that this process runs in.
    ///
    /// Errors: no API server is configured.
    pub async fn open(self) -> Result<impl Source + use<>, NoApiServer> {
        let InferredApiServer { client, address: server, namespace } = infer().await?;
        let namespace = self.own_namespace.unwrap_or(namespace);
        let mut namespaces: Vec<Arc<str>> = self.namespaces.iter().map(|name| name.as_str().into()).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let (all, location) = match namespaces.as_slice() {
            [] => ("*".to_owned(), format!("{server}, all namespaces")),
            names => (names.join(","), format!("{server}, namespaces {}", names.join(", "))),
        };
        let mut name = var("POD_NAME").or_else(|_| var("HOSTNAME")).unwrap_or_else(|_| "evenkeel".into());
        name.truncate(name.floor_char_boundary(MAX_INSTANCE_NAME_BYTES));
        let instance = format!("{name}_{}", Uuid::new_v4()).into();
        let (lease, session_key) = (self.lease, self.session_key);
        let info = SourceInfo {
            edit_instruction: format!("change the objects in {location}").into(),
            id: SourceId { kind: "cluster", location },
            identity: PathBuf::from(format!("{server}/namespaces/{all}")),
            default_namespace: if let [namespace] = namespaces.as_slice() {
                Some(namespace.clone())
            } else {
                None
            },
            namespaces: namespaces.as_slice().into(),
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

    fn start(self: Box<Self>, context: SourceContext) -> SourceHandle {
        let SourceContext { digest_key, metrics, tasks, stop, .. } = context;
        let Self { info, client, server, namespaces } = *self;
        let options = Options { client, server, namespaces, policy: info.policy, digest_key, metrics };
        let (desired, stored_statuses) = watches::start(options, &tasks, stop);
        SourceHandle { desired, requests: None, control: None, stored_statuses }
    }
}
