//! The key that seals session ids: kept in the state directory, or shared by replicas in a Secret.

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

/// The timeout of a request for the Secret.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The delays between such requests: the Secret may be created at any time, and agents wait for it.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(10) };
/// The minimum length of a shared session key, in bytes.
const MIN_KEY_BYTES: usize = 32;
/// The shell command that generates a key.
const RANDOM_KEY_COMMAND: &str = "$(head -c 32 /dev/urandom | base64)";
/// The reason why agents cannot be served yet; `None` once they can.
pub(super) type NotReadyReason = watch::Receiver<Option<String>>;

/// Returns the session key. A key shared by replicas may not exist yet; the reason is in the channel.
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

/// Returns the session key from its Secret, once it exists; until then the reason is in the channel. `None` if no
/// Secret is configured.
fn shared_session_key(
    server: &ApiServer,
) -> Option<(impl Future<Output = SessionKey> + use<>, NotReadyReason)> {
    let (name, key) = server.session_key.clone()?;
    let namespace = server.namespace.clone();
    let api: Api<Secret> = Api::namespaced(server.client.clone(), &namespace);
    let (reason_sender, reason_receiver) =
        watch::channel(Some("the session key has not been read yet".to_owned()));
    let key_future = async move {
        let mut warned = false;
        let mut backoff = Backoff::default();
        loop {
            let key_future = match timeout(REQUEST_TIMEOUT, api.get_opt(&name)).await {
                Ok(Ok(Some(secret))) => key_from_secret(secret, &key).map_err(|reason| {
                    let patch = format!("{{\"stringData\":{{\"{key}\":\"'{RANDOM_KEY_COMMAND}'\"}}}}");
                    format!(
                        "{reason}; to replace it: kubectl patch secret {name} -n {namespace} -p '{patch}'"
                    )
                }),
                Ok(Ok(None)) => Err(format!(
                    "not found; to create it: kubectl create secret generic {name} -n {namespace} \
                     --from-literal={key}=\"{RANDOM_KEY_COMMAND}\""
                )),
                Ok(Err(error)) => Err(describe_error(&error)),
                Err(_) => Err(format!("no response within {} s", REQUEST_TIMEOUT.as_secs())),
            };
            let reason = match key_future {
                Ok(key) => {
                    if warned {
                        tracing::info!("session key read; agents are served now");
                    }
                    reason_sender.send_replace(None);
                    return key;
                }
                Err(reason) => format!(
                    "agents are not served before the session key can be read: secret {name:?} with key {key:?} in \
                     namespace {namespace}: {reason}"
                ),
            };
            reason_sender.send_if_modified(|reason_receiver| {
                let changed = reason_receiver.as_ref() != Some(&reason);
                if changed {
                    tracing::warn!("{reason}");
                    *reason_receiver = Some(reason);
                }
                changed
            });
            warned = true;
            sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
        }
    };
    Some((key_future, reason_receiver))
}

fn key_from_secret(secret: Secret, key: &str) -> Result<SessionKey, String> {
    let bytes = secret.data.unwrap_or_default().remove(key).ok_or("it has no such key")?.0;
    if bytes.len() < MIN_KEY_BYTES {
        return Err(format!("it holds {} bytes; at least {MIN_KEY_BYTES} are required", bytes.len()));
    }
    SessionKey::new(&bytes).map_err(|error| error.to_string())
}
