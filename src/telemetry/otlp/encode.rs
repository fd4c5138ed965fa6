//! Converts spans and metrics to OTLP messages. Pure functions.

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ValueKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpSpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status};

use crate::telemetry::{AttributeValue, Span, SpanData, SpanKind};

/// Encodes a batch of spans as one request.
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

/// Encodes metrics as one request.
pub(super) fn metrics_request(resource: &Resource, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }];
    let resource = Some(resource.clone());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }],
    }
}

/// Creates the OTLP resource, which identifies this instance, from keys and values.
pub(super) fn resource<'a>(attributes: impl Iterator<Item = (&'a str, &'a str)>) -> Resource {
    let attributes = attributes.map(|(key, value)| text_attribute(key, value)).collect();
    Resource { attributes, ..Resource::default() }
}

/// Creates an attribute with a text value.
pub(super) fn text_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, ValueKind::StringValue(value.to_owned()))
}

/// Returns the nanoseconds since the Unix epoch.
pub(super) fn unix_nanos(timestamp: Timestamp) -> u64 {
    u64::try_from(timestamp.as_nanosecond()).unwrap_or_default()
}

fn scope() -> InstrumentationScope {
    let [name, version] = ["evenkeel", env!("CARGO_PKG_VERSION")].map(Into::into);
    InstrumentationScope { name, version, ..InstrumentationScope::default() }
}

fn encode_span(span: &Span) -> OtlpSpan {
    let Span {
        trace_id,
        span_id,
        parent_id,
        data: SpanData { name, kind, attributes },
        start,
        end,
        error_type,
    } = span;
    let attributes = attributes.iter().map(|(key, value)| match value {
        AttributeValue::Text(value) => text_attribute(key, value),
        AttributeValue::Number(number) => attribute(key, ValueKind::IntValue(*number)),
    });
    let error_attribute = error_type.iter().map(|error_type| text_attribute("error.type", error_type));
    let status = error_type.as_ref().map(|_| Status { code: StatusCode::Error.into(), ..Status::default() });
    OtlpSpan {
        trace_id: trace_id.to_vec(),
        span_id: span_id.to_vec(),
        parent_span_id: parent_id.map(Vec::from).unwrap_or_default(),
        name: name.clone(),
        kind: match kind {
            SpanKind::Server => OtlpSpanKind::Server,
            SpanKind::Client => OtlpSpanKind::Client,
            SpanKind::Internal => OtlpSpanKind::Internal,
        }
        .into(),
        start_time_unix_nano: unix_nanos(*start),
        end_time_unix_nano: unix_nanos(*end),
        attributes: attributes.chain(error_attribute).collect(),
        status,
        ..OtlpSpan::default()
    }
}

fn attribute(key: &str, value: ValueKind) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
