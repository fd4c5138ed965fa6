use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The counters of the sources. Cheap to clone: clones share the same counters.
#[derive(Clone, Debug, Default)]
pub struct SourceMetrics {
    watch_restarts: Family<[(&'static str, &'static str); 2], Counter>,
}

impl SourceMetrics {
    /// Registers the counters in a registry whose prefix is `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "watch_restarts",
            "Watches of the source that failed and were restarted",
            self.watch_restarts.clone(),
        );
    }

    /// Counts a restart of a watch of `kind`, with its reason.
    pub(super) fn record_watch_restart(&self, kind: &'static str, reason: &'static str) {
        self.watch_restarts.get_or_create(&[("kind", kind), ("reason", reason)]).inc();
    }

    #[cfg(test)]
    pub(super) fn watch_restart_count(&self, kind: &'static str, reason: &'static str) -> u64 {
        self.watch_restarts.get_or_create(&[("kind", kind), ("reason", reason)]).get()
    }
}
