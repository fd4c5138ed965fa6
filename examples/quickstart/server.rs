//! A small MCP server for the quickstart: `quickstart-server clock` or `quickstart-server notes`.
//!
//! It speaks MCP 2025-11-25 over stdio: one JSON-RPC message a line. Notes are kept in memory.

use std::io::{BufRead, Error, Write, stdin, stdout};

use jiff::civil::Date;
use jiff::{Unit, Zoned};
use serde_json::{Value, json};

const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;

/// The two servers in one program.
enum Server {
    Clock,
    Notes(Vec<String>),
}

/// The code and message of a JSON-RPC error.
type RpcError = (i64, String);

impl Server {
    fn name(&self) -> &'static str {
        match self {
            Self::Clock => "quickstart-clock",
            Self::Notes(_) => "quickstart-notes",
        }
    }

    fn tools(&self) -> Vec<Value> {
        match self {
            Self::Clock => vec![
                tool("now", "Returns the current date and time.", None),
                tool(
                    "days_until",
                    "Returns the number of days from today to a date.",
                    Some(("date", "The date, such as 2027-01-01")),
                ),
            ],
            Self::Notes(_) => vec![
                tool(
                    "add_note",
                    "Adds a note, which is kept until the server exits.",
                    Some(("text", "The note")),
                ),
                tool("list_notes", "Lists all notes.", None),
            ],
        }
    }

    /// Runs a tool. The inner error is for the model; `None` means that there is no such tool.
    fn call(&mut self, tool: &str, arguments: &Value) -> Option<Result<String, String>> {
        let argument = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        let now = Zoned::now();
        Some(match (self, tool) {
            (Self::Clock, "now") => Ok(now.strftime("%A, %-d %B %Y, %H:%M:%S %Z").to_string()),
            (Self::Clock, "days_until") => argument("date")
                .parse::<Date>()
                .and_then(|date| now.date().until((Unit::Day, date)))
                .map(|span| format!("{} days", span.get_days()))
                .map_err(|error| format!("{:?} is not a date: {error}", argument("date"))),
            (Self::Notes(notes), "add_note") => {
                notes.push(argument("text"));
                Ok(format!("added note {}", notes.len()))
            }
            (Self::Notes(notes), "list_notes") => Ok(notes.join("\n")),
            _ => return None,
        })
    }

    /// Returns the result of a request.
    fn handle(&mut self, method: &str, params: &Value) -> Result<Value, RpcError> {
        match method {
            "initialize" => Ok(json!({
                "protocolVersion": "2025-11-25",
                "capabilities": { "tools": {} },
                "serverInfo": { "name": self.name(), "version": env!("CARGO_PKG_VERSION") },
            })),
            "ping" => Ok(json!({})),
            "tools/list" => Ok(json!({ "tools": self.tools() })),
            "tools/call" => {
                let name = params["name"].as_str().unwrap_or_default();
                let result = self.call(name, &params["arguments"]);
                let result = result.ok_or_else(|| (INVALID_PARAMS, format!("unknown tool: {name}")))?;
                let is_error = result.is_err();
                let text = result.unwrap_or_else(|error| error);
                Ok(json!({ "content": [{ "type": "text", "text": text }], "isError": is_error }))
            }
            _ => Err((METHOD_NOT_FOUND, format!("method not found: {method}"))),
        }
    }
}

/// A tool with at most one argument, a string.
fn tool(name: &str, description: &str, argument: Option<(&str, &str)>) -> Value {
    let mut schema = json!({ "type": "object" });
    if let Some((argument, description)) = argument {
        schema["properties"] = json!({ argument: { "type": "string", "description": description } });
        schema["required"] = json!([argument]);
    }
    json!({ "name": name, "description": description, "inputSchema": schema })
}

fn main() -> Result<(), Error> {
    let mut server = match std::env::args().nth(1).as_deref() {
        Some("clock") => Server::Clock,
        Some("notes") => Server::Notes(Vec::new()),
        _ => return Err(Error::other("usage: quickstart-server clock|notes")),
    };
    for line in stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        // A message without a method is a response, one without an id a notification: neither gets a response.
        let (Some(method), Some(id)) = (message["method"].as_str(), message.get("id")) else { continue };
        let response = match server.handle(method, &message["params"]) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err((code, message)) => {
                json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
            }
        };
        writeln!(stdout(), "{response}")?;
    }
    Ok(())
}
