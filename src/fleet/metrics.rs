use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

type Labels = [(&'static str, &'static str); 1];

/// What the fleet counts. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct FleetMetrics {
    attaches: Family<Labels, Histogram, fn() -> Histogram>,
    attempts: Gauge,
    reconciles: Histogram,
}

impl Default for FleetMetrics {
    fn default() -> Self {
        Self {
            attaches: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.05, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 600.0])
            }),
            attempts: Gauge::default(),
            reconciles: Histogram::new([0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]),
        }
    }
}

impl FleetMetrics {
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
    pub(super) fn attempt(&self) -> Attempt<'_> {
        self.attempts.inc();
        Attempt(self)
    }

    /// Counts the time that an attempt took of the server.
    pub(super) fn attached(&self, start: Instant, well: bool) {
        let outcome = [("outcome", if well { "ok" } else { "failed" })];
        self.attaches.get_or_create(&outcome).observe(start.elapsed().as_secs_f64());
    }

    /// Counts one step of the loop.
    pub(super) fn reconciled(&self, start: Instant) {
        self.reconciles.observe(start.elapsed().as_secs_f64());
    }
}

/// An attempt that counts as under way; it may be cancelled.
#[derive(Debug)]
pub(super) struct Attempt<'a>(&'a FleetMetrics);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.0.attempts.dec();
    }
}
