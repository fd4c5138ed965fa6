//! From our spans to the messages of OTLP. Pure.

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpSpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Told, Status};

use crate::telemetry::{AttributeValue, Span, SpanData, SpanKind};

/// A batch of spans as one request.
pub(super) fn trace_request(resource: &Resource, spans: &[Span]) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans {
        scope: Some(scope()),
        spans: spans.iter().map(encode_span).collect(),
        ..ScopeSpans::default()
    }];
    let resource = Some(resource.clone());
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }],
    }
}

/// Metrics as one request.
pub(super) fn metrics_request(resource: &Resource, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
    let resource = Some(resource.clone());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }],
    }
}

/// Who reports, from keys and values.
pub(super) fn resource<'a>(attributes: impl Iterator<Item = (&'a str, &'a str)>) -> Resource {
    let attributes = attributes.map(|(key, value)| text_attribute(key, value)).collect();
    Resource { attributes, ..Resource::default() }
}

/// An attribute with a text.
pub(super) fn text_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, Any::StringValue(value.to_owned()))
}

/// Nanoseconds since 1970.
pub(super) fn unix_nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

fn scope() -> InstrumentationScope {
    let [name, version] = ["evenkeel", env!("CARGO_PKG_VERSION")].map(Into::into);
    InstrumentationScope { name, version, ..InstrumentationScope::default() }
}

fn encode_span(span: &Span) -> Told {
    let Span {
        trace_id: trace,
        span_id: id,
        parent_id: parent,
        data: SpanData { name, kind, attributes },
        start,
        end,
        error_type: error,
    } = span;
    let told = attributes.iter().map(|(key, value)| match value {
        AttributeValue::Text(value) => text_attribute(key, value),
        AttributeValue::Number(number) => attribute(key, Any::IntValue(*number)),
    });
    let failed = error.iter().map(|error| text_attribute("error.type", error));
    let status = error.as_ref().map(|_| Status { code: StatusCode::Error.into(), ..Status::default() });
    Told {
        trace_id: trace.to_vec(),
        span_id: id.to_vec(),
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        name: name.clone(),
        kind: match kind {
            SpanKind::Server => OtlpSpanKind::Server,
            SpanKind::Client => OtlpSpanKind::Client,
            SpanKind::Internal => OtlpSpanKind::Internal,
        }
        .into(),
        start_time_unix_nano: unix_nanos(*start),
        end_time_unix_nano: unix_nanos(*end),
        attributes: told.chain(failed).collect(),
        status,
        ..Told::default()
    }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
