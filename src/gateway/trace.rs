//! The span of a call, according to OpenTelemetry's semantic conventions for MCP servers.

use serde_json::value::RawValue;

use super::outcome::CallOutcome;
use super::routed_method::RoutedMethod;
use crate::resource::ObjectKey;
use crate::telemetry::{OpenSpan, SpanData, SpanKind, SpanSender, TraceParent};
use crate::wire::{RequestParams, RpcResponse, parse_members};

/// The data of a call's span. Only the trace parent and the exposed name are read from the params, because a URI may
/// contain a secret.
pub(super) struct CallSpan<'a> {
    pub(super) method: RoutedMethod,
    pub(super) protocol_version: &'a str,
    pub(super) params: &'a RequestParams<'a>,
}

impl CallSpan<'_> {
    /// Starts the span of a call to a server, if spans are exported.
    pub(super) fn start(&self, spans: &SpanSender, server: &ObjectKey) -> Option<OpenSpan> {
        spans.begin_child(
            || TraceParent::parse(&self.params.meta.as_ref()?.get_string("traceparent")?),
            || {
                let method = self.method.as_str();
                let mut attributes = vec![
                    ("mcp.method.name", method.into()),
                    ("mcp.protocol.version", self.protocol_version.into()),
                    ("network.transport", "tcp".into()),
                    ("network.protocol.name", "http".into()),
                    ("evenkeel.server.namespace", server.namespace.to_string().into()),
                    ("evenkeel.server.name", server.name.to_string().into()),
                ];
                let name = self.params.members.get_string("name");
                let named = match (self.method, name) {
                    (RoutedMethod::CallTool, Some(name)) => {
                        attributes.push(("gen_ai.operation.name", "execute_tool".into()));
                        Some(("gen_ai.tool.name", name))
                    }
                    (RoutedMethod::GetPrompt, Some(name)) => Some(("gen_ai.prompt.name", name)),
                    _ => None,
                };
                let name =
                    named.as_ref().map_or_else(|| method.to_owned(), |(_, name)| format!("{method} {name}"));
                attributes.extend(named.map(|(key, name)| (key, name.into_owned().into())));
                SpanData { name, kind: SpanKind::Server, attributes }
            },
        )
    }
}

/// Returns the `error.type` of a failed call; `None` if it succeeded.
pub(super) fn error_type(outcome: CallOutcome, response: Option<&RpcResponse>) -> Option<String> {
    let member = |raw: &[u8], key| {
        let raw: &RawValue = serde_json::from_slice(raw).ok()?;
        let found = parse_members(raw.get()).ok()?;
        found.get(key).map(|value| value.get().to_owned())
    };
    match (outcome, response) {
        (CallOutcome::Ok, Some(RpcResponse::Result(raw))) => {
            let failed = member(raw, "isError").is_some_and(|value| value == "true");
            failed.then(|| "tool_error".to_owned())
        }
        (CallOutcome::Ok, _) => None,
        // The code of a JSON-RPC error. A server may send any value in its place.
        (CallOutcome::Error, Some(RpcResponse::Error(raw))) => {
            let code = member(raw, "code").and_then(|code| code.parse::<i64>().ok());
            Some(code.map_or_else(|| "_OTHER".to_owned(), |code| code.to_string()))
        }
        (outcome, _) => Some(outcome.label()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn span_name_has_the_tool_name_and_never_a_uri() {
        let (spans, mut exported) = SpanSender::channel(8, Counter::default());
        let params = RequestParams::parse(r#"{"name":"x","uri":"file:///x?key=hunter2"}"#).unwrap();
        for (method, expected) in [
            (RoutedMethod::CallTool, "tools/call x"),
            (RoutedMethod::GetPrompt, "prompts/get x"),
            (RoutedMethod::ReadResource, "resources/read"),
            (RoutedMethod::Complete, "completion/complete"),
        ] {
            let call_span = CallSpan { method, protocol_version: "2025-11-25", params: &params };
            call_span.start(&spans, &ObjectKey::new("default", "s")).unwrap().end(None);
            let span = exported.try_recv().unwrap();
            assert_eq!(span.data.name, expected);
            assert!(!format!("{span:?}").contains("hunter2"), "{span:?}");
        }
    }

    #[test]
    fn error_type_has_low_cardinality() {
        let result = |text: &'static str| RpcResponse::Result(Bytes::from_static(text.as_bytes()));
        let error = |text: &'static str| RpcResponse::Error(Bytes::from_static(text.as_bytes()));
        for (outcome, response, expected) in [
            (CallOutcome::Ok, Some(result(r#"{"content":[]}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"content":[],"isError":false}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"content":[{"isError":true}]}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"isError":true}"#)), Some("tool_error")),
            (CallOutcome::Error, Some(error(r#"{"code":-32602,"message":"secret"}"#)), Some("-32602")),
            (CallOutcome::Error, Some(error(r#"{"code":"secret"}"#)), Some("_OTHER")),
            (CallOutcome::Refused, None, Some("refused")),
            (CallOutcome::Timeout, None, Some("timeout")),
        ] {
            assert_eq!(
                error_type(outcome, response.as_ref()).as_deref(),
                expected,
                "{outcome:?} {response:?}"
            );
        }
    }
}
