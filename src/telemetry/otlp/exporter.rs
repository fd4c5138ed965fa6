use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus_client::encoding::prometheus_protobuf;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::OtlpOptions;
use super::collector::{CollectorClient, ExportError};
use super::encode;
use super::families::{self, MetricTimes};
use crate::net::{Backoff, Delays, jitter};
use crate::telemetry::{Span, SpanSender};

/// The maximum number of spans that wait to be exported. Further spans are dropped.
const MAX_QUEUED_SPANS: usize = 2_048;
/// The maximum number of spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// The maximum number of metric data points in one request.
const MAX_REQUEST_POINTS: usize = 4_096;
/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The delays before spans are sent again after a failure. The effective delay is at least the export interval.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(30) };
/// The timeout for the final export at shutdown.
const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects spans, and sends them and the metrics to a collector until shutdown.
#[derive(Debug)]
pub struct Exporter {
    options: OtlpOptions,
    collector: CollectorClient,
    resource: Resource,
    started_at: Timestamp,
    spans: mpsc::Receiver<Span>,
    counters: SpanCounters,
    trace_health: ExportHealth,
    metric_health: ExportHealth,
}

#[derive(Debug, Default)]
struct SpanCounters {
    sent: Counter,
    dropped: Counter,
}

/// The export state of spans or metrics. It logs changes between success and failure, not every failure.
#[derive(Debug)]
struct ExportHealth {
    signal: &'static str,
    failing: bool,
    backoff: Backoff,
    /// The earliest time of the next attempt after a retryable failure.
    next_attempt_at: Option<Instant>,
}

impl Exporter {
    /// Creates an exporter and the sender for its spans. Fails if TLS is needed but cannot be set up.
    pub fn new(options: OtlpOptions, started_at: Timestamp) -> io::Result<(Self, SpanSender)> {
        let collector =
            CollectorClient::new(options.headers.clone(), options.traces_url.scheme() == "https")?;
        let counters = SpanCounters::default();
        let (sender, spans) = SpanSender::channel(MAX_QUEUED_SPANS, counters.dropped.clone());
        let instance = Uuid::new_v4().to_string();
        let attributes = options.resource_attributes.iter().map(|(key, value)| (&**key, &**value));
        let resource = encode::resource(attributes.chain([("service.instance.id", &*instance)]));
        let [trace_health, metric_health] = ["spans", "metrics"].map(|signal| ExportHealth {
            signal,
            failing: false,
            backoff: Backoff::default(),
            next_attempt_at: None,
        });
        Ok((
            Self { options, collector, resource, started_at, spans, counters, trace_health, metric_health },
            sender,
        ))
    }

    /// Registers the counters of exported and dropped spans. The prefix of the registry must be `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        let SpanCounters { sent, dropped } = &self.counters;
        registry.register("otlp_spans", "Spans that the collector accepted", sent.clone());
        registry.register(
            "otlp_spans_dropped",
            "Spans that were dropped because they could not be exported",
            dropped.clone(),
        );
    }

    /// Exports until `stop` is cancelled and all span senders are dropped. Then exports the rest within
    /// `FINAL_EXPORT_TIMEOUT`.
    pub async fn run(mut self, registry: Arc<Registry>, stop: CancellationToken) {
        let mut batch = Vec::new();
        // This cancels a request in flight. Spans whose export was not confirmed are sent again below.
        stop.run_until_cancelled(self.export_until_closed(&mut batch, &registry)).await;
        while let Some(span) = self.spans.recv().await {
            if batch.len() < MAX_QUEUED_SPANS {
                batch.push(span);
            } else {
                self.counters.dropped.inc();
            }
        }
        let final_export = async {
            while !batch.is_empty() && !self.trace_health.failing {
                let remaining = batch.split_off(batch.len().min(MAX_BATCH_SPANS));
                self.send_spans(&mut batch).await;
                batch = remaining;
            }
            self.send_metrics(&registry).await;
        };
        if timeout(FINAL_EXPORT_TIMEOUT, final_export).await.is_err() {
            let seconds = FINAL_EXPORT_TIMEOUT.as_secs();
            tracing::warn!("the OTLP collector did not accept the last spans and metrics within {seconds} s");
        }
    }

    /// Collects and exports until all span senders are dropped.
    async fn export_until_closed(&mut self, batch: &mut Vec<Span>, registry: &Arc<Registry>) {
        let ticks = |period| {
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut spans_due = ticks(self.options.span_delay);
        let mut metrics_due = ticks(self.options.metric_interval);
        loop {
            let room = MAX_BATCH_SPANS - batch.len();
            tokio::select! {
                received = self.spans.recv_many(batch, room), if room > 0 => {
                    if received == 0 {
                        return;
                    }
                    // After a failure the batch waits for the next tick instead.
                    if batch.len() == MAX_BATCH_SPANS && !self.trace_health.failing {
                        self.send_spans(batch).await;
                    }
                }
                _ = spans_due.tick() => {
                    if self.trace_health.next_attempt_at.is_none_or(|at| at <= Instant::now()) {
                        self.send_spans(batch).await;
                    }
                }
                // Metrics need no backoff: each export sends current values, at the configured interval.
                _ = metrics_due.tick() => self.send_metrics(registry).await,
            }
        }
    }

    /// Sends a batch. Spans stay in it if the failure is retryable.
    async fn send_spans(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let message = encode::trace_request(&self.resource, batch).encode_to_vec();
        let response = self.collector.post(&self.options.traces_url, message, REQUEST_TIMEOUT).await;
        let count = u64::try_from(batch.len()).unwrap_or_default();
        let result = match response {
            Ok(body) => {
                batch.clear();
                let rejected = rejected_spans(&body).min(count);
                self.counters.sent.inc_by(count - rejected);
                self.counters.dropped.inc_by(rejected);
                match rejected {
                    0 => Ok(()),
                    _ => Err(ExportError {
                        message: format!("{rejected} of {count} spans were rejected"),
                        retryable: false,
                    }),
                }
            }
            Err(error) => {
                if !error.retryable {
                    batch.clear();
                    self.counters.dropped.inc_by(count);
                }
                Err(error)
            }
        };
        self.trace_health.record(&result, &self.options);
    }

    async fn send_metrics(&mut self, registry: &Arc<Registry>) {
        let (registry, started_at) = (registry.clone(), self.started_at);
        // Encoding the metrics of a large fleet takes long enough to block the runtime.
        let groups = tokio::task::spawn_blocking(move || gather_metrics(&registry, started_at)).await;
        let mut result = Ok(());
        for group in groups.unwrap_or_default() {
            let message = encode::metrics_request(&self.resource, group).encode_to_vec();
            result =
                self.collector.post(&self.options.metrics_url, message, REQUEST_TIMEOUT).await.map(|_| ());
            if result.is_err() {
                break;
            }
        }
        self.metric_health.record(&result, &self.options);
    }
}

impl ExportHealth {
    fn record(&mut self, result: &Result<(), ExportError>, options: &OtlpOptions) {
        let (signal, collector) = (self.signal, options.origin());
        match result {
            Err(error) if !self.failing => {
                tracing::warn!(%collector, %error, "the OTLP collector does not accept {signal}; retrying");
            }
            Ok(()) if self.failing => tracing::info!(%collector, "the OTLP collector accepts {signal} again"),
            _ => {}
        }
        self.failing = result.is_err();
        // After a permanent failure the spans were dropped, so the next batch is sent without delay.
        self.next_attempt_at = match result {
            Err(error) if error.retryable => {
                Some(Instant::now() + self.backoff.record_failure(RETRY_DELAYS, jitter(), None))
            }
            _ => {
                self.backoff.reset();
                None
            }
        };
    }
}

fn gather_metrics(registry: &Registry, start: Timestamp) -> Vec<Vec<Metric>> {
    // Encoding fails only for native histograms, and none is registered.
    let families = prometheus_protobuf::encode(registry).unwrap_or_default();
    families::to_otlp_metrics(&families, MetricTimes { start, now: Timestamp::now() }, MAX_REQUEST_POINTS)
}

/// Returns the number of spans of an accepted batch that the collector rejected.
fn rejected_spans(body: &Bytes) -> u64 {
    let body = ExportTraceServiceResponse::decode(&**body).unwrap_or_default();
    body.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or_default())
}
