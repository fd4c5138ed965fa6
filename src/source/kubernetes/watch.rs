//! One watch of an API server: lists, follows and begins anew, for good.

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

/// The delays before a watch that broke begins anew.
const RESTART_DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_secs(10) };
/// An API server that asks for more patience than this is asked all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// So long does a watch of all objects of a kind last, in seconds, before it is resumed. A connection that is dead
/// without being closed is noticed soon after.
const KIND_WATCH_TIMEOUT_SECONDS: u32 = 30;
/// The same of a watch of one object, of which there may be hundreds: the least, and by how much it may be more, so that
/// they do not all end at once.
const OBJECT_WATCH_TIMEOUT: (u32, Duration) = (45, Duration::from_secs(15));
/// A watch that told for so long, once it had listed, begins again with the first delay.
const STABLE_WATCH_DURATION: Duration = Duration::from_secs(30);

/// What a watch tells.
pub(super) enum WatchEvent<K> {
    /// An object as it is now.
    Object(K),
    /// One that is there no longer.
    Deleted(ObjectKey),
    /// Everything that is there was told.
    Listed,
    /// The watch broke and begins anew; what was told stays as it was.
    Failed(WatchError),
}

/// A watch of all objects of a kind.
pub(super) fn kind_config() -> Config {
    Config::default().timeout(KIND_WATCH_TIMEOUT_SECONDS)
}

/// A watch of the object of this name.
pub(super) fn object_config(name: &str) -> Config {
    let (least, more) = OBJECT_WATCH_TIMEOUT;
    let lasting = least + u32::try_from(more.mul_f64(jitter()).as_secs()).unwrap_or_default();
    Config::default().fields(&format!("metadata.name={name}")).timeout(lasting)
}

/// Tells what an API server holds, for good.
///
/// A watch that ends regularly is resumed. One that breaks begins anew after a delay, with everything that is
/// there: only so can it be told that it works again, and only so an expired version is left behind.
pub(super) async fn watch_forever<K>(
    api: Api<K>,
    config: Config,
    tell: mpsc::Sender<WatchMessage>,
    news: impl Fn(WatchEvent<K>) -> WatchMessage + Send + Sync,
) where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let teller = EventSender { sender: tell, to_message: news };
    let mut known = HashSet::new();
    let mut streaming = true;
    let mut backoff = Backoff::default();
    loop {
        let mut listed = None;
        let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
        let error = watch_once(&api, config, &mut known, &mut listed, &teller).await;
        if streaming && rejects_streaming_list(&error) {
            streaming = false;
            continue;
        }
        // An attempt that takes long to fail is not a watch that lasted.
        if let Some(listed) = listed {
            backoff.record_end(listed.elapsed(), STABLE_WATCH_DURATION);
        }
        let patience = watch_error::requested_delay(&error).map(|patience| patience.min(MAX_RETRY_AFTER));
        teller.send(WatchEvent::Failed(error)).await;
        sleep(backoff.record_failure(RESTART_DELAYS, jitter(), patience)).await;
    }
}

/// Where events go, as news.
struct EventSender<F> {
    sender: mpsc::Sender<WatchMessage>,
    to_message: F,
}

impl<F> EventSender<F> {
    async fn send<K>(&self, event: WatchEvent<K>)
    where
        F: Fn(WatchEvent<K>) -> WatchMessage,
    {
        let news = (self.to_message)(event);
        // Nobody listens once everything ends.
        let _ = self.sender.send(news).await;
    }
}

/// One watch, from its list to its end; `listed_at` is when everything that is there was told.
async fn watch_once<K, F>(
    api: &Api<K>,
    config: Config,
    known: &mut HashSet<ObjectKey>,
    listed_at: &mut Option<Instant>,
    teller: &EventSender<F>,
) -> WatchError
where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(WatchEvent<K>) -> WatchMessage + Send + Sync,
{
    let consistent = ListParams { field_selector: config.field_selector.clone(), ..ListParams::default() };
    let mut events = pin!(watcher(api.clone(), config));
    let mut listed = HashSet::new();
    let (mut begun, mut listing) = (false, true);
    loop {
        // A list goes on until it ends; after it there may be nothing to tell for hours.
        let next =
            if listing { timeout(RESPONSE_TIMEOUT, events.next()).await } else { Ok(events.next().await) };
        match next.unwrap_or_default() {
            None => return WatchError::Timeout,
            Some(Err(error)) => return error.into(),
            // The list ended before its end and is asked for again.
            Some(Ok(watcher::Event::Init)) if begun => return WatchError::ListTruncated,
            Some(Ok(watcher::Event::Init)) => begun = true,
            Some(Ok(watcher::Event::InitApply(object))) => {
                listed.insert(object_key(object.meta()));
                teller.send(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::InitDone)) => {
                if !known.is_subset(&listed) {
                    // A list may be old, where there are several API servers; this one is not.
                    match timeout(RESPONSE_TIMEOUT, api.list_metadata(&consistent)).await {
                        Ok(Ok(now)) => {
                            listed.extend(now.items.iter().map(|object| object_key(object.meta())))
                        }
                        Ok(Err(error)) => return WatchError::Confirm(error),
                        Err(_) => return WatchError::Timeout,
                    }
                    for key in known.difference(&listed) {
                        teller.send(WatchEvent::Deleted(key.clone())).await;
                    }
                }
                *known = std::mem::take(&mut listed);
                listing = false;
                *listed_at = Some(Instant::now());
                teller.send(WatchEvent::Listed).await;
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                known.insert(object_key(object.meta()));
                teller.send(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let key = object_key(object.meta());
                known.remove(&key);
                teller.send(WatchEvent::Deleted(key)).await;
            }
        }
    }
}

/// An API server that does not know streaming lists calls the parameter for them invalid.
fn rejects_streaming_list(error: &WatchError) -> bool {
    match error {
        WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => {
            matches!(status.code, 400 | 422) || status.is_invalid()
        }
        _ => false,
    }
}
