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
use super::collector::{Collector, ExportError};
use super::encode;
use super::families::{self, MetricTimes};
use crate::net::{Backoff, Delays, jitter};
use crate::telemetry::{Span, SpanSender};

/// Spans that wait to be collected; what finds no room is dropped.
const WAITING: usize = 2_048;
/// Spans in one request.
const BATCH: usize = 512;
/// Points of metrics in one request.
const POINTS: usize = 4_096;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// The delays before spans that were not taken are sent again, if the time between two requests is not longer.
const RETRY: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_secs(30) };
/// How long everything that is left may take once evenkeel ends.
const LAST: Duration = Duration::from_secs(2);

/// Collects spans and sends them, and the metrics, until evenkeel ends.
#[derive(Debug)]
pub struct Exporter {
    options: OtlpOptions,
    collector: Collector,
    resource: Resource,
    started: Timestamp,
    spans: mpsc::Receiver<Span>,
    counts: Counts,
    traces: Health,
    metrics: Health,
}

#[derive(Debug, Default)]
struct Counts {
    sent: Counter,
    dropped: Counter,
}

/// Whether a kind of message is taken; said when that changes, and not each time.
#[derive(Debug)]
struct Health {
    what: &'static str,
    failing: bool,
    backoff: Backoff,
    /// When it may be sent again, after it was not taken.
    again: Option<Instant>,
}

impl Exporter {
    /// An exporter, and where it takes spans from. An error says why there can be no TLS.
    pub fn new(options: OtlpOptions, started: Timestamp) -> io::Result<(Self, SpanSender)> {
        let collector = Collector::new(options.headers.clone(), options.traces.scheme() == "https")?;
        let counts = Counts::default();
        let (sink, spans) = SpanSender::channel(WAITING, counts.dropped.clone());
        let instance = Uuid::new_v4().to_string();
        let named = options.resource.iter().map(|(key, value)| (&**key, &**value));
        let resource = encode::resource(named.chain([("service.instance.id", &*instance)]));
        let [traces, metrics] = ["spans", "metrics"].map(|what| Health {
            what,
            failing: false,
            backoff: Backoff::default(),
            again: None,
        });
        Ok((Self { options, collector, resource, started, spans, counts, traces, metrics }, sink))
    }

    /// Puts what is counted of spans into a registry whose prefix is `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        let Counts { sent, dropped } = &self.counts;
        registry.register("otlp_spans", "Spans that the collector took", sent.clone());
        registry.register("otlp_spans_dropped", "Spans that could not be sent", dropped.clone());
    }

    /// Sends until evenkeel ends and there will be no more spans, because everything that makes some has ended; then
    /// what is left, within a bound.
    pub async fn run(mut self, registry: Arc<Registry>, stop: CancellationToken) {
        let mut batch = Vec::new();
        // A request under way is given up: what is not known to be taken is sent once more.
        stop.run_until_cancelled(self.attend(&mut batch, &registry)).await;
        while let Some(span) = self.spans.recv().await {
            if batch.len() < WAITING {
                batch.push(span);
            } else {
                self.counts.dropped.inc();
            }
        }
        let rest = async {
            while !batch.is_empty() && !self.traces.failing {
                let later = batch.split_off(batch.len().min(BATCH));
                self.send_spans(&mut batch).await;
                batch = later;
            }
            self.send_metrics(&registry).await;
        };
        if timeout(LAST, rest).await.is_err() {
            let seconds = LAST.as_secs();
            tracing::warn!("the OTLP collector did not take the last spans and metrics within {seconds} s");
        }
    }

    /// Collects and sends, for as long as there may be more.
    async fn attend(&mut self, batch: &mut Vec<Span>, registry: &Arc<Registry>) {
        let ticks = |period| {
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut spans_due = ticks(self.options.span_delay);
        let mut metrics_due = ticks(self.options.metric_interval);
        loop {
            let room = BATCH - batch.len();
            tokio::select! {
                received = self.spans.recv_many(batch, room), if room > 0 => {
                    if received == 0 {
                        return;
                    }
                    // What is not taken now waits for its time.
                    if batch.len() == BATCH && !self.traces.failing {
                        self.send_spans(batch).await;
                    }
                }
                _ = spans_due.tick() => {
                    if self.traces.again.is_none_or(|again| again <= Instant::now()) {
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
        let message = encode::traces(&self.resource, batch).encode_to_vec();
        let answered = self.collector.post(&self.options.traces, message, REQUEST).await;
        let count = u64::try_from(batch.len()).unwrap_or_default();
        let told = match answered {
            Ok(answer) => {
                batch.clear();
                let rejected = rejected(&answer).min(count);
                self.counts.sent.inc_by(count - rejected);
                self.counts.dropped.inc_by(rejected);
                match rejected {
                    0 => Ok(()),
                    _ => Err(ExportError {
                        why: format!("{rejected} of {count} were rejected"),
                        passes: false,
                    }),
                }
            }
            Err(refused) => {
                if !refused.passes {
                    batch.clear();
                    self.counts.dropped.inc_by(count);
                }
                Err(refused)
            }
        };
        self.traces.tell(&told, &self.options);
    }

    async fn send_metrics(&mut self, registry: &Arc<Registry>) {
        let (registry, started) = (registry.clone(), self.started);
        // Of a large fleet that is work.
        let gathered = tokio::task::spawn_blocking(move || gather(&registry, started)).await;
        let mut told = Ok(());
        for group in gathered.unwrap_or_default() {
            let message = encode::metrics(&self.resource, group).encode_to_vec();
            told = self.collector.post(&self.options.metrics, message, REQUEST).await.map(|_| ());
            if told.is_err() {
                break;
            }
        }
        self.metrics.tell(&told, &self.options);
    }
}

impl Health {
    fn tell(&mut self, result: &Result<(), ExportError>, options: &OtlpOptions) {
        let (what, collector) = (self.what, options.origin());
        match result {
            Err(why) if !self.failing => {
                tracing::warn!(%collector, %why, "the OTLP collector does not take {what}; it is tried again");
            }
            Ok(()) if self.failing => tracing::info!(%collector, "the OTLP collector takes {what} again"),
            _ => {}
        }
        self.failing = result.is_err();
        // What is not taken at all makes room for others, which may be.
        self.again = match result {
            Err(refused) if refused.passes => Some(Instant::now() + self.backoff.fail(RETRY, jitter(), None)),
            _ => {
                self.backoff.reset();
                None
            }
        };
    }
}

fn gather(registry: &Registry, start: Timestamp) -> Vec<Vec<Metric>> {
    // Only a native histogram can fail, and there is none.
    let families = prometheus_protobuf::encode(registry).unwrap_or_default();
    families::metrics(&families, MetricTimes { start, now: Timestamp::now() }, POINTS)
}

/// How many spans of a batch that was taken were not.
fn rejected(answer: &Bytes) -> u64 {
    let answer = ExportTraceServiceResponse::decode(&**answer).unwrap_or_default();
    answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or_default())
}
