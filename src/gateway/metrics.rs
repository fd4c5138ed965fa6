use std::sync::Arc;

use arc_swap::ArcSwap;
use imbl::HashMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::limits::ExceededLimit;
use super::outcome::CallOutcome;
use super::trace::{self, CallSpan};
use crate::resource::ObjectKey;
use crate::telemetry::{OpenSpan, SpanSender};
use crate::wire::RpcResponse;

type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of the gateway. Cheap to clone; clones share their values.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    calls: Family<Labels<3>, Counter>,
    durations: Family<Labels<2>, Histogram, fn() -> Histogram>,
    /// The two above by server, so that a call allocates no labels and shares no lock with other servers.
    servers: Arc<ArcSwap<HashMap<ObjectKey, Arc<ServerMetrics>>>>,
    pub(super) connections: Gauge,
    pub(super) sessions: Gauge,
    pub(super) streams: Gauge,
    pub(super) generation: Gauge,
    pub(super) evictions: Counter,
    /// Calls that stay open at their servers while their agents obtain input.
    pub(super) suspended_calls: Gauge,
    /// Responses of agents to requests that are not open.
    pub(super) unexpected_responses: Counter,
    refusals: Family<Labels<1>, Counter>,
    spans: SpanSender,
}

#[derive(Debug)]
struct ServerMetrics {
    ok: Counter,
    error: Counter,
    refused: Counter,
    failed: Counter,
    timeout: Counter,
    cancelled: Counter,
    duration: Histogram,
}

/// Measures one call. If it is dropped without [`end`](Self::end), the call counts as cancelled.
#[derive(Debug)]
pub(super) struct CallTimer {
    server: Arc<ServerMetrics>,
    start: Instant,
    outcome: CallOutcome,
    span: Option<OpenSpan>,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let refusals = Family::default();
        for limit in ExceededLimit::ALL {
            // Each counter is there from the start, so that its first increase is visible.
            drop(refusals.get_or_create(&limit_labels(limit)));
        }
        Self {
            calls: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0])
            }),
            servers: Arc::default(),
            connections: Gauge::default(),
            sessions: Gauge::default(),
            streams: Gauge::default(),
            generation: Gauge::default(),
            evictions: Counter::default(),
            suspended_calls: Gauge::default(),
            unexpected_responses: Counter::default(),
            refusals,
            spans: SpanSender::default(),
        }
    }
}

impl GatewayMetrics {
    /// Also exports each call as a span.
    #[must_use]
    pub fn with_spans(self, spans: SpanSender) -> Self {
        Self { spans, ..self }
    }

    /// Registers all metrics in a registry with the prefix `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("calls", "Requests routed to servers, by server and outcome", self.calls.clone());
        registry.register(
            "call_duration_seconds",
            "Duration of requests routed to servers",
            self.durations.clone(),
        );
        registry.register("agent_connections", "Open connections of agents", self.connections.clone());
        registry.register("agent_sessions", "Legacy sessions held by this process", self.sessions.clone());
        registry.register("agent_streams", "Open notification streams of agents", self.streams.clone());
        registry.register(
            "agent_evictions",
            "Connections closed because the agent stopped reading",
            self.evictions.clone(),
        );
        registry.register(
            "suspended_calls",
            "Calls that wait for input of modern agents",
            self.suspended_calls.clone(),
        );
        registry.register(
            "unexpected_responses",
            "Responses of agents to requests that are not open",
            self.unexpected_responses.clone(),
        );
        registry.register(
            "agent_refusals",
            "Requests of agents refused because of a limit",
            self.refusals.clone(),
        );
        registry.register(
            "catalog_generation",
            "Number of the current catalog generation",
            self.generation.clone(),
        );
    }

    /// Starts to measure a call.
    pub(super) fn start_timer(&self, server: &ObjectKey, span: &CallSpan<'_>) -> CallTimer {
        let existing = self.servers.load().get(server).cloned();
        CallTimer {
            server: existing.unwrap_or_else(|| self.add_server(server)),
            start: Instant::now(),
            outcome: CallOutcome::Cancelled,
            span: span.start(&self.spans, server),
        }
    }

    /// Counts a request that was refused because of a limit.
    pub(super) fn count_refusal(&self, limit: ExceededLimit) {
        self.refusals.get_or_create(&limit_labels(limit)).inc();
    }

    /// Removes the metrics of servers that no longer exist.
    pub(super) fn retain_servers(&self, exists: impl Fn(&ObjectKey) -> bool) {
        let removed: Vec<_> = self.servers.load().keys().filter(|key| !exists(key)).cloned().collect();
        for key in removed {
            self.servers.rcu(|servers| servers.without(&key));
            self.durations.remove(&server_labels(&key));
            for outcome in CallOutcome::ALL {
                self.calls.remove(&call_labels(&key, outcome));
            }
        }
    }

    fn add_server(&self, server: &ObjectKey) -> Arc<ServerMetrics> {
        let calls = |outcome| self.calls.get_or_create_owned(&call_labels(server, outcome));
        let metrics = Arc::new(ServerMetrics {
            ok: calls(CallOutcome::Ok),
            error: calls(CallOutcome::Error),
            refused: calls(CallOutcome::Refused),
            failed: calls(CallOutcome::Failed),
            timeout: calls(CallOutcome::Timeout),
            cancelled: calls(CallOutcome::Cancelled),
            duration: self.durations.get_or_create_owned(&server_labels(server)),
        });
        self.servers.rcu(|servers| servers.update(server.clone(), metrics.clone()));
        metrics
    }
}

impl CallTimer {
    /// Returns the `tracing` span for log lines of the call.
    pub(super) fn tracing_span(&self) -> tracing::Span {
        OpenSpan::log_span(self.span.as_ref())
    }

    /// Ends the measurement, with the server's response if there is one.
    pub(super) fn end(mut self, outcome: CallOutcome, response: Option<&RpcResponse>) {
        self.outcome = outcome;
        if let Some(span) = self.span.take() {
            span.end(trace::error_type(outcome, response));
        }
    }
}

impl Drop for CallTimer {
    fn drop(&mut self) {
        let counter = match self.outcome {
            CallOutcome::Ok => &self.server.ok,
            CallOutcome::Error => &self.server.error,
            CallOutcome::Refused => &self.server.refused,
            CallOutcome::Failed => &self.server.failed,
            CallOutcome::Timeout => &self.server.timeout,
            CallOutcome::Cancelled => &self.server.cancelled,
        };
        counter.inc();
        self.server.duration.observe(self.start.elapsed().as_secs_f64());
    }
}

fn limit_labels(limit: ExceededLimit) -> Labels<1> {
    [("limit", limit.label().to_owned())]
}

fn server_labels(server: &ObjectKey) -> Labels<2> {
    [("namespace", server.namespace.to_string()), ("server", server.name.to_string())]
}

fn call_labels(server: &ObjectKey, outcome: CallOutcome) -> Labels<3> {
    let [namespace, name] = server_labels(server);
    [namespace, name, ("outcome", outcome.label())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routed_method::RoutedMethod;
    use crate::wire::RequestParams;

    fn encoded(metrics: &GatewayMetrics) -> String {
        let mut registry = Registry::with_prefix("evenkeel");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn calls_are_counted_by_server_and_outcome() {
        let metrics = GatewayMetrics::default();
        let server = ObjectKey::new("default", "gh");
        let span = CallSpan {
            method: RoutedMethod::CallTool,
            protocol_version: "2026-07-28",
            params: &RequestParams::default(),
        };
        metrics.start_timer(&server, &span).end(CallOutcome::Ok, None);
        metrics.start_timer(&server, &span).end(CallOutcome::Ok, None);
        drop(metrics.start_timer(&server, &span));
        let text = encoded(&metrics);
        for line in [
            r#"evenkeel_calls_total{namespace="default",server="gh",outcome="ok"} 2"#,
            r#"evenkeel_calls_total{namespace="default",server="gh",outcome="cancelled"} 1"#,
            r#"evenkeel_call_duration_seconds_count{namespace="default",server="gh"} 3"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
        metrics.retain_servers(|_| false);
        assert!(!encoded(&metrics).contains("gh"));
    }
}
