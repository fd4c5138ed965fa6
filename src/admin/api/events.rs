use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::manifest::set_fields;
use crate::report::Event;

/// The reporting instance. Each status API belongs to one instance, so the name is fixed.
const REPORTING_INSTANCE: &str = "evenkeel";

/// Returns the manifest of an event in `events.k8s.io/v1`.
pub(super) fn events_v1(event: &Event) -> Value {
    with_type_meta(json!(event.manifest(REPORTING_INSTANCE)), "events.k8s.io/v1")
}

/// Returns the manifest of an event in the core group `v1`, with the fields that clients print.
pub(super) fn core_v1(event: &Event) -> Value {
    let manifest = event.manifest(REPORTING_INSTANCE);
    with_type_meta(
        json!(core::Event {
            action: manifest.action,
            count: i32::try_from(event.count).ok(),
            event_time: manifest.event_time,
            first_timestamp: Some(Time(event.first_at)),
            involved_object: manifest.regarding.unwrap_or_default(),
            last_timestamp: Some(Time(event.latest.at)),
            message: manifest.note,
            metadata: manifest.metadata,
            reason: manifest.reason,
            reporting_component: manifest.reporting_controller.clone(),
            reporting_instance: manifest.reporting_instance,
            source: Some(core::EventSource { component: Some(REPORTING_INSTANCE.into()), host: None }),
            type_: manifest.type_,
            ..core::Event::default()
        }),
        "v1",
    )
}

fn with_type_meta(mut manifest: Value, api_version: &str) -> Value {
    set_fields(&mut manifest, [("apiVersion", json!(api_version)), ("kind", json!("Event"))]);
    manifest
}
