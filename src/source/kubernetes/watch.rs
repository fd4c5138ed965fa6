//! One watch of an API server: lists, watches and restarts forever.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Config, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::object::object_key;
use super::watch_error::{self, WatchError};
use super::watch_message::WatchMessage;
use crate::net::api_server::RESPONSE_TIMEOUT;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::ObjectKey;

/// The delays before a failed watch restarts.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_secs(10) };
/// The maximum Retry-After that is honored; a watch restarts after this delay even if the API server requests a longer
/// one.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// The duration of a watch of all objects of a kind, in seconds, before it is resumed. A connection that is dead
/// without being closed is noticed soon after.
const KIND_WATCH_TIMEOUT_SECONDS: u32 = 30;
/// The duration of a watch of one object, of which there may be hundreds: the minimum, and the maximum random addition,
/// so that they do not all end at once.
const OBJECT_WATCH_TIMEOUT: (u32, Duration) = (45, Duration::from_secs(15));
/// A watch that lasts this long after its list restarts with the first delay again.
const STABLE_WATCH_DURATION: Duration = Duration::from_secs(30);

/// An event of a watch.
pub(super) enum WatchEvent<K> {
    /// The current state of an object.
    Object(K),
    /// An object that no longer exists.
    Deleted(ObjectKey),
    /// All existing objects were sent.
    Listed,
    /// The watch failed and restarts; the objects that were sent stay valid.
    Failed(WatchError),
}

/// Returns the configuration of a watch of all objects of a kind.
pub(super) fn kind_config() -> Config {
    Config::default().timeout(KIND_WATCH_TIMEOUT_SECONDS)
}

/// Returns the configuration of a watch of the object of this name.
pub(super) fn object_config(name: &str) -> Config {
    let (min_seconds, random_part) = OBJECT_WATCH_TIMEOUT;
    let timeout_seconds =
        min_seconds + u32::try_from(random_part.mul_f64(jitter()).as_secs()).unwrap_or_default();
    Config::default().fields(&format!("metadata.name={name}")).timeout(timeout_seconds)
}

/// Sends the objects of an API server as messages, forever.
///
/// A watch that ends regularly is resumed. A watch that fails restarts after a delay with a list of all objects: only a
/// list shows that it works again, and only a list replaces an expired resourceVersion.
pub(super) async fn watch_forever<K>(
    api: Api<K>,
    config: Config,
    sender: mpsc::Sender<WatchMessage>,
    to_message: impl Fn(WatchEvent<K>) -> WatchMessage + Send + Sync,
) where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let event_sender = EventSender { sender, to_message };
    let mut current_keys = HashSet::new();
    let mut streaming = true;
    let mut backoff = Backoff::default();
    loop {
        let mut listed_at = None;
        let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
        let error = watch_once(&api, config, &mut current_keys, &mut listed_at, &event_sender).await;
        if streaming && rejects_streaming_list(&error) {
            streaming = false;
            continue;
        }
        // An attempt that takes long to fail is not a watch that lasted.
        if let Some(listed_at) = listed_at {
            backoff.record_end(listed_at.elapsed(), STABLE_WATCH_DURATION);
        }
        let retry_after =
            watch_error::requested_delay(&error).map(|retry_after| retry_after.min(MAX_RETRY_AFTER));
        event_sender.send(WatchEvent::Failed(error)).await;
        sleep(backoff.record_failure(RESTART_DELAYS, jitter(), retry_after)).await;
    }
}

/// Sends events as messages.
struct EventSender<F> {
    sender: mpsc::Sender<WatchMessage>,
    to_message: F,
}

impl<F> EventSender<F> {
    async fn send<K>(&self, event: WatchEvent<K>)
    where
        F: Fn(WatchEvent<K>) -> WatchMessage,
    {
        let message = (self.to_message)(event);
        // The receiver is dropped at shutdown.
        let _ = self.sender.send(message).await;
    }
}

/// Runs one watch from its list to its end. Sets `listed_at` to the time at which all existing objects were sent.
async fn watch_once<K, F>(
    api: &Api<K>,
    config: Config,
    current_keys: &mut HashSet<ObjectKey>,
    listed_at: &mut Option<Instant>,
    sender: &EventSender<F>,
) -> WatchError
where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(WatchEvent<K>) -> WatchMessage + Send + Sync,
{
    let consistent = ListParams { field_selector: config.field_selector.clone(), ..ListParams::default() };
    let mut events = pin!(watcher(api.clone(), config));
    let mut listed = HashSet::new();
    let (mut started, mut listing) = (false, true);
    loop {
        // A list continues until it ends; after it there may be no event for hours.
        let next =
            if listing { timeout(RESPONSE_TIMEOUT, events.next()).await } else { Ok(events.next().await) };
        match next.unwrap_or_default() {
            None => return WatchError::Timeout,
            Some(Err(error)) => return error.into(),
            // The list ended early and is requested again.
            Some(Ok(watcher::Event::Init)) if started => return WatchError::ListTruncated,
            Some(Ok(watcher::Event::Init)) => started = true,
            Some(Ok(watcher::Event::InitApply(object))) => {
                listed.insert(object_key(object.meta()));
                sender.send(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::InitDone)) => {
                if !current_keys.is_subset(&listed) {
                    // A list may be outdated where there are several API servers; this read is consistent.
                    match timeout(RESPONSE_TIMEOUT, api.list_metadata(&consistent)).await {
                        Ok(Ok(now)) => {
                            listed.extend(now.items.iter().map(|object| object_key(object.meta())))
                        }
                        Ok(Err(error)) => return WatchError::Confirm(error),
                        Err(_) => return WatchError::Timeout,
                    }
                    for key in current_keys.difference(&listed) {
                        sender.send(WatchEvent::Deleted(key.clone())).await;
                    }
                }
                *current_keys = std::mem::take(&mut listed);
                listing = false;
                *listed_at = Some(Instant::now());
                sender.send(WatchEvent::Listed).await;
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                current_keys.insert(object_key(object.meta()));
                sender.send(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let key = object_key(object.meta());
                current_keys.remove(&key);
                sender.send(WatchEvent::Deleted(key)).await;
            }
        }
    }
}

/// An API server without support for streaming lists rejects their parameter as invalid.
fn rejects_streaming_list(error: &WatchError) -> bool {
    match error {
        WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => {
            matches!(status.code, 400 | 422) || status.is_invalid()
        }
        _ => false,
    }
}
