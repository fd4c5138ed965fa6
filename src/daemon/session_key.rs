//! The key of session ids: kept in the state directory, or shared by the replicas in a Secret.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::error::DaemonError;
use crate::gateway::SessionKey;
use crate::net::api_server::describe_error;
use crate::net::{Backoff, Delays, jitter};
use crate::source::ApiServer;
use crate::state_dir::StateDir;

/// How long a request for the session key may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The delays between such requests: a person may make the Secret at any time, and agents wait for it.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(10) };
/// The shortest session key, in bytes.
const MIN_KEY_BYTES: usize = 32;
/// What makes such a key, in a shell.
const RANDOM_KEY_COMMAND: &str = "$(head -c 32 /dev/urandom | base64)";
/// Why something has to be waited for; `None` once it has not.
pub(super) type NotReadyReason = watch::Receiver<Option<String>>;

/// Gives the key of session ids. That of several replicas may have to be waited for, and why is in the channel.
pub(super) fn session_key(
    server: Option<&ApiServer>,
    state: &StateDir,
) -> Result<(BoxFuture<'static, SessionKey>, NotReadyReason), DaemonError> {
    if let Some((key, wait)) = server.and_then(shared_session_key) {
        return Ok((key.boxed(), wait));
    }
    let bytes = state.key("sessions").map_err(DaemonError::new)?;
    let key = SessionKey::new(&bytes).map_err(DaemonError::new)?;
    Ok((std::future::ready(key).boxed(), watch::channel(None).1))
}

/// The key of session ids from its Secret, as soon as it is there; why it is not is in the channel until then.
/// `None` if none is named.
fn shared_session_key(
    server: &ApiServer,
) -> Option<(impl Future<Output = SessionKey> + use<>, NotReadyReason)> {
    let (name, key) = server.session_key.clone()?;
    let namespace = server.namespace.clone();
    let api: Api<Secret> = Api::namespaced(server.client.clone(), &namespace);
    let (tell, told) = watch::channel(Some("the session key has not been read yet".to_owned()));
    let found = async move {
        let mut warned = false;
        let mut backoff = Backoff::default();
        loop {
            let found = match timeout(REQUEST_TIMEOUT, api.get_opt(&name)).await {
                Ok(Ok(Some(secret))) => key_from_secret(secret, &key).map_err(|why| {
                    let patch = format!("{{\"stringData\":{{\"{key}\":\"'{RANDOM_KEY_COMMAND}'\"}}}}");
                    format!(
                        "{why}; to put another in: kubectl patch secret {name} -n {namespace} -p '{patch}'"
                    )
                }),
                Ok(Ok(None)) => Err(format!(
                    "it is not found; to make it: kubectl create secret generic {name} -n {namespace} \
                     --from-literal={key}=\"{RANDOM_KEY_COMMAND}\""
                )),
                Ok(Err(error)) => Err(describe_error(&error)),
                Err(_) => Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
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
            sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
        }
    };
    Some((found, told))
}

fn key_from_secret(secret: Secret, key: &str) -> Result<SessionKey, String> {
    let bytes = secret.data.unwrap_or_default().remove(key).ok_or("it has no such key")?.0;
    if bytes.len() < MIN_KEY_BYTES {
        return Err(format!("it holds {} bytes; {MIN_KEY_BYTES} or more are needed", bytes.len()));
    }
    SessionKey::new(&bytes).map_err(|error| error.to_string())
}
