//! The tools of the fake server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::input;
use super::message::{IncomingRequest, InterimEvent, InterimSender, Outcome, member};
use super::script::{Script, raw_json};
use super::server::FakeServer;

/// The descriptor of the tool `odd`: members, spellings and numbers that no typed model of a tool preserves.
pub const ODD_TOOL: &str = r#"{"name":"odd","title":"Odd \u00fc","x-vendor": {"deep": [1.0e+2, {"a":1,"a":2}]},"inputSchema":{"type":"object","$comment":"kept","x-range":[0, 1E3]},"execution":{"taskSupport":"forbidden","later":true},"icons":[{"src":"data:image/png;base64,AA==","theme":"dark","later":1}],"annotations":{"readOnlyHint":true,"xHint":"kept"},"_meta":{"example.com/kept":12345678901234567890123}}"#;

/// The result of the tool `odd`: content, members and numbers that no typed model of a result preserves.
pub const ODD_RESULT: &str = r#"{"content":[{"type":"hologram","beams": [1.0e+2,-0.0],"nested":{"k":null}},{"type":"text","text":"\u00e9\/","annotations":{"audience":["later"]},"x":1}],"structuredContent":{"n":12345678901234567890123,"f":1.10},"x-later": {"a":[ ]},"_meta":{"example.com/kept":"yes"}}"#;

/// Returns the tool descriptors of the script, as they are sent.
pub(super) fn descriptors(script: &Script) -> Vec<Box<RawValue>> {
    script
        .tools
        .iter()
        .map(|tool| match serde_json::from_str::<String>(tool.get()) {
            Ok(name) => raw_json(&descriptor(&name)),
            Err(_) => tool.clone(),
        })
        .collect()
}

/// Returns the `inputSchema` of the called tool, if the script lists it.
pub(super) fn called_input_schema(script: &Script, request: &IncomingRequest<'_>) -> Option<Value> {
    if request.method != "tools/call" {
        return None;
    }
    let name = member(request.params, "name")?;
    descriptors(script).into_iter().find_map(|tool| {
        (member(tool.get(), "name")?.get() == name.get())
            .then(|| serde_json::from_str(member(tool.get(), "inputSchema")?.get()).ok())?
    })
}

fn descriptor(name: &str) -> String {
    if name == "odd" {
        return ODD_TOOL.into();
    }
    let (description, properties) = match name {
        "report" => ("Returns the process id, environment and counters of the server.", json!({})),
        "sleep" => (
            "Returns after a delay, with progress notifications in between.",
            json!({"ms": {"type": "integer"}, "steps": {"type": "integer"}}),
        ),
        "reply" => ("Returns the given result.", json!({"result": {"type": "object"}})),
        "fail" => ("Returns the given error.", json!({"error": {"type": "object"}})),
        "big" => ("Returns that many bytes of text.", json!({"bytes": {"type": "integer"}})),
        "ask" => ("Requests input of the agent.", json!({"requests": {"type": "array"}})),
        "log" => ("Sends a log message before the response.", json!({"data": {}})),
        "mirror" => (
            "Requires its region in a header too.",
            json!({"region": {"type": "string", "x-mcp-header": "Region"}}),
        ),
        _ => ("Returns the params byte for byte.", json!({})),
    };
    json!({
        "name": name,
        "description": description,
        "inputSchema": {"type": "object", "properties": properties},
    })
    .to_string()
}

/// Runs a tool. A tool with an unknown name returns its params.
pub(super) async fn call(
    server: &Arc<FakeServer>,
    request: &IncomingRequest<'_>,
    interim: &InterimSender,
) -> Outcome {
    let argument =
        |name: &str| member(request.params, "arguments").and_then(|arguments| member(arguments.get(), name));
    let number = |name: &str| argument(name).and_then(|raw| raw.get().parse::<u64>().ok());
    let name = member(request.params, "name").map_or("", RawValue::get).trim_matches('"');
    match name {
        "odd" => request.raw_result(ODD_RESULT),
        "reply" => request.raw_result(argument("result").map_or("{}", RawValue::get)),
        "fail" => Outcome::Response {
            status: 200,
            text: format!(
                r#"{{"jsonrpc":"2.0","id":{},"error":{}}}"#,
                request.id,
                argument("error").map_or(r#"{"code":-1,"message":"failed as requested"}"#, RawValue::get)
            ),
            session: None,
        },
        "big" => {
            let bytes = usize::try_from(number("bytes").unwrap_or(0)).unwrap();
            request.result(&text_result(&"x".repeat(bytes)))
        }
        "sleep" => {
            let steps = number("steps").unwrap_or(0);
            let interval =
                Duration::from_millis(number("ms").unwrap_or(0)) / u32::try_from(steps + 1).unwrap();
            for step in 1..=steps {
                tokio::time::sleep(interval).await;
                send_progress(request, interim, step, steps);
            }
            tokio::time::sleep(interval).await;
            request.result(&text_result("slept"))
        }
        "log" => {
            let data = argument("data").map_or("null", RawValue::get);
            let params = format!(r#"{{"level":"info","data":{data}}}"#);
            let _ = interim.send(InterimEvent::Message(format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{params}}}"#
            )));
            // The message is received before the response is ready: over HTTP that begins a stream.
            tokio::task::yield_now().await;
            request.result(&text_result("logged"))
        }
        "ask" => input::ask(server, request, interim).await,
        "report" => request.result(&text_result(&server_report(server, request).to_string())),
        _ => request.result(&text_result(request.params)),
    }
}

fn send_progress(request: &IncomingRequest<'_>, interim: &InterimSender, step: u64, steps: u64) {
    let token = member(request.params, "_meta").and_then(|meta| member(meta.get(), "progressToken"));
    if let Some(token) = token {
        let progress = format!(r#""progress":{step},"total":{steps},"message":"step {step}""#);
        let params = format!(r#"{{"progressToken":{token},{progress},"x-later":[1.0e+2]}}"#);
        let _ = interim.send(InterimEvent::Message(format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}"#
        )));
    }
}

fn server_report(server: &FakeServer, request: &IncomingRequest<'_>) -> Value {
    let headers: BTreeMap<_, _> = request
        .headers
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    json!({
        "pid": std::process::id(),
        "cwd": std::env::current_dir().unwrap_or_default(),
        "args": std::env::args().collect::<Vec<_>>(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "headers": headers,
        "modern": request.modern,
        "counters": server.counters(),
    })
}

fn text_result(text: &str) -> String {
    json!({"content": [{"type": "text", "text": text}]}).to_string()
}
