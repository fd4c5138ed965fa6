//! Spans for a tracing system: one for each request to a server, each attempt to attach a server, and each reconcile.
//!
//! Promises that no span is created while none is exported, that recording a span never waits, and that no span
//! contains an argument, a result, a URL, a header or a session id. With the feature `otlp`, [`otlp`] sends spans and
//! metrics to a collector. Log lines within a span have its ids. Never influences behavior.

#[cfg(feature = "otlp")]
pub mod otlp;
mod span;
mod trace_parent;

pub use span::{AttributeValue, OpenSpan, Span, SpanData, SpanKind, SpanSender};
pub use trace_parent::TraceParent;
