//! A small MCP server for the quickstart: `quickstart-server clock` or `quickstart-server notes`, over stdio.
//!
//! The notes are kept in memory only.

use std::sync::{Mutex, PoisonError};

use jiff::civil::Date;
use jiff::{Unit, Zoned};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};

/// The two servers in one program.
enum QuickstartServer {
    Clock,
    Notes(Mutex<Vec<String>>),
}

impl QuickstartServer {
    fn tools(&self) -> Vec<Tool> {
        match self {
            Self::Clock => vec![
                tool("now", "Returns the local date and time.", None),
                tool(
                    "days_until",
                    "Returns the number of days from today to a date.",
                    Some(("date", "The date, such as 2027-01-01")),
                ),
            ],
            Self::Notes(_) => vec![
                tool("add_note", "Stores a note until the server ends.", Some(("text", "The note"))),
                tool("list_notes", "Lists the stored notes.", None),
            ],
        }
    }

    /// Runs a tool. The inner error is returned to the caller as the result of the tool. Returns `None` if there is no
    /// such tool.
    fn run_tool(&self, tool: &str, argument: &str) -> Option<Result<String, String>> {
        let today = Zoned::now();
        Some(match (self, tool) {
            (Self::Clock, "now") => Ok(today.strftime("%A, %-d %B %Y, %H:%M:%S %Z").to_string()),
            (Self::Clock, "days_until") => argument
                .parse::<Date>()
                .and_then(|date| today.date().until((Unit::Day, date)))
                .map(|span| format!("{} days", span.get_days()))
                .map_err(|error| format!("{argument:?} is not a date: {error}")),
            (Self::Notes(notes), "add_note") => {
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.push(argument.to_owned());
                Ok(format!("stored as note {}", notes.len()))
            }
            (Self::Notes(notes), "list_notes") => {
                Ok(notes.lock().unwrap_or_else(PoisonError::into_inner).join("\n"))
            }
            _ => return None,
        })
    }
}

impl ServerHandler for QuickstartServer {
    fn get_info(&self) -> ServerConfig {
        let name = match self {
            Self::Clock => "quickstart-clock",
            Self::Notes(_) => "quickstart-notes",
        };
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(name, env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // Each tool has at most one argument, so the argument's name is not checked.
        let arguments = call.arguments.unwrap_or_default();
        let argument = arguments.values().next().and_then(|value| value.as_str()).unwrap_or_default();
        let result = match self.run_tool(&call.name, argument) {
            Some(Ok(text)) => CallToolResult::success(vec![ContentBlock::text(text)]),
            Some(Err(text)) => CallToolResult::error(vec![ContentBlock::text(text)]),
            None => {
                return Err(ErrorData::invalid_params(format!("unknown tool: {}", call.name), None));
            }
        };
        Ok(result.into())
    }
}

/// Returns the descriptor of a tool with at most one argument, a string.
fn tool(name: &'static str, description: &'static str, argument: Option<(&str, &str)>) -> Tool {
    let properties: JsonObject = argument
        .iter()
        .map(|(name, description)| {
            let property = serde_json::json!({"type": "string", "description": description});
            ((*name).to_owned(), property)
        })
        .collect();
    let required: Vec<&String> = properties.keys().collect();
    let schema = serde_json::json!({"type": "object", "required": required, "properties": properties});
    Tool::new(name, description, schema.as_object().cloned().unwrap_or_default())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = match std::env::args().nth(1).as_deref() {
        Some("clock") => QuickstartServer::Clock,
        Some("notes") => QuickstartServer::Notes(Mutex::default()),
        _ => return Err("usage: quickstart-server clock|notes".into()),
    };
    server.serve(rmcp::transport::stdio()).await?.waiting().await?;
    Ok(())
}
