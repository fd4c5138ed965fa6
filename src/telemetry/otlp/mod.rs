//! Sends spans and metrics to an OpenTelemetry collector: OTLP over HTTP, as protobuf.
//!
//! Promises that what waits to be sent is bounded, that a collector which is away, slow or hostile delays nothing but
//! the next batch, and that what is lost is counted and told once. The metrics are those of `/metrics`, of
//! the same registry.

mod collector;
mod encode;
mod exporter;
mod families;
mod options;

pub use exporter::Exporter;
pub use options::OtlpOptions;
