use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::manifest::set_fields;
use crate::report::Event;

/// Who reports: there is one evenkeel per status API.
const REPORTING_INSTANCE: &str = "evenkeel";

/// The shape of `events.k8s.io/v1`.
pub(super) fn events_v1(event: &Event) -> Value {
    with_type_meta(json!(event.manifest(REPORTING_INSTANCE)), "events.k8s.io/v1")
}

/// The shape of the core group, with the fields that printers read.
pub(super) fn core_v1(event: &Event) -> Value {
    let told = event.manifest(REPORTING_INSTANCE);
    with_type_meta(
        json!(core::Event {
            action: told.action,
            count: i32::try_from(event.count).ok(),
            event_time: told.event_time,
            first_timestamp: Some(Time(event.first_at)),
            involved_object: told.regarding.unwrap_or_default(),
            last_timestamp: Some(Time(event.latest.at)),
            message: told.note,
            metadata: told.metadata,
            reason: told.reason,
            reporting_component: told.reporting_controller.clone(),
            reporting_instance: told.reporting_instance,
            source: Some(core::EventSource { component: Some(REPORTING_INSTANCE.into()), host: None }),
            type_: told.type_,
            ..core::Event::default()
        }),
        "v1",
    )
}

fn with_type_meta(mut manifest: Value, api_version: &str) -> Value {
    set_fields(&mut manifest, [("apiVersion", json!(api_version)), ("kind", json!("Event"))]);
    manifest
}
