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

/// Spans that wait to be collected; what finds no room is dropped.
const MAX_QUEUED_SPANS: usize = 2_048;
/// Spans in one request.
const MAX_BATCH_SPANS: usize = 512;
/// Points of metrics in one request.
const MAX_REQUEST_POINTS: usize = 4_096;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The delays before spans that were not taken are sent again, if the time between two requests is not longer.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(30) };
/// How long everything that is left may take once evenkeel ends.
const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Collects spans and sends them, and the metrics, until evenkeel ends.
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

/// Whether a kind of message is taken; said when that changes, and not each time.
#[derive(Debug)]
struct ExportHealth {
    signal: &'static str,
    failing: bool,
    backoff: Backoff,
    /// When it may be sent again, after it was not taken.
    next_attempt_at: Option<Instant>,
}

impl Exporter {
    /// An exporter, and where it takes spans from. An error says why there can be no TLS.
    pub fn new(options: OtlpOptions, started: Timestamp) -> io::Result<(Self, SpanSender)> {
        let collector =
            CollectorClient::new(options.headers.clone(), options.traces_url.scheme() == "https")?;
        let counts = SpanCounters::default();
        let (sink, spans) = SpanSender::channel(MAX_QUEUED_SPANS, counts.dropped.clone());
        let instance = Uuid::new_v4().to_string();
        let named = options.resource_attributes.iter().map(|(key, value)| (&**key, &**value));
        let resource = encode::resource(named.chain([("service.instance.id", &*instance)]));
        let [traces, metrics] = ["spans", "metrics"].map(|what| ExportHealth {
            signal: what,
            failing: false,
            backoff: Backoff::default(),
            next_attempt_at: None,
        });
        Ok((
            Self {
                options,
                collector,
                resource,
                started_at: started,
                spans,
                counters: counts,
                trace_health: traces,
                metric_health: metrics,
            },
            sink,
        ))
    }

    /// Puts what is counted of spans into a registry whose prefix is `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        let SpanCounters { sent, dropped } = &self.counters;
        registry.register("otlp_spans", "Spans that the collector took", sent.clone());
        registry.register("otlp_spans_dropped", "Spans that could not be sent", dropped.clone());
    }

    /// Sends until evenkeel ends and there will be no more spans, because everything that makes some has ended; then
    /// what is left, within a bound.
    pub async fn run(mut self, registry: Arc<Registry>, stop: CancellationToken) {
        let mut batch = Vec::new();
        // A request under way is given up: what is not known to be taken is sent once more.
        stop.run_until_cancelled(self.export_until_closed(&mut batch, &registry)).await;
        while let Some(span) = self.spans.recv().await {
            if batch.len() < MAX_QUEUED_SPANS {
                batch.push(span);
            } else {
                self.counters.dropped.inc();
            }
        }
        let rest = async {
            while !batch.is_empty() && !self.trace_health.failing {
                let later = batch.split_off(batch.len().min(MAX_BATCH_SPANS));
                self.send_spans(&mut batch).await;
                batch = later;
            }
            self.send_metrics(&registry).await;
        };
        if timeout(FINAL_EXPORT_TIMEOUT, rest).await.is_err() {
            let seconds = FINAL_EXPORT_TIMEOUT.as_secs();
            tracing::warn!("the OTLP collector did not take the last spans and metrics within {seconds} s");
        }
    }

    /// Collects and sends, for as long as there may be more.
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
                    // What is not taken now waits for its time.
                    if batch.len() == MAX_BATCH_SPANS && !self.trace_health.failing {
                        self.send_spans(batch).await;
                    }
                }
                _ = spans_due.tick() => {
                    if self.trace_health.next_attempt_at.is_none_or(|again| again <= Instant::now()) {
                        self.send_spans(batch).await;
                    }
                }
                // Not the same attempt again: what is sent is what is true by then, and as often as was asked for.
                _ = metrics_due.tick() => self.send_metrics(registry).await,
            }
        }
    }

    /// Sends a batch. What may be taken later stays in it.
    async fn send_spans(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let message = encode::trace_request(&self.resource, batch).encode_to_vec();
        let answered = self.collector.post(&self.options.traces_url, message, REQUEST_TIMEOUT).await;
        let count = u64::try_from(batch.len()).unwrap_or_default();
        let told = match answered {
            Ok(answer) => {
                batch.clear();
                let rejected = rejected_spans(&answer).min(count);
                self.counters.sent.inc_by(count - rejected);
                self.counters.dropped.inc_by(rejected);
                match rejected {
                    0 => Ok(()),
                    _ => Err(ExportError {
                        message: format!("{rejected} of {count} were rejected"),
                        retryable: false,
                    }),
                }
            }
            Err(refused) => {
                if !refused.retryable {
                    batch.clear();
                    self.counters.dropped.inc_by(count);
                }
                Err(refused)
            }
        };
        self.trace_health.record(&told, &self.options);
    }

    async fn send_metrics(&mut self, registry: &Arc<Registry>) {
        let (registry, started) = (registry.clone(), self.started_at);
        // Of a large fleet that is work.
        let gathered = tokio::task::spawn_blocking(move || gather_metrics(&registry, started)).await;
        let mut told = Ok(());
        for group in gathered.unwrap_or_default() {
            let message = encode::metrics_request(&self.resource, group).encode_to_vec();
            told = self.collector.post(&self.options.metrics_url, message, REQUEST_TIMEOUT).await.map(|_| ());
            if told.is_err() {
                break;
            }
        }
        self.metric_health.record(&told, &self.options);
    }
}

impl ExportHealth {
    fn record(&mut self, result: &Result<(), ExportError>, options: &OtlpOptions) {
        let (what, collector) = (self.signal, options.origin());
        match result {
            Err(why) if !self.failing => {
                tracing::warn!(%collector, %why, "the OTLP collector does not take {what}; it is tried again");
            }
            Ok(()) if self.failing => tracing::info!(%collector, "the OTLP collector takes {what} again"),
            _ => {}
        }
        self.failing = result.is_err();
        // What is not taken at all makes room for others, which may be.
        self.next_attempt_at = match result {
            Err(refused) if refused.retryable => {
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
    // Only a native histogram can fail, and there is none.
    let families = prometheus_protobuf::encode(registry).unwrap_or_default();
    families::to_otlp_metrics(&families, MetricTimes { start, now: Timestamp::now() }, MAX_REQUEST_POINTS)
}

/// How many spans of a batch that was taken were not.
fn rejected_spans(answer: &Bytes) -> u64 {
    let answer = ExportTraceServiceResponse::decode(&**answer).unwrap_or_default();
    answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or_default())
}
