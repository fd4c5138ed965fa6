//! The features other than tools: prompts, resources, completions, subscriptions, log levels; and the pages of lists.

use serde_json::json;
use serde_json::value::RawValue;

use super::message::{IncomingRequest, Outcome, member};
use super::script::Script;
use super::server::FakeServer;

/// Handles the methods of these features. Returns `None` if the method is unknown.
pub(super) fn handle_request(
    server: &FakeServer,
    request: &IncomingRequest<'_>,
    script: &Script,
) -> Option<Outcome> {
    let text = |name: &str| {
        member(request.params, name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
    };
    Some(match (request.method, request.modern) {
        ("prompts/list", _) => list_page(request, script, "prompts", &script.prompts),
        ("resources/list", _) => list_page(request, script, "resources", &script.resources),
        ("resources/templates/list", _) => list_page(request, script, "resourceTemplates", &script.templates),
        ("prompts/get", _) => {
            let content = json!({"type": "text", "text": request.params});
            request.result(&json!({"messages": [{"role": "user", "content": content}]}).to_string())
        }
        ("resources/read", _) => {
            let uri = text("uri").unwrap_or_default();
            if uri.contains("missing") {
                let code = if request.modern { -32602 } else { -32002 };
                return Some(request.error(200, code, "Resource not found", None));
            }
            let contents = json!([{"uri": uri, "text": format!("{} says {uri}", script.name)}]);
            request.result(&json!({ "contents": contents }).to_string())
        }
        ("completion/complete", _) => {
            request.result(&json!({"completion": {"values": [request.params]}}).to_string())
        }
        ("resources/subscribe", false) => {
            server.state().counters.watched.insert(text("uri").unwrap_or_default(), 1);
            request.result("{}")
        }
        ("resources/unsubscribe", false) => {
            server.state().counters.watched.remove(&text("uri").unwrap_or_default());
            request.result("{}")
        }
        ("logging/setLevel", false) => {
            server.state().counters.level = text("level");
            request.result("{}")
        }
        _ => return None,
    })
}

/// Returns one page of a list, with the page size of the script.
pub(super) fn list_page(
    request: &IncomingRequest<'_>,
    script: &Script,
    kind: &str,
    items: &[Box<RawValue>],
) -> Outcome {
    let items: Vec<&str> = items.iter().map(|item| item.get()).collect();
    let size = if script.page_size == 0 { items.len().max(1) } else { script.page_size };
    let cursor = member(request.params, "cursor").map_or(Some(0), |raw| {
        serde_json::from_str::<String>(raw.get()).ok()?.strip_prefix("page ")?.parse().ok()
    });
    let Some(start) = cursor.filter(|start| *start == 0 || *start < items.len()) else {
        return request.error(200, -32602, "Invalid cursor", None);
    };
    let end = items.len().min(start + size);
    let next = if script.repeat_cursor {
        format!(r#","nextCursor":"page {start}""#)
    } else if end < items.len() {
        format!(r#","nextCursor":"page {end}""#)
    } else {
        String::new()
    };
    let caching = if request.modern { r#","ttlMs":0,"cacheScope":"private""# } else { "" };
    request.result(&format!(r#"{{"{kind}":[{}]{next}{caching}}}"#, items[start..end].join(",")))
}
