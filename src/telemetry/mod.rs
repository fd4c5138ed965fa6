//! What evenkeel does, as spans for a tracing system: one for each request that a server answers, each attempt to
//! attach a server, and each reconcile.
//!
//! Promises that nothing is made while nobody wants spans, that telling of one never waits, and that none holds an
//! argument, a result, a URL, a header or a session id. With the feature `otlp`, [`otlp`] sends them to a
//! collector, with the metrics. Log lines of the work carry its ids. Never decides anything.

#[cfg(feature = "otlp")]
pub mod otlp;
mod span;
mod trace_parent;

pub use span::{AttributeValue, OpenSpan, Span, SpanData, SpanKind, SpanSender};
pub use trace_parent::TraceParent;
