use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::manifest::set;
use crate::report::Event;

/// Who reports: there is one evenkeel per status API.
const INSTANCE: &str = "evenkeel";

/// The shape of `events.k8s.io/v1`.
pub(super) fn newer(event: &Event) -> Value {
    typed(json!(event.manifest(INSTANCE)), "events.k8s.io/v1")
}

/// The shape of the core group, with the fields that printers read.
pub(super) fn core(event: &Event) -> Value {
    let told = event.manifest(INSTANCE);
    typed(
        json!(core::Event {
            action: told.action,
            count: i32::try_from(event.count).ok(),
            event_time: told.event_time,
            first_timestamp: Some(Time(event.first)),
            involved_object: told.regarding.unwrap_or_default(),
            last_timestamp: Some(Time(event.latest.at)),
            message: told.note,
            metadata: told.metadata,
            reason: told.reason,
            reporting_component: told.reporting_controller.clone(),
            reporting_instance: told.reporting_instance,
            source: Some(core::EventSource { component: Some(INSTANCE.into()), host: None }),
            type_: told.type_,
            ..core::Event::default()
        }),
        "v1",
    )
}

fn typed(mut manifest: Value, api_version: &str) -> Value {
    set(&mut manifest, [("apiVersion", json!(api_version)), ("kind", json!("Event"))]);
    manifest
}
