use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::new_connection::NewConnection;
use crate::plan::ConnectionTarget;
use crate::resource::{SourceState, Transport};
use crate::telemetry::{OpenSpan, SpanData, SpanKind, SpanSender};
use crate::wire::ConnectionError;

type Labels = [(&'static str, &'static str); 1];

/// What the fleet counts. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct FleetMetrics {
    attaches: Family<Labels, Histogram, fn() -> Histogram>,
    attempts: Gauge,
    reconciles: Histogram,
    spans: SpanSender,
}

impl Default for FleetMetrics {
    fn default() -> Self {
        Self {
            attaches: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.05, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 600.0])
            }),
            attempts: Gauge::default(),
            reconciles: Histogram::new([0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]),
            spans: SpanSender::default(),
        }
    }
}

impl FleetMetrics {
    /// Tells of each attempt and each reconcile as a span, too.
    #[must_use]
    pub fn traced(self, spans: SpanSender) -> Self {
        Self { spans, ..self }
    }

    /// Puts everything into a registry whose prefix is `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "attach_duration_seconds",
            "Time from the start of an attempt to attach a server to its outcome",
            self.attaches.clone(),
        );
        registry.register(
            "attach_attempts",
            "Attempts to attach a server that are under way or wait for their turn",
            self.attempts.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time to compare what is declared with what is connected and to give the orders",
            self.reconciles.clone(),
        );
    }

    /// Begins an attempt to attach.
    pub(super) fn attempt(&self) -> AttemptGauge<'_> {
        self.attempts.inc();
        AttemptGauge(self)
    }

    /// Begins to measure the time that an attempt takes of the server.
    pub(super) fn attach(&self, target: &ConnectionTarget) -> ReconcileTimer<'_> {
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
        ReconcileTimer { metrics: self, start: Instant::now(), span: self.spans.begin(draft) }
    }

    /// Begins to measure one step of the loop.
    pub(super) fn reconcile(&self, source: &SourceState) -> ReconcileTimer<'_> {
        let draft = || SpanData {
            name: "reconcile".into(),
            kind: SpanKind::Internal,
            attributes: vec![("evenkeel.source.revision", source.revision.to_string().into())],
        };
        ReconcileTimer { metrics: self, start: Instant::now(), span: self.spans.begin(draft) }
    }
}

/// Work that is being measured.
#[derive(Debug)]
pub(super) struct ReconcileTimer<'a> {
    metrics: &'a FleetMetrics,
    start: Instant,
    span: Option<OpenSpan>,
}

impl ReconcileTimer<'_> {
    /// Gives the `tracing` span in which log lines of the work are written.
    pub(super) fn context(&self) -> tracing::Span {
        OpenSpan::context(self.span.as_ref())
    }

    /// Ends the measurement of an attempt.
    pub(super) fn attached(self, result: &Result<NewConnection, ConnectionError>) {
        let outcome = [("outcome", if result.is_ok() { "ok" } else { "failed" })];
        self.metrics.attaches.get_or_create(&outcome).observe(self.start.elapsed().as_secs_f64());
        let Some(mut span) = self.span else { return };
        match result {
            Ok(attached) => {
                span.add("mcp.protocol.version", attached.link.peer().about.protocol_version.as_str());
                span.add("evenkeel.tools", attached.listings.lists.tools.len());
                span.end(None);
            }
            Err(error) => span.end(Some(error.problem.reason.to_string())),
        }
    }

    /// Ends the measurement of a step that gave so many orders.
    pub(super) fn reconciled(self, changes: usize) {
        self.metrics.reconciles.observe(self.start.elapsed().as_secs_f64());
        if let Some(mut span) = self.span {
            span.add("evenkeel.changes", changes);
            span.end(None);
        }
    }
}

/// An attempt that counts as under way; it may be cancelled.
#[derive(Debug)]
pub(super) struct AttemptGauge<'a>(&'a FleetMetrics);

impl Drop for AttemptGauge<'_> {
    fn drop(&mut self) {
        self.0.attempts.dec();
    }
}
