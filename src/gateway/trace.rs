//! The span of a call, by OpenTelemetry's semantic conventions for MCP servers.

use serde_json::value::RawValue;

use super::outcome::CallOutcome;
use super::routed_method::RoutedMethod;
use crate::resource::ObjectKey;
use crate::telemetry::{OpenSpan, SpanData, SpanKind, SpanSender, TraceParent};
use crate::wire::{RequestParams, RpcResponse, members};

/// A call as its span tells it. Of the params only the parent is read, and the name that agents know: a URI may
/// hold what nobody else is to know.
pub(super) struct CallSpan<'a> {
    pub(super) method: RoutedMethod,
    pub(super) protocol_version: &'a str,
    pub(super) params: &'a RequestParams<'a>,
}

impl CallSpan<'_> {
    /// Begins the span of a call to a server, if somebody wants it.
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

/// How a call failed, in a word; `None` if it did not.
pub(super) fn error_type(outcome: CallOutcome, reply: Option<&RpcResponse>) -> Option<String> {
    let within = |raw: &[u8], key| {
        let raw: &RawValue = serde_json::from_slice(raw).ok()?;
        let found = members(raw.get()).ok()?;
        found.get(key).map(|value| value.get().to_owned())
    };
    match (outcome, reply) {
        (CallOutcome::Ok, Some(RpcResponse::Result(raw))) => {
            let failed = within(raw, "isError").is_some_and(|value| value == "true");
            failed.then(|| "tool_error".to_owned())
        }
        (CallOutcome::Ok, _) => None,
        // The code of a JSON-RPC error; a server may write anything in its place.
        (CallOutcome::Error, Some(RpcResponse::Error(raw))) => {
            let code = within(raw, "code").and_then(|code| code.parse::<i64>().ok());
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
        let (spans, mut told) = SpanSender::channel(8, Counter::default());
        let params = RequestParams::parse(r#"{"name":"x","uri":"file:///x?key=hunter2"}"#).unwrap();
        for (ask, expected) in [
            (RoutedMethod::CallTool, "tools/call x"),
            (RoutedMethod::GetPrompt, "prompts/get x"),
            (RoutedMethod::ReadResource, "resources/read"),
            (RoutedMethod::Complete, "completion/complete"),
        ] {
            let traced = CallSpan { method: ask, protocol_version: "2025-11-25", params: &params };
            traced.start(&spans, &ObjectKey::new("default", "s")).unwrap().end(None);
            let span = told.try_recv().unwrap();
            assert_eq!(span.data.name, expected);
            assert!(!format!("{span:?}").contains("hunter2"), "{span:?}");
        }
    }

    #[test]
    fn error_type_has_low_cardinality() {
        let result = |text: &'static str| RpcResponse::Result(Bytes::from_static(text.as_bytes()));
        let refusal = |text: &'static str| RpcResponse::Error(Bytes::from_static(text.as_bytes()));
        for (outcome, reply, expected) in [
            (CallOutcome::Ok, Some(result(r#"{"content":[]}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"content":[],"isError":false}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"content":[{"isError":true}]}"#)), None),
            (CallOutcome::Ok, Some(result(r#"{"isError":true}"#)), Some("tool_error")),
            (CallOutcome::Error, Some(refusal(r#"{"code":-32602,"message":"secret"}"#)), Some("-32602")),
            (CallOutcome::Error, Some(refusal(r#"{"code":"secret"}"#)), Some("_OTHER")),
            (CallOutcome::Refused, None, Some("refused")),
            (CallOutcome::Timeout, None, Some("timeout")),
        ] {
            assert_eq!(error_type(outcome, reply.as_ref()).as_deref(), expected, "{outcome:?} {reply:?}");
        }
    }
}
