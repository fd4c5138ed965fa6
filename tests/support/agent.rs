//! An agent that sends and receives raw MCP over HTTP: JSON text, byte for byte.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Method;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::http::{self, HttpResponse};
use super::within;

/// The protocol era of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// 2025-11-25: `initialize`, a session, the GET stream.
    Legacy,
    /// 2026-07-28: `_meta` in each request, `subscriptions/listen`.
    Modern,
}

impl Era {
    /// Both eras.
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Modern];

    fn version(self) -> &'static str {
        match self {
            Self::Legacy => "2025-11-25",
            Self::Modern => "2026-07-28",
        }
    }
}

/// A connected agent.
pub struct Agent {
    pub era: Era,
    pub url: String,
    /// The session id of a legacy agent.
    pub session: Option<String>,
    /// The result of `initialize` or `server/discover`.
    pub handshake_result: String,
    /// The JSON of its capabilities.
    capabilities: String,
    /// The header `Evenkeel-Window` of its requests.
    pub window: Option<String>,
    next_id: AtomicU64,
}

impl Agent {
    /// Connects with the handshake of this era. Fails the test if the handshake fails.
    pub async fn connect(era: Era, url: &str) -> Self {
        Self::try_connect(era, url).await.unwrap_or_else(|error| panic!("handshake failed: {error}"))
    }

    /// Connects with the handshake of this era. The error is the cause of the failure.
    pub async fn try_connect(era: Era, url: &str) -> Result<Self, String> {
        Self::connect_with_capabilities(era, url, "{}").await
    }

    /// Connects with these capabilities, as JSON. The error is the cause of the failure.
    pub async fn connect_with_capabilities(era: Era, url: &str, capabilities: &str) -> Result<Self, String> {
        let mut agent = Self {
            era,
            url: url.into(),
            session: None,
            handshake_result: String::new(),
            capabilities: capabilities.to_owned(),
            window: None,
            next_id: AtomicU64::new(1),
        };
        if era == Era::Modern {
            agent.handshake_result = agent.request("server/discover", "{}").await?;
            return Ok(agent);
        }
        let params = format!(
            r#"{{"protocolVersion":"2025-11-25","capabilities":{capabilities},"clientInfo":{{"name":"test-agent","version":"1"}}}}"#
        );
        let mut exchange = agent.start_request("initialize", &params).await?;
        agent.session = exchange.session.take();
        agent.handshake_result = exchange.result().await?;
        agent.notify("notifications/initialized", "{}").await?;
        Ok(agent)
    }

    /// Sends a request. For a modern request, the required `_meta` members are inserted before those of `params`.
    pub async fn start_request(&self, method: &str, params: &str) -> Result<PendingRequest, String> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let params = match self.era {
            Era::Legacy => Cow::Borrowed(params),
            Era::Modern => Cow::Owned(with_meta(params, &self.capabilities)),
        };
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
        let name = ["name", "uri"].iter().find_map(|key| member(&params, key));
        let has_name = matches!(method, "tools/call" | "prompts/get" | "resources/read");
        let name = name.filter(|_| has_name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let response = self.post(method, name.as_deref(), &body).await?;
        if response.status >= 300
            && !response.header("content-type").is_some_and(|kind| kind.contains("json"))
        {
            let status = response.status;
            return Err(format!("HTTP {status}: {}", response.text().await.unwrap_or_default()));
        }
        Ok(PendingRequest {
            id,
            session: response.header("mcp-session-id").map(ToOwned::to_owned),
            status: response.status,
            response: Some(response),
        })
    }

    /// Sends a request and returns the raw result. The error is the raw error object, or the failure of the transport.
    pub async fn request(&self, method: &str, params: &str) -> Result<String, String> {
        within(method, async { self.start_request(method, params).await?.result().await }).await
    }

    /// Calls a tool and returns the raw result.
    pub async fn call(&self, tool: &str, arguments: &str) -> Result<String, String> {
        self.request("tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#)).await
    }

    /// Calls a tool and returns the first text of its result. Fails the test if the call fails.
    pub async fn call_text(&self, tool: &str, arguments: &str) -> String {
        let result = self.call(tool, arguments).await.unwrap_or_else(|error| panic!("{tool}: {error}"));
        let value: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert_ne!(value["isError"], true, "{tool}: {result}");
        value["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{tool}: no text: {result}")).to_owned()
    }

    /// Returns the tool descriptors of all pages.
    pub async fn list_tools(&self) -> Vec<Box<RawValue>> {
        let mut tools = Vec::new();
        let mut params = "{}".to_owned();
        loop {
            let page = self
                .request("tools/list", &params)
                .await
                .unwrap_or_else(|error| panic!("tools/list: {error}"));
            let tools_member = member(&page, "tools").unwrap_or_else(|| panic!("no tools: {page}"));
            tools.extend(serde_json::from_str::<Vec<Box<RawValue>>>(tools_member.get()).unwrap());
            match member(&page, "nextCursor") {
                Some(cursor) => params = format!(r#"{{"cursor":{cursor}}}"#),
                None => return tools,
            }
        }
    }

    /// Returns the names of the tools, in listed order.
    pub async fn tool_names(&self) -> Vec<String> {
        let name = |tool: &RawValue| serde_json::from_str(member(tool.get(), "name")?.get()).ok();
        self.list_tools().await.iter().map(|tool| name(tool).expect("a tool has a name")).collect()
    }

    /// Sends a notification.
    pub async fn notify(&self, method: &str, params: &str) -> Result<(), String> {
        let body = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
        let response = self.post(method, None, &body).await?;
        if response.status == 202 { Ok(()) } else { Err(format!("{method}: HTTP {}", response.status)) }
    }

    /// Opens the notification stream: GET, or `subscriptions/listen` for all lists. Fails the test if that fails.
    pub async fn notifications(&self) -> NotificationStream {
        within("the notification stream opens", self.try_notifications())
            .await
            .unwrap_or_else(|error| panic!("notification stream: {error}"))
    }

    /// Opens the notification stream. The error is the cause of the failure.
    pub async fn try_notifications(&self) -> Result<NotificationStream, String> {
        self.open_notifications(&[]).await
    }

    /// Opens the notification stream, for these resources too. A legacy agent subscribes to them first.
    pub async fn notifications_with_resources(&self, uris: &[&str]) -> NotificationStream {
        if self.era == Era::Legacy {
            for uri in uris {
                self.request("resources/subscribe", &format!(r#"{{"uri":"{uri}"}}"#)).await.unwrap();
            }
        }
        let stream = within("the notification stream opens", self.open_notifications(uris)).await;
        stream.unwrap_or_else(|error| panic!("notification stream: {error}"))
    }

    async fn open_notifications(&self, uris: &[&str]) -> Result<NotificationStream, String> {
        let mut stream = if self.era == Era::Modern {
            let filter = format!(
                r#"{{"notifications":{{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true,"resourceSubscriptions":{}}}}}"#,
                serde_json::json!(uris)
            );
            let mut exchange = self.start_request("subscriptions/listen", &filter).await?;
            let first =
                exchange.next_message().await?.ok_or("the stream ended before its acknowledgement")?;
            if !first.contains("notifications/subscriptions/acknowledged") {
                return Err(format!("the stream began with {first}"));
            }
            exchange.response.take().ok_or("the response is not a stream")?
        } else {
            let mut headers =
                vec![("Accept", "text/event-stream"), ("MCP-Protocol-Version", self.era.version())];
            headers.extend(self.session.as_deref().map(|session| ("Mcp-Session-Id", session)));
            http::send(Method::GET, &self.url, &headers, "").await?
        };
        if stream.status != 200 || !stream.is_stream() {
            let status = stream.status;
            return Err(format!("HTTP {status}: {}", stream.text().await?));
        }
        let (sender, messages) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            while let Ok(Some(message)) = stream.next_event().await {
                let _ = sender.send(message);
            }
        });
        Ok(NotificationStream { messages, reader_task: reader })
    }

    /// Sends a response to a request with this id, both as JSON. Returns the HTTP status.
    pub async fn respond(&self, id: &str, result: &str) -> u16 {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
        self.post("", None, &body).await.unwrap().status
    }

    /// Deletes the legacy session. Returns the HTTP status.
    pub async fn end_session(&self) -> u16 {
        let session = self.session.as_deref().expect("a session");
        let headers = [("Mcp-Session-Id", session), ("MCP-Protocol-Version", self.era.version())];
        http::send(Method::DELETE, &self.url, &headers, "").await.unwrap().status
    }

    async fn post(&self, method: &str, name: Option<&str>, body: &str) -> Result<HttpResponse, String> {
        let mut headers =
            vec![("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")];
        if self.era == Era::Modern {
            headers.push(("Mcp-Method", method));
            headers.extend(name.map(|name| ("Mcp-Name", name)));
        }
        if self.era == Era::Modern || self.session.is_some() {
            headers.push(("MCP-Protocol-Version", self.era.version()));
        }
        headers.extend(self.session.as_deref().map(|session| ("Mcp-Session-Id", session)));
        headers.extend(self.window.as_deref().map(|window| ("Evenkeel-Window", window)));
        http::send(Method::POST, &self.url, &headers, body).await
    }
}

/// A request in flight. Dropping it closes its connection, which cancels a modern request.
pub struct PendingRequest {
    pub id: u64,
    pub status: u16,
    session: Option<String>,
    response: Option<HttpResponse>,
}

impl PendingRequest {
    /// Returns the next message: a notification or the response. Returns `None` at the end.
    pub async fn next_message(&mut self) -> Result<Option<String>, String> {
        match &mut self.response {
            Some(response) if response.is_stream() => response.next_event().await,
            _ => match self.response.take() {
                Some(response) => response.text().await.map(Some),
                None => Ok(None),
            },
        }
    }

    /// Waits for the response, skipping notifications, and returns the raw result. The error is the raw error object,
    /// or the failure of the transport.
    pub async fn result(&mut self) -> Result<String, String> {
        while let Some(message) = self.next_message().await? {
            if let Some(result) = member(&message, "result") {
                return Ok(result.get().to_owned());
            }
            if let Some(error) = member(&message, "error") {
                return Err(error.get().to_owned());
            }
        }
        Err("the response ended without a result".into())
    }
}

/// An open notification stream. It is closed when dropped.
pub struct NotificationStream {
    messages: mpsc::UnboundedReceiver<String>,
    reader_task: JoinHandle<()>,
}

impl NotificationStream {
    /// Returns the next notification. Fails the test if none arrives in time.
    pub async fn next(&mut self) -> String {
        within("a notification arrives", self.messages.recv()).await.expect("the stream is open")
    }

    /// Waits for `tools/list_changed`, then discards the notifications that have arrived.
    pub async fn wait_for_tools_changed(&mut self) {
        while !self.next().await.contains("notifications/tools/list_changed") {}
        self.drain();
    }

    /// Waits for a notification that contains this text, skipping others.
    pub async fn wait_for(&mut self, text: &str) -> String {
        loop {
            let notification = self.next().await;
            if notification.contains(text) {
                return notification;
            }
        }
    }

    /// Returns the notifications that have arrived and were not read yet.
    pub fn drain(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }

    /// Waits until the server ends the stream.
    pub async fn wait_for_end(&mut self) {
        within("the stream ends", async { while self.messages.recv().await.is_some() {} }).await;
    }
}

impl Drop for NotificationStream {
    fn drop(&mut self) {
        self.reader_task.abort();
    }
}

/// Returns a member of a JSON object, byte for byte.
pub fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    serde_json::from_str::<HashMap<Cow<'a, str>, &'a RawValue>>(object).ok()?.remove(name)
}

/// Inserts the required `_meta` members of a modern request into its params.
fn with_meta(params: &str, capabilities: &str) -> String {
    let meta_members = format!(
        r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{{"name":"test-agent","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{capabilities}"#
    );
    let inner = |object: &str| {
        let inner =
            object.trim().strip_prefix('{').and_then(|after| after.strip_suffix('}')).expect("an object");
        if inner.trim().is_empty() { String::new() } else { format!(",{inner}") }
    };
    match member(params, "_meta") {
        Some(meta) => {
            // The member borrows from `params`, so its offset gives the place of the insertion.
            let start = meta.get().as_ptr().addr() - params.as_ptr().addr();
            let after = &params[start + meta.get().len()..];
            format!("{}{{{meta_members}{}}}{after}", &params[..start], inner(meta.get()))
        }
        None => format!(r#"{{"_meta":{{{meta_members}}}{}}}"#, inner(params)),
    }
}
