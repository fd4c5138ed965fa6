//! Exports spans and metrics to an OpenTelemetry collector: OTLP over HTTP, encoded as protobuf.
//!
//! Promises that the export queue is bounded, that an unreachable, slow or hostile collector delays nothing but the
//! next batch, and that lost spans are counted and logged once. The metrics are those of `/metrics`, from the same
//! registry.

mod collector;
mod encode;
mod exporter;
mod families;
mod options;

pub use exporter::Exporter;
pub use options::OtlpOptions;
