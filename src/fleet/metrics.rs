use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::new_connection::NewConnection;
use crate::plan::ConnectionTarget;
use crate::resource::{ObjectKey, SourceState, Transport};
use crate::telemetry::{OpenSpan, SpanData, SpanKind, SpanSender};
use crate::wire::{ConnectionError, ListKind};

type OutcomeLabel = [(&'static str, &'static str); 1];
type ListLabels = [(&'static str, String); 3];
type ServerLabels = [(&'static str, String); 2];

/// The fleet's metrics. Cheap to clone: clones share their values.
#[derive(Clone, Debug)]
pub struct FleetMetrics {
    attach_duration: Family<OutcomeLabel, Histogram, fn() -> Histogram>,
    attach_attempts: Gauge,
    reconcile_duration: Histogram,
    items_left_out: Family<ListLabels, Gauge>,
    server_sessions: Family<ServerLabels, Gauge>,
    spans: SpanSender,
}

impl Default for FleetMetrics {
    fn default() -> Self {
        Self {
            attach_duration: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.05, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 600.0])
            }),
            attach_attempts: Gauge::default(),
            reconcile_duration: Histogram::new([0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]),
            items_left_out: Family::default(),
            server_sessions: Family::default(),
            spans: SpanSender::default(),
        }
    }
}

impl FleetMetrics {
    /// Also exports each attempt and each reconcile as a span.
    #[must_use]
    pub fn with_spans(self, spans: SpanSender) -> Self {
        Self { spans, ..self }
    }

    /// Registers all metrics in a registry whose prefix is `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "attach_duration_seconds",
            "Duration of attempts to attach a server, in seconds",
            self.attach_duration.clone(),
        );
        registry.register(
            "attach_attempts",
            "Attempts to attach a server that are in progress or waiting for a slot",
            self.attach_attempts.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Duration of reconciles of the declared servers with the fleet, in seconds",
            self.reconcile_duration.clone(),
        );
        registry.register(
            "items_left_out",
            "Items of a server that agents do not get because their parsers would refuse the list",
            self.items_left_out.clone(),
        );
        registry.register(
            "server_sessions",
            "Connections that callers have of their own to a server with isolation Session",
            self.server_sessions.clone(),
        );
    }

    /// Sets how many items of a server's list are left out. There is no value for a list that lost none.
    pub(super) fn set_items_left_out(&self, server: &ObjectKey, list: ListKind, count: usize) {
        let labels = [
            ("namespace", server.namespace.to_string()),
            ("server", server.name.to_string()),
            ("list", list.method().to_owned()),
        ];
        if count == 0 {
            self.items_left_out.remove(&labels);
        } else {
            self.items_left_out.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets how many callers have a connection of their own to a server. There is no value for a server without any.
    pub(super) fn set_sessions(&self, server: &ObjectKey, count: u32) {
        let labels = [("namespace", server.namespace.to_string()), ("server", server.name.to_string())];
        if count == 0 {
            self.server_sessions.remove(&labels);
        } else {
            self.server_sessions.get_or_create(&labels).set(count.into());
        }
    }

    /// Counts an attempt to attach as in progress until the guard is dropped.
    pub(super) fn start_attempt(&self) -> AttemptGauge<'_> {
        self.attach_attempts.inc();
        AttemptGauge(self)
    }

    /// Starts the timer of an attempt, without its wait for a slot.
    pub(super) fn start_attach_timer(&self, target: &ConnectionTarget) -> OperationTimer<'_> {
        let transport = match target.endpoint.transport {
            Transport::Stdio(_) => "pipe",
            Transport::Http(_) => "tcp",
        };
        let draft = || SpanData {
            name: "attach".into(),
            kind: SpanKind::Client,
            attributes: vec![
                ("evenkeel.server.namespace", target.key.namespace.to_string().into()),
                ("evenkeel.server.name", target.key.name.to_string().into()),
                ("network.transport", transport.into()),
            ],
        };
        OperationTimer { metrics: self, started_at: Instant::now(), span: self.spans.begin(draft) }
    }

    /// Starts the timer of one reconcile.
    pub(super) fn start_reconcile_timer(&self, source: &SourceState) -> OperationTimer<'_> {
        let draft = || SpanData {
            name: "reconcile".into(),
            kind: SpanKind::Internal,
            attributes: vec![("evenkeel.source.revision", source.revision.to_string().into())],
        };
        OperationTimer { metrics: self, started_at: Instant::now(), span: self.spans.begin(draft) }
    }
}

/// A running timer of an attempt or a reconcile.
#[derive(Debug)]
pub(super) struct OperationTimer<'a> {
    metrics: &'a FleetMetrics,
    started_at: Instant,
    span: Option<OpenSpan>,
}

impl OperationTimer<'_> {
    /// Returns the `tracing` span of the operation's log lines.
    pub(super) fn tracing_span(&self) -> tracing::Span {
        OpenSpan::log_span(self.span.as_ref())
    }

    /// Records the duration and outcome of an attempt.
    pub(super) fn finish_attach(self, result: &Result<NewConnection, ConnectionError>) {
        let outcome = [("outcome", if result.is_ok() { "ok" } else { "failed" })];
        self.metrics.attach_duration.get_or_create(&outcome).observe(self.started_at.elapsed().as_secs_f64());
        let Some(mut span) = self.span else { return };
        match result {
            Ok(attached) => {
                span.add_attribute(
                    "mcp.protocol.version",
                    attached.connection.handshake().description.protocol_version.as_str(),
                );
                span.add_attribute("evenkeel.tools", attached.listing.lists.tools.len());
                span.end(None);
            }
            Err(error) => span.end(Some(error.problem.reason.to_string())),
        }
    }

    /// Records the duration of a reconcile that made this number of changes.
    pub(super) fn finish_reconcile(self, changes: usize) {
        self.metrics.reconcile_duration.observe(self.started_at.elapsed().as_secs_f64());
        if let Some(mut span) = self.span {
            span.add_attribute("evenkeel.changes", changes);
            span.end(None);
        }
    }
}

/// A guard that counts an attempt as in progress. Dropping it, on cancellation too, ends the count.
#[derive(Debug)]
pub(super) struct AttemptGauge<'a>(&'a FleetMetrics);

impl Drop for AttemptGauge<'_> {
    fn drop(&mut self) {
        self.0.attach_attempts.dec();
    }
}
