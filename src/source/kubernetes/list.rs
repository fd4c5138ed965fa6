//! Lists the objects of an API server once: nothing is watched, and no referenced object is read.

use std::sync::Arc;

use imbl::OrdMap;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use super::object::{LatestObject, WatchedKind, decode};
use super::watch_message::WatchId;
use crate::net::api_server::describe_error;
use crate::resource::{
    DeclaredObject, Desired, GROUP, McpServer, ObjectKey, Problem, Reason, Skill, SourceState,
};

/// The number of objects per request.
const PAGE_SIZE: u32 = 500;

/// Lists the servers and skills of a namespace. Requires only the permission to list them.
///
/// Objects that are being deleted are omitted. Errors: the API server is unreachable or denies the request, or the CRDs
/// are not installed; the message states what to do.
pub async fn list(client: &Client, server: &str, namespace: &str) -> Result<Desired, Problem> {
    let scope: Option<Arc<str>> = Some(namespace.into());
    let (servers, skills) = (ApiResource::erase::<McpServer>(&()), ApiResource::erase::<Skill>(&()));
    Ok(Desired {
        servers: list_kind(client, server, namespace, &servers, &WatchId::Servers(scope.clone())).await?,
        skills: list_kind(client, server, namespace, &skills, &WatchId::Skills(scope)).await?,
        source: Arc::new(SourceState { synced: true, skills_synced: true, ..SourceState::default() }),
        ..Desired::default()
    })
}

async fn list_kind<S: WatchedKind + DeserializeOwned>(
    client: &Client,
    server: &str,
    namespace: &str,
    resource: &ApiResource,
    watch: &WatchId,
) -> Result<OrdMap<ObjectKey, Arc<DeclaredObject<S>>>, Problem> {
    // Dynamic objects, not the types themselves: one object that does not decode must not hide the others.
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let mut params = ListParams::default().limit(PAGE_SIZE);
    let mut objects = OrdMap::new();
    loop {
        let list = api.list(&params).await.map_err(|error| list_problem(&error, watch, server))?;
        for object in list.items {
            let (LatestObject { meta, spec }, stored_status) = decode::<S>(object);
            if stored_status.terminating_generation.is_some() {
                continue;
            }
            let (spec, refused) = match spec {
                Ok(spec) => (Some(Arc::new(spec)), None),
                Err(problem) => (None, Some(problem)),
            };
            let key = meta.key.clone();
            objects.insert(
                key,
                Arc::new(DeclaredObject { meta, spec, spec_digest: None, rejected: refused, endpoint: None }),
            );
        }
        params = match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token(&token),
            None => return Ok(objects),
        };
    }
}

fn list_problem(error: &kube::Error, watch: &WatchId, server: &str) -> Problem {
    let details = describe_error(error);
    let plural = watch.plural();
    let (reason, message) = match error {
        kube::Error::Api(status) => match status.code {
            401 => (
                Reason::NotPermitted,
                format!("the API server {server} rejects the credentials of the kubeconfig: {details}"),
            ),
            403 => (
                Reason::NotPermitted,
                format!("{details}; grant the verb list on mcpservers and skills of {GROUP}"),
            ),
            404 => (
                Reason::SourceUnavailable,
                format!(
                    "the CustomResourceDefinition {plural}.{GROUP} is not installed at {server}; to install it: \
                     evenkeel crds | kubectl apply --server-side -f -"
                ),
            ),
            code => (
                Reason::SourceUnavailable,
                format!("the API server {server} failed to list {watch}: {details} (HTTP {code})"),
            ),
        },
        _ => (
            Reason::SourceUnavailable,
            format!(
                "the API server {server} cannot be reached: {details}; KUBECONFIG selects the API server"
            ),
        ),
    };
    Problem::new(reason, message)
}

#[cfg(test)]
mod tests {
    use std::io;

    use kube::core::Status;

    use super::*;

    #[test]
    fn list_errors_state_the_remedy() {
        let api =
            |code, message: &str| kube::Error::Api(Status::failure(message, "").with_code(code).boxed());
        for (error, expected) in [
            (
                api(401, "Unauthorized"),
                "NotPermitted: the API server https://api rejects the credentials of the kubeconfig: Unauthorized",
            ),
            (
                api(403, "mcpservers is forbidden"),
                "NotPermitted: mcpservers is forbidden; grant the verb list on mcpservers and skills of \
                 evenkeel.dev",
            ),
            (
                api(404, "page not found"),
                "SourceUnavailable: the CustomResourceDefinition mcpservers.evenkeel.dev is not installed at \
                 https://api; to install it: evenkeel crds | kubectl apply --server-side -f -",
            ),
            (
                api(503, "starting"),
                "SourceUnavailable: the API server https://api failed to list mcpservers in namespace n: \
                 starting (HTTP 503)",
            ),
            (
                kube::Error::Service(Box::new(io::Error::other("connection refused"))),
                "SourceUnavailable: the API server https://api cannot be reached: connection refused; KUBECONFIG \
                 selects the API server",
            ),
        ] {
            let watch = WatchId::Servers(Some("n".into()));
            assert_eq!(list_problem(&error, &watch, "https://api").to_string(), expected);
        }
    }
}
