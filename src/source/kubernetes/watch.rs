//! One watch of an API server: lists, follows and begins anew, for good.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Config, watcher};
use kube::{Api, Resource};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::ANSWER;
use super::fault::{self, Error};
use super::news::News;
use super::object::key_of;
use crate::resource::ObjectKey;

/// The delays between attempts: doubled from the first to the last.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// An API server that asks for more patience than this is asked all the same.
const LONGEST_PATIENCE: Duration = Duration::from_mins(5);
/// So long does a watch of all objects of a kind last, in seconds, before it is resumed. A connection that is dead
/// without being closed is noticed soon after.
const LASTING: u32 = 30;
/// The same of a watch of one object, of which there may be hundreds: between these, so that they do not all end at
/// once.
const LASTING_OF_ONE: (u32, u32) = (45, 60);
/// A watch that has lived so long begins again with the first delay.
const STABLE: Duration = Duration::from_secs(30);

/// What a watch tells.
pub(super) enum Event<K> {
    /// An object as it is now.
    Object(K),
    /// One that is there no longer.
    Gone(ObjectKey),
    /// Everything that is there was told.
    Listed,
    /// The watch broke and begins anew; what was told stays as it was.
    Trouble(Error),
}

/// A watch of all objects of a kind.
pub(super) fn of_all() -> Config {
    Config::default().timeout(LASTING)
}

/// A watch of the object of this name.
pub(super) fn of_one(name: &str) -> Config {
    let (least, most) = LASTING_OF_ONE;
    let lasting = least + u32::from(random()) % (most - least + 1);
    Config::default().fields(&format!("metadata.name={name}")).timeout(lasting)
}

/// Tells what an API server holds, for good.
///
/// A watch that ends regularly is resumed. One that breaks begins anew after a delay, with everything that is
/// there: only so can it be told that it works again, and only so an expired version is left behind.
pub(super) async fn follow<K>(
    api: Api<K>,
    config: Config,
    tell: mpsc::Sender<News>,
    news: impl Fn(Event<K>) -> News + Send + Sync,
) where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let teller = Teller { tell, news };
    let mut known = HashSet::new();
    let mut streaming = true;
    let mut delay = FIRST_DELAY;
    loop {
        let began = Instant::now();
        let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
        let error = once(&api, config, &mut known, &teller).await;
        if streaming && refuses_streaming(&error) {
            streaming = false;
            continue;
        }
        if began.elapsed() > STABLE {
            delay = FIRST_DELAY;
        }
        let patience = fault::patience(&error).unwrap_or_default().min(LONGEST_PATIENCE);
        teller.tell(Event::Trouble(error)).await;
        sleep(delay.mul_f64(0.5 + jitter() / 2.0).max(patience)).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

/// Where events go, as news.
struct Teller<F> {
    tell: mpsc::Sender<News>,
    news: F,
}

impl<F> Teller<F> {
    async fn tell<K>(&self, event: Event<K>)
    where
        F: Fn(Event<K>) -> News,
    {
        let news = (self.news)(event);
        // Nobody listens once everything ends.
        let _ = self.tell.send(news).await;
    }
}

/// One watch, from its list to its end.
async fn once<K, F>(api: &Api<K>, config: Config, known: &mut HashSet<ObjectKey>, teller: &Teller<F>) -> Error
where
    K: Resource<DynamicType: Clone> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(Event<K>) -> News + Send + Sync,
{
    let consistent = ListParams { field_selector: config.field_selector.clone(), ..ListParams::default() };
    let mut events = pin!(watcher(api.clone(), config));
    let mut listed = HashSet::new();
    let (mut begun, mut listing) = (false, true);
    loop {
        // A list goes on until it ends; after it there may be nothing to tell for hours.
        let next = if listing { timeout(ANSWER, events.next()).await } else { Ok(events.next().await) };
        match next.unwrap_or_default() {
            None => return Error::Silent,
            Some(Err(error)) => return error.into(),
            // The list ended before its end and is asked for again.
            Some(Ok(watcher::Event::Init)) if begun => return Error::Cut,
            Some(Ok(watcher::Event::Init)) => begun = true,
            Some(Ok(watcher::Event::InitApply(object))) => {
                listed.insert(key_of(object.meta()));
                teller.tell(Event::Object(object)).await;
            }
            Some(Ok(watcher::Event::InitDone)) => {
                if !known.is_subset(&listed) {
                    // A list may be old, where there are several API servers; this one is not.
                    match timeout(ANSWER, api.list_metadata(&consistent)).await {
                        Ok(Ok(now)) => listed.extend(now.items.iter().map(|object| key_of(object.meta()))),
                        Ok(Err(error)) => return Error::Confirm(error),
                        Err(_) => return Error::Silent,
                    }
                    for key in known.difference(&listed) {
                        teller.tell(Event::Gone(key.clone())).await;
                    }
                }
                *known = std::mem::take(&mut listed);
                listing = false;
                teller.tell(Event::Listed).await;
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                known.insert(key_of(object.meta()));
                teller.tell(Event::Object(object)).await;
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let key = key_of(object.meta());
                known.remove(&key);
                teller.tell(Event::Gone(key)).await;
            }
        }
    }
}

/// An API server that does not know streaming lists calls the parameter for them invalid.
fn refuses_streaming(error: &Error) -> bool {
    match error {
        Error::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => {
            matches!(status.code, 400 | 422) || status.is_invalid()
        }
        _ => false,
    }
}

/// From 0 to 1.
fn jitter() -> f64 {
    f64::from(random()) / 255.0
}

fn random() -> u8 {
    let mut byte = [0; 1];
    // Without random bytes all delays are the shortest, which is no harm.
    let _ = SystemRandom::new().fill(&mut byte);
    u8::from_ne_bytes(byte)
}
