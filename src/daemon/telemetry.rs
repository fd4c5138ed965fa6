//! The export of spans and metrics as configured by the arguments. Does nothing without the feature `otlp`.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use super::error::DaemonError;
use super::tasks::Tasks;
use crate::telemetry::SpanSender;
#[cfg(feature = "otlp")]
use crate::telemetry::otlp::{Exporter, OtlpOptions};

/// The destination of telemetry, if any.
#[derive(Clone, Debug)]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    collector: Option<OtlpOptions>,
}

/// An export that has not started.
#[derive(Debug)]
pub(super) struct PendingExport {
    #[cfg(feature = "otlp")]
    exporter: Option<Exporter>,
}

#[cfg(feature = "otlp")]
impl Telemetry {
    /// Parses the URL of a collector, and the standard OpenTelemetry variables.
    pub fn new(endpoint: Option<&str>) -> Result<Self, String> {
        let options = |endpoint| OtlpOptions::new(endpoint, |name| std::env::var(name).ok());
        let collector = endpoint.map(options).transpose();
        Ok(Self { collector: collector.map_err(|error| format!("--otlp-endpoint: {error}"))? })
    }

    /// Returns a sender that accepts spans from now on, and the export that will send them.
    pub(super) fn open(&self) -> Result<(SpanSender, PendingExport), DaemonError> {
        let Some(options) = &self.collector else {
            return Ok((SpanSender::default(), PendingExport { exporter: None }));
        };
        tracing::info!(collector = options.origin(), "exporting spans and metrics");
        let (exporter, spans) =
            Exporter::new(options.clone(), jiff::Timestamp::now()).map_err(DaemonError::new)?;
        Ok((spans, PendingExport { exporter: Some(exporter) }))
    }
}

#[cfg(feature = "otlp")]
impl PendingExport {
    /// Registers the metrics of the export.
    pub fn register(&self, registry: &mut Registry) {
        if let Some(exporter) = &self.exporter {
            exporter.register(registry);
        }
    }

    /// Starts to send.
    pub fn start(self, registry: &Arc<Registry>, tasks: &mut Tasks) {
        if let Some(exporter) = self.exporter {
            let (registry, stop) = (registry.clone(), tasks.stop_token());
            tasks.spawn("the OTLP export", async move {
                exporter.run(registry, stop).await;
                Ok(())
            });
        }
    }
}

#[cfg(not(feature = "otlp"))]
impl Telemetry {
    /// Fails if an endpoint is configured: this build has no export.
    pub fn new(endpoint: Option<&str>) -> Result<Self, String> {
        match endpoint {
            None => Ok(Self {}),
            Some(_) => {
                Err("--otlp-endpoint: this build does not include the OpenTelemetry export; rebuild with \
                 cargo install --path . --features otlp, or remove the flag and EVENKEEL_OTLP_ENDPOINT"
                    .into())
            }
        }
    }

    /// Takes no spans.
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as with the feature")]
    pub(super) fn open(&self) -> Result<(SpanSender, PendingExport), DaemonError> {
        Ok((SpanSender::default(), PendingExport {}))
    }
}

#[cfg(not(feature = "otlp"))]
#[expect(clippy::unused_self, reason = "as with the feature")]
impl PendingExport {
    /// Counts nothing.
    pub fn register(&self, _: &mut Registry) {}

    /// Sends nothing.
    pub fn start(self, _: &Arc<Registry>, _: &mut Tasks) {}
}
