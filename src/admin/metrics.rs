use std::collections::BTreeMap;
use std::fmt;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::app::App;
use crate::report::{StatusSnapshot, find_condition};
use crate::resource::ConditionType;

const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn routes() -> Router<App> {
    Router::new().route("/metrics", get(get_metrics))
}

async fn get_metrics(State(app): State<App>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &app.state.metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)], body).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Registers the metrics derived from the store: the build, servers and skills by condition, faults of the source.
/// `docs/metrics.md` lists every name.
pub fn register_status_metrics(registry: &mut Registry, store: watch::Receiver<StatusSnapshot>) {
    registry.register_collector(Box::new(StatusCollector(store)));
}

/// A collector that counts at each scrape, so that the metrics cannot drift from the store.
#[derive(Debug)]
struct StatusCollector(watch::Receiver<StatusSnapshot>);

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let store = self.0.borrow().clone();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let mut build = encoder.encode_descriptor(
            "build_info",
            "The running version, always 1",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(1).encode(build.encode_family(&version)?)?;
        encode_by_ready(
            &mut encoder,
            "servers",
            "Declared servers by Ready condition",
            store.servers.values().map(|object| &*object.status.conditions),
        )?;
        encode_by_ready(
            &mut encoder,
            "skills",
            "Declared skills by Ready condition",
            store.skills.values().map(|object| &*object.status.conditions),
        )?;
        let faults = ConstGauge::new(i64::try_from(store.source.status.faults.len()).unwrap_or(i64::MAX));
        faults.encode(encoder.encode_descriptor(
            "source_faults",
            "Faults of the source: files, documents or objects that could not be read",
            None,
            MetricType::Gauge,
        )?)?;
        let polling = ConstGauge::new(i64::from(store.source.status.watching == "Polling"));
        polling.encode(encoder.encode_descriptor(
            "source_polling",
            "1 while the source is polled because change notifications are not available",
            None,
            MetricType::Gauge,
        )?)
    }
}

fn encode_by_ready<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    objects: impl Iterator<Item = &'a [Condition]>,
) -> fmt::Result {
    let mut counts: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for condition in objects.filter_map(|conditions| find_condition(conditions, ConditionType::Ready)) {
        *counts.entry((&condition.status, &condition.reason)).or_default() += 1;
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for ((ready, reason), count) in counts {
        let labels = [("ready", ready), ("reason", reason)];
        ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
