//! An agent: connects in either era, lists and calls tools, and receives notifications.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Duration, Instant, timeout};

use super::connection::{EventStream, HttpConnection};
use super::directory::role_args;
use super::process::LineChild;
use super::{Era, Result, unix_nanos};

const TOOLS_LIST_CHANGED: &str = "notifications/tools/list_changed";
/// The text that each call sends and that its response must contain.
pub const CALL_TEXT: &str = "the quick brown fox jumps over the lazy dog, forty times an hour";
/// The timeout of a single response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// An MCP endpoint and its era.
#[derive(Clone, Debug)]
pub struct McpTarget {
    pub address: SocketAddr,
    pub path: String,
    pub era: Era,
}

/// An agent with one keep-alive connection and, in the legacy era, a session.
pub struct Agent {
    target: McpTarget,
    session: Option<String>,
    connection: HttpConnection,
    last_id: u64,
}

impl Agent {
    /// Connects and performs the handshake.
    pub async fn connect(target: &McpTarget) -> Result<Self> {
        let connection = HttpConnection::open(target.address).await?;
        let mut agent = Self { target: target.clone(), session: None, connection, last_id: 0 };
        match target.era {
            Era::Legacy => {
                let opening = json!({
                    "protocolVersion": Era::Legacy.version(),
                    "capabilities": {},
                    "clientInfo": client_info(),
                });
                let (session, _) = agent.exchange("initialize", None, opening).await?;
                agent.session = session;
                let notice = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
                let request = agent.render_post("notifications/initialized", None, notice);
                let answer = timeout(RESPONSE_TIMEOUT, agent.connection.send(&request)).await??;
                if answer.status != 202 {
                    return Err(format!("notifications/initialized: HTTP {}", answer.status).into());
                }
            }
            Era::Modern => {
                agent.request("server/discover", None, json!({})).await?;
            }
        }
        Ok(agent)
    }

    /// Sends a request and returns its result.
    pub async fn request(&mut self, method: &str, name: Option<&str>, params: Value) -> Result<Value> {
        Ok(self.exchange(method, name, params).await?.1)
    }

    async fn exchange(
        &mut self,
        method: &str,
        name: Option<&str>,
        params: Value,
    ) -> Result<(Option<String>, Value)> {
        self.last_id += 1;
        let body = self.message_body(self.last_id, method, params);
        let request = self.render_post(method, name, &body);
        let response = timeout(RESPONSE_TIMEOUT, self.connection.send(&request)).await??;
        let text = String::from_utf8_lossy(&response.body);
        let fail = || format!("{method}: HTTP {}: {text}", response.status);
        // A response may be a stream with one event.
        let json = text.lines().find_map(|line| line.strip_prefix("data:").filter(|data| data.contains('{')));
        let mut message: Value = serde_json::from_str(json.unwrap_or(&text)).map_err(|_| fail())?;
        let session = response.header("mcp-session-id").map(str::to_owned);
        match message.get_mut("result") {
            Some(result) => Ok((session, result.take())),
            None => Err(fail().into()),
        }
    }

    /// Returns the names of the tools of all pages.
    pub async fn tool_names(&mut self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut params = json!({});
        loop {
            let page = self.request("tools/list", None, params).await?;
            let tools = page.get("tools").and_then(Value::as_array).ok_or("a page without tools")?;
            names.extend(tools.iter().filter_map(|tool| Some(tool.get("name")?.as_str()?.to_owned())));
            match page.get("nextCursor") {
                Some(cursor) => params = json!({ "cursor": cursor }),
                None => return Ok(names),
            }
        }
    }

    /// Returns a call that is rendered once and sent many times.
    pub fn prepare_call(&self, tool: &str) -> RenderedCall {
        RenderedCall::new(self.render_post("tools/call", Some(tool), &call_message(self.target.era, tool)))
    }

    /// Sends a call and returns the time until its response.
    pub async fn run_call(&mut self, call: &mut RenderedCall) -> Result<Duration> {
        let bytes = call.next_bytes();
        let start = Instant::now();
        let response = self.connection.send(bytes).await?;
        let elapsed = start.elapsed();
        let body = &response.body;
        if response.status != 200 || !contains_call_text(body) {
            return Err(format!("HTTP {}: {}", response.status, String::from_utf8_lossy(body)).into());
        }
        Ok(elapsed)
    }

    /// Opens the notification stream, on a connection of its own.
    pub async fn notifications(&self) -> Result<NotificationStream> {
        let connection = HttpConnection::open(self.target.address).await?;
        let request = match self.target.era {
            Era::Legacy => self.render("GET", "Accept: text/event-stream\r\n", ""),
            Era::Modern => {
                let filter = json!({ "notifications": { "toolsListChanged": true } });
                let body = self.message_body(1, "subscriptions/listen", filter);
                self.render_post("subscriptions/listen", None, &body)
            }
        };
        let events = timeout(RESPONSE_TIMEOUT, connection.open_events(&request)).await??;
        Ok(NotificationStream(events))
    }

    fn message_body(&self, id: u64, method: &str, params: Value) -> String {
        message(self.target.era, id, method, params)
    }

    fn render_post(&self, method: &str, name: Option<&str>, body: &str) -> Vec<u8> {
        let length = body.len();
        let mut headers = format!(
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
             Content-Length: {length}\r\n"
        );
        if self.target.era == Era::Modern {
            let name = name.map(|name| format!("Mcp-Name: {name}\r\n")).unwrap_or_default();
            headers.extend(["Mcp-Method: ", method, "\r\n", &name]);
        }
        self.render("POST", &headers, body)
    }

    fn render(&self, verb: &str, headers: &str, body: &str) -> Vec<u8> {
        let McpTarget { address, path, era } = &self.target;
        let session = self.session.as_deref().map(|id| format!("Mcp-Session-Id: {id}\r\n"));
        let session = session.unwrap_or_default();
        let version = era.version();
        format!(
            "{verb} {path} HTTP/1.1\r\nHost: {address}\r\nMCP-Protocol-Version: {version}\r\n\
             {session}{headers}\r\n{body}"
        )
        .into_bytes()
    }
}

/// A rendered `tools/call`. All ids have the same length, and each overwrites the previous one.
pub struct RenderedCall {
    bytes: Vec<u8>,
    id_offset: usize,
    id: u64,
}

impl RenderedCall {
    const FIRST_ID: u64 = 1_000_000_000;

    fn new(bytes: Vec<u8>) -> Self {
        let mark = format!(r#""id":{}"#, Self::FIRST_ID);
        let digits = bytes.windows(mark.len()).position(|window| window == mark.as_bytes());
        Self { bytes, id_offset: digits.unwrap_or_default() + 5, id: Self::FIRST_ID }
    }

    fn next_bytes(&mut self) -> &[u8] {
        self.id += 1;
        let digits = self.id.to_string();
        if let Some(place) = self.bytes.get_mut(self.id_offset..self.id_offset + digits.len()) {
            place.copy_from_slice(digits.as_bytes());
        }
        &self.bytes
    }
}

/// An agent that starts the fake server itself and calls it over its stdin and stdout.
pub struct StdioAgent {
    server: LineChild,
    call: RenderedCall,
}

impl StdioAgent {
    /// Starts the server and performs the handshake.
    pub async fn connect(era: Era) -> Result<Self> {
        let mut server = LineChild::start(&role_args("stdio-server", era, None), Command::spawn)?;
        let (method, params) = match era {
            Era::Legacy => ("initialize", json!({ "protocolVersion": era.version(), "capabilities": {} })),
            Era::Modern => ("server/discover", json!({})),
        };
        server.write(format!("{}\n", message(era, 1, method, params)).as_bytes()).await?;
        timeout(RESPONSE_TIMEOUT, server.next_line()).await??;
        let call = RenderedCall::new(format!("{}\n", call_message(era, "echo")).into_bytes());
        Ok(Self { server, call })
    }

    /// Sends a call and returns the time until its response.
    pub async fn run_call(&mut self) -> Result<Duration> {
        let bytes = self.call.next_bytes();
        let begin = Instant::now();
        self.server.write(bytes).await?;
        let answer = self.server.next_line().await?;
        let took = begin.elapsed();
        if contains_call_text(answer.as_bytes()) { Ok(took) } else { Err(answer.into()) }
    }
}

/// The notification stream of an agent.
pub struct NotificationStream(EventStream);

impl NotificationStream {
    /// Waits for the next notification of any method.
    pub async fn next(&mut self) -> Result<String> {
        self.0.next().await
    }

    /// Waits for the next `tools/list_changed` and returns its arrival time.
    pub async fn wait_for_list_changed(&mut self, wait_timeout: Duration) -> Result<i128> {
        let changed = async {
            while !self.0.next().await?.contains(TOOLS_LIST_CHANGED) {}
            Ok(unix_nanos())
        };
        timeout(wait_timeout, changed)
            .await
            .map_err(|_| format!("no {TOOLS_LIST_CHANGED} within {wait_timeout:?}"))?
    }

    /// Waits until no notification has arrived for the duration `quiet`. Returns how many `tools/list_changed` arrived
    /// before.
    pub async fn wait_for_quiet(&mut self, quiet: Duration) -> Result<usize> {
        let mut count = 0;
        while let Ok(event) = timeout(quiet, self.0.next()).await {
            count += usize::from(event?.contains(TOOLS_LIST_CHANGED));
        }
        Ok(count)
    }
}

fn contains_call_text(answer: &[u8]) -> bool {
    answer.windows(CALL_TEXT.len()).any(|window| window == CALL_TEXT.as_bytes())
}

fn call_message(era: Era, tool: &str) -> String {
    message(
        era,
        RenderedCall::FIRST_ID,
        "tools/call",
        json!({ "name": tool, "arguments": { "text": CALL_TEXT } }),
    )
}

fn message(era: Era, id: u64, method: &str, mut params: Value) -> String {
    if era == Era::Modern
        && let Some(params) = params.as_object_mut()
    {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": Era::Modern.version(),
            "io.modelcontextprotocol/clientInfo": client_info(),
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        params.insert("_meta".to_owned(), meta);
    }
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

fn client_info() -> Value {
    json!({ "name": "evenkeel-bench", "version": "1" })
}
