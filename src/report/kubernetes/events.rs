//! Writes the events of the store: each is created once, and counts on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use k8s_openapi::api::events::v1 as api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{MANAGER, REQUEST};
use crate::report::{Event, Snapshot};
use crate::resource::ObjectKey;

/// The time between two events, so that a flood of them leaves room for statuses.
const PAUSE: Duration = Duration::from_millis(20);
/// The time before one that could not be written is tried again.
const DELAY: Duration = Duration::from_secs(5);

type Events = OrdMap<ObjectKey, Arc<Event>>;

/// Runs for good. What happens while another replica leads is its own to tell.
pub(super) async fn tell(
    client: Client,
    instance: Arc<str>,
    mut store: watch::Receiver<Snapshot>,
    mut leading: watch::Receiver<bool>,
) {
    let mut seen = Events::new();
    let mut created = HashSet::new();
    let mut waiting: BTreeMap<ObjectKey, Arc<Event>> = BTreeMap::new();
    loop {
        let now = store.borrow_and_update().events.clone();
        let leads = *leading.borrow_and_update();
        for item in seen.diff(&now) {
            match item {
                DiffItem::Add(key, event) | DiffItem::Update { new: (key, event), .. } => {
                    if leads && event.latest.regarding.kind.namespaced() {
                        waiting.insert(key.clone(), event.clone());
                    }
                }
                DiffItem::Remove(key, _) => {
                    waiting.remove(key);
                    created.remove(key);
                }
            }
        }
        seen = now;
        if !leads {
            waiting.clear();
        }
        let Some((key, event)) = waiting.pop_first() else {
            tokio::select! {
                changed = store.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
            }
            continue;
        };
        match timeout(REQUEST, write(&client, &instance, &event, created.contains(&key))).await {
            Ok(Ok(())) => {
                created.insert(key);
                sleep(PAUSE).await;
            }
            // The namespace is going away, or the event is not accepted: it would not be the next time.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 409 | 422) => {
                tracing::debug!(event = %key, "not written: {}", status.message);
            }
            _ => {
                waiting.insert(key, event);
                sleep(DELAY).await;
            }
        }
    }
}

async fn write(client: &Client, instance: &str, event: &Event, created: bool) -> kube::Result<()> {
    let api: Api<api::Event> = Api::namespaced(client.clone(), &event.key.namespace);
    let mut manifest = event.manifest(instance);
    if created {
        let series = json!({ "series": manifest.series });
        let patch = Patch::Merge(series);
        api.patch(&event.key.name, &PatchParams::default(), &patch).await?;
    } else {
        // The API server gives these.
        manifest.metadata.uid = None;
        manifest.metadata.creation_timestamp = None;
        manifest.metadata.resource_version = None;
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        api.create(&params, &manifest).await?;
    }
    Ok(())
}
