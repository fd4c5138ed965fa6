//! The tool `ask`, which requests input of the agent.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::message::{IncomingRequest, InterimEvent, InterimSender, Outcome, member};
use super::server::{FakeServer, ServerEvent};

/// Runs the tool. Its arguments:
///
/// - `requests`: the requests (`method` and `params`), in order. A legacy server sends one after the other, a modern one
///   asks for all at once, with the keys `q0`, `q1` and so on;
/// - `rounds`: the number of times that a modern server asks (default 1);
/// - `on_get`: true to send a legacy request on the GET stream;
/// - `cancel`: true to cancel the first legacy request once it was sent, and not to wait for its response;
/// - `then_ms`: the time from the last response to a legacy server until its result, in milliseconds.
///
/// The text of the result is the JSON array of the responses; a modern server's is the last `inputResponses`.
pub(super) async fn ask(
    server: &Arc<FakeServer>,
    request: &IncomingRequest<'_>,
    interim: &InterimSender,
) -> Outcome {
    let arguments = member(request.params, "arguments").map_or("{}", RawValue::get);
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    let requests = arguments["requests"].as_array().cloned().unwrap_or_default();
    if request.modern {
        return ask_modern(request, &arguments, &requests);
    }
    let mut responses = Vec::new();
    for input in requests {
        let (id, response) = server.open_question();
        let text = json!({
            "jsonrpc": "2.0", "id": id, "method": input["method"], "params": input["params"],
        })
        .to_string();
        if arguments["on_get"] == true {
            server.send_event(ServerEvent::Message(text));
        } else {
            let _ = interim.send(InterimEvent::Message(text));
        }
        if arguments["cancel"] == true {
            tokio::task::yield_now().await;
            let cancelled = json!({
                "jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": { "requestId": id, "reason": "too late" },
            });
            let _ = interim.send(InterimEvent::Message(cancelled.to_string()));
            tokio::task::yield_now().await;
            break;
        }
        responses.push(response.await.unwrap_or_default());
    }
    if let Some(ms) = arguments["then_ms"].as_u64() {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let text = format!("[{}]", responses.join(","));
    request.result(&json!({"content": [{"type": "text", "text": text}]}).to_string())
}

fn ask_modern(request: &IncomingRequest<'_>, arguments: &Value, requests: &[Value]) -> Outcome {
    let params: Value = serde_json::from_str(request.params).unwrap();
    let capabilities = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    for (method, capability) in [
        ("elicitation/create", "elicitation"),
        ("sampling/createMessage", "sampling"),
        ("roots/list", "roots"),
    ] {
        if requests.iter().any(|input| input["method"] == method) && capabilities[capability].is_null() {
            let required = json!({ "requiredCapabilities": { capability: {} } }).to_string();
            return request.error(400, -32021, "Missing required client capability", Some(&required));
        }
    }
    let rounds = arguments["rounds"].as_u64().unwrap_or(1);
    let round = match params["requestState"].as_str() {
        None => 0,
        Some(state) => match state.strip_prefix("round ").and_then(|round| round.parse::<u64>().ok()) {
            Some(round) => round,
            None => return request.error(200, -32602, "requestState is not mine", None),
        },
    };
    if round >= rounds {
        let text = params["inputResponses"].to_string();
        return request.result(&json!({"content": [{"type": "text", "text": text}]}).to_string());
    }
    let keyed: serde_json::Map<_, _> =
        requests.iter().enumerate().map(|(index, input)| (format!("q{index}"), input.clone())).collect();
    request.raw_result(
        &json!({
            "resultType": "input_required", "inputRequests": keyed, "requestState": format!("round {}", round + 1),
        })
        .to_string(),
    )
}

impl FakeServer {
    /// Returns a new id for a request to the client, and the receiver of the whole response.
    fn open_question(&self) -> (String, oneshot::Receiver<String>) {
        let mut state = self.state();
        state.last_number += 1;
        let id = format!("question {}", state.last_number);
        let (sender, response) = oneshot::channel();
        state.questions.insert(id.clone(), sender);
        (id, response)
    }

    /// Gives a response of the client to the question that it belongs to.
    pub(super) fn answer_question(&self, id: Option<&str>, response: &[u8]) {
        let id: Option<String> = id.and_then(|id| serde_json::from_str(id).ok());
        let question = id.and_then(|id| self.state().questions.remove(&id));
        if let Some(question) = question {
            let _ = question.send(String::from_utf8_lossy(response).into_owned());
        }
    }
}
