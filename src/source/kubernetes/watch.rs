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

use super::object::key_of;
use super::watch_error::{self, WatchError};
use super::watch_message::WatchMessage;
use crate::net::api_server::ANSWER;
use crate::net::{Backoff, Delays, jitter};
use crate::resource::ObjectKey;

/// The delays before a watch that broke begins anew.
const DELAYS: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_secs(10) };
/// An API server that asks for more patience than this is asked all the same.
const LONGEST_PATIENCE: Duration = Duration::from_mins(5);
/// So long does a watch of all objects of a kind last, in seconds, before it is resumed. A connection that is dead
/// without being closed is noticed soon after.
const LASTING: u32 = 30;
/// The same of a watch of one object, of which there may be hundreds: the least, and by how much it may be more, so that
/// they do not all end at once.
const LASTING_OF_ONE: (u32, Duration) = (45, Duration::from_secs(15));
/// A watch that told for so long, once it had listed, begins again with the first delay.
const STABLE: Duration = Duration::from_secs(30);

/// What a watch tells.
pub(super) enum WatchEvent<K> {
    /// An object as it is now.
    Object(K),
    /// One that is there no longer.
    Gone(ObjectKey),
    /// Everything that is there was told.
    Listed,
    /// The watch broke and begins anew; what was told stays as it was.
    Trouble(WatchError),
}

/// A watch of all objects of a kind.
pub(super) fn of_all() -> Config {
    Config::default().timeout(LASTING)
}

/// A watch of the object of this name.
pub(super) fn of_one(name: &str) -> Config {
    let (least, more) = LASTING_OF_ONE;
    let lasting = least + u32::try_from(more.mul_f64(jitter()).as_secs()).unwrap_or_default();
    Config::default().fields(&format!("metadata.name={name}")).timeout(lasting)
}

/// Tells what an API server holds, for good.
///
/// A watch that ends regularly is resumed. One that breaks begins anew after a delay, with everything that is
/// there: only so can it be told that it works again, and only so an expired version is left behind.
pub(super) async fn follow<K>(
    api: Api<K>,
    config: Config,
    tell: mpsc::Sender<WatchMessage>,
    news: impl Fn(WatchEvent<K>) -> WatchMessage + Send + Sync,
) where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let teller = EventSender { tell, news };
    let mut known = HashSet::new();
    let mut streaming = true;
    let mut backoff = Backoff::default();
    loop {
        let mut listed = None;
        let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
        let error = once(&api, config, &mut known, &mut listed, &teller).await;
        if streaming && refuses_streaming(&error) {
            streaming = false;
            continue;
        }
        // An attempt that takes long to fail is not a watch that lasted.
        if let Some(listed) = listed {
            backoff.ended(listed.elapsed(), STABLE);
        }
        let patience = watch_error::patience(&error).map(|patience| patience.min(LONGEST_PATIENCE));
        teller.tell(WatchEvent::Trouble(error)).await;
        sleep(backoff.fail(DELAYS, jitter(), patience)).await;
    }
}

/// Where events go, as news.
struct EventSender<F> {
    tell: mpsc::Sender<WatchMessage>,
    news: F,
}

impl<F> EventSender<F> {
    async fn tell<K>(&self, event: WatchEvent<K>)
    where
        F: Fn(WatchEvent<K>) -> WatchMessage,
    {
        let news = (self.news)(event);
        // Nobody listens once everything ends.
        let _ = self.tell.send(news).await;
    }
}

/// One watch, from its list to its end; `listed_at` is when everything that is there was told.
async fn once<K, F>(
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
        let next = if listing { timeout(ANSWER, events.next()).await } else { Ok(events.next().await) };
        match next.unwrap_or_default() {
            None => return WatchError::Silent,
            Some(Err(error)) => return error.into(),
            // The list ended before its end and is asked for again.
            Some(Ok(watcher::Event::Init)) if begun => return WatchError::Cut,
            Some(Ok(watcher::Event::Init)) => begun = true,
            Some(Ok(watcher::Event::InitApply(object))) => {
                listed.insert(key_of(object.meta()));
                teller.tell(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::InitDone)) => {
                if !known.is_subset(&listed) {
                    // A list may be old, where there are several API servers; this one is not.
                    match timeout(ANSWER, api.list_metadata(&consistent)).await {
                        Ok(Ok(now)) => listed.extend(now.items.iter().map(|object| key_of(object.meta()))),
                        Ok(Err(error)) => return WatchError::Confirm(error),
                        Err(_) => return WatchError::Silent,
                    }
                    for key in known.difference(&listed) {
                        teller.tell(WatchEvent::Gone(key.clone())).await;
                    }
                }
                *known = std::mem::take(&mut listed);
                listing = false;
                *listed_at = Some(Instant::now());
                teller.tell(WatchEvent::Listed).await;
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                known.insert(key_of(object.meta()));
                teller.tell(WatchEvent::Object(object)).await;
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let key = key_of(object.meta());
                known.remove(&key);
                teller.tell(WatchEvent::Gone(key)).await;
            }
        }
    }
}

/// An API server that does not know streaming lists calls the parameter for them invalid.
fn refuses_streaming(error: &WatchError) -> bool {
    match error {
        WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => {
            matches!(status.code, 400 | 422) || status.is_invalid()
        }
        _ => false,
    }
}
