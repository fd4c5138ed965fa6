//! The script that configures a fake server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The behavior of one server. The default is a conforming server of both eras with the tools `echo` and `report`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// The name in its `serverInfo`.
    pub name: String,
    /// The protocol eras that it supports.
    pub era: ServerEra,
    /// The legacy revision that it always selects. If absent, the one that the client requests, if it is supported.
    pub protocol: Option<String>,
    /// Its capabilities. If absent, tools with `listChanged`.
    pub capabilities: Option<Box<RawValue>>,
    /// The tools that it lists. An item is the name of a tool (see `tools.rs`), or a complete descriptor, which is
    /// listed byte for byte. A tool that `tools.rs` does not define returns its params.
    pub tools: Vec<Box<RawValue>>,
    /// The prompts that it lists, byte for byte.
    pub prompts: Vec<Box<RawValue>>,
    /// The resources that it lists, byte for byte. Every other resource can be read too, except those with `missing` in
    /// the URI.
    pub resources: Vec<Box<RawValue>>,
    /// The resource templates that it lists, byte for byte.
    pub templates: Vec<Box<RawValue>>,
    /// The number of items per page of a list; 0 for a single page.
    pub page_size: usize,
    /// True if the cursor of every page refers to the same page again.
    pub repeat_cursor: bool,
    /// True if changed lists are not announced by `list_changed` notifications.
    pub quiet: bool,
    /// True if every `tools/list` request causes a `tools/list_changed` notification.
    pub restless: bool,
    /// Rules by method, applied instead of or before the correct response. Over HTTP, the keys `POST`, `GET` and
    /// `DELETE` apply before the body is read.
    pub on: BTreeMap<String, Vec<Rule>>,
    /// Faults that only a process can have.
    pub stdio: StdioFaults,
    /// Its behavior over HTTP.
    pub http: HttpBehavior,
    /// The Unix socket by which a test controls this process.
    pub control: Option<PathBuf>,
}

/// The protocol eras that a server supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerEra {
    /// `initialize`, sessions and the GET stream.
    Legacy,
    /// 2026-07-28: `server/discover`, `_meta` in each request, `subscriptions/listen`.
    Modern,
    /// Both, selected by the first request of the client.
    Dual,
}

/// A rule for requests and notifications of one method.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The delay before the action, in milliseconds.
    pub delay_ms: u64,
    /// The number of messages to which this rule applies before the next rule is used. If absent, it applies to all.
    pub times: Option<u32>,
    /// The action after the delay.
    pub then: Action,
}

/// The action of a [`Rule`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Send the correct response.
    #[default]
    Answer,
    /// Never respond.
    Hang,
    /// Respond with this result, byte for byte.
    Result(Box<RawValue>),
    /// Respond with this error object, byte for byte.
    Error(Box<RawValue>),
    /// Respond with this message, in which `$ID` stands for the id of the request.
    Message(String),
    /// Send this text in place of a response.
    Junk(String),
    /// Respond with this HTTP status, these headers and this body.
    Http {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: String,
    },
    /// Close the connection without a response.
    Drop,
    /// Begin a response and close the connection in the middle of it.
    Cut,
    /// Respond with HTTP 200 and an event stream in which nothing happens and that never ends.
    Endless,
    /// End the process with this exit code.
    Exit(i32),
    /// Close the process's stdin and keep running.
    CloseStdin,
    /// Close the process's stdout and keep running.
    CloseStdout,
}

/// Faults that only a process can have.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StdioFaults {
    /// The code with which the process exits before it reads anything.
    pub exit_at_start: Option<i32>,
    /// The delay before the process reads anything, in milliseconds.
    pub start_delay_ms: u64,
    /// Lines written to stdout before anything else.
    pub stdout: Vec<String>,
    /// Lines written to stderr before anything else.
    pub stderr: Vec<String>,
    /// The number of bytes written to stderr in the background.
    pub stderr_flood: u64,
    /// True to write one line to stdout that never ends.
    pub endless_line: bool,
    /// True to ignore SIGTERM.
    pub ignore_sigterm: bool,
    /// True to keep running after the end of stdin.
    pub ignore_eof: bool,
    /// True to start a child process that ignores SIGTERM and keeps stdout and stderr open.
    pub grandchild: bool,
    /// True if that child process starts a session of its own (`setsid`), as daemons do.
    pub runaway: bool,
}

/// The behavior of a server over HTTP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpBehavior {
    /// The format of responses.
    pub answers: ResponseFormat,
    /// True to assign sessions to legacy clients.
    pub sessions: bool,
    /// True to offer the GET stream to legacy clients. Otherwise GET returns 405.
    pub get_stream: bool,
    /// True to let legacy clients delete their session. Otherwise DELETE returns 405.
    pub delete: bool,
    /// True to begin streams with an event that has an id and no data, as servers with resumable streams do.
    pub priming: bool,
    /// The delay in milliseconds after which clients poll for the response to a call (SEP-1699): its stream has an event
    /// with an id and ends at once. If absent, the stream lasts until the response.
    pub polling: Option<u64>,
    /// The interval in milliseconds of comments on the GET stream, which some servers send to keep it open.
    pub comments: Option<u64>,
    /// True to speak HTTP+SSE of 2024-11-05 instead of streamable HTTP. Needs `sessions: false`.
    pub sse: bool,
    /// The required `Authorization` header. Requests without it get 401.
    pub authorization: Option<String>,
    /// The response to a request with an unknown session id: the HTTP status, and the code and message of the JSON-RPC
    /// error.
    pub unknown_session: (u16, i32, String),
}

/// The format of HTTP responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// A stream for `tools/call`, begun before the tool runs; a JSON body for all other methods.
    Mixed,
    /// A JSON body, unless a notification precedes the response.
    Json,
    /// Always a stream.
    Stream,
}

/// The capabilities of a server with all features.
const ALL_CAPABILITIES: &str = r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"listChanged":true,"subscribe":true},"completions":{},"logging":{}}"#;

impl Default for Script {
    fn default() -> Self {
        Self {
            name: "rig".into(),
            era: ServerEra::Dual,
            protocol: None,
            capabilities: None,
            tools: raw_names(&["echo", "report"]),
            prompts: Vec::new(),
            resources: Vec::new(),
            templates: Vec::new(),
            page_size: 0,
            repeat_cursor: false,
            quiet: false,
            restless: false,
            on: BTreeMap::new(),
            stdio: StdioFaults::default(),
            http: HttpBehavior::default(),
            control: None,
        }
    }
}

impl Default for HttpBehavior {
    fn default() -> Self {
        Self {
            answers: ResponseFormat::Mixed,
            sessions: true,
            get_stream: true,
            delete: true,
            priming: false,
            polling: None,
            comments: None,
            sse: false,
            authorization: None,
            unknown_session: (404, -32001, "Session not found".into()),
        }
    }
}

impl Script {
    /// Returns the script of a conforming server of one era, or of both.
    pub fn new(name: &str, era: ServerEra) -> Self {
        Self { name: name.into(), era, ..Self::default() }
    }

    /// Sets the tools, by name.
    pub fn tools(mut self, tools: &[&str]) -> Self {
        self.tools = raw_names(tools);
        self
    }

    /// Sets the prompts (by name), resources (by URI) and resource templates, and declares all capabilities.
    pub fn prompts_and_resources(mut self, prompts: &[&str], resources: &[&str], templates: &[&str]) -> Self {
        let item = |key: &str, value: &str| {
            raw_json(&format!(r#"{{"{key}":"{value}","name":"{value}","x-kept": 1.0e+2}}"#))
        };
        let prompt = |name: &&str| raw_json(&format!(r#"{{"name":"{name}","x-kept": 1.0e+2}}"#));
        self.prompts = prompts.iter().map(prompt).collect();
        self.resources = resources.iter().map(|uri| item("uri", uri)).collect();
        self.templates = templates.iter().map(|template| item("uriTemplate", template)).collect();
        self.capabilities = Some(raw_json(ALL_CAPABILITIES));
        self
    }

    /// Adds a rule for a method, after the rules that the method has.
    pub fn on(mut self, method: &str, rule: Rule) -> Self {
        self.on.entry(method.into()).or_default().push(rule);
        self
    }
}

impl Rule {
    /// Returns a rule that always applies.
    pub fn always(then: Action) -> Self {
        Self { then, ..Self::default() }
    }

    /// Returns a rule for the next `times` messages.
    pub fn times(times: u32, then: Action) -> Self {
        Self { times: Some(times), then, ..Self::default() }
    }

    /// Returns a rule that delays the correct response by `ms` milliseconds.
    pub fn delay(ms: u64) -> Self {
        Self { delay_ms: ms, ..Self::default() }
    }
}

impl Action {
    /// Returns the action that responds with an HTTP status and no body.
    pub fn status(status: u16) -> Self {
        Self::Http { status, headers: BTreeMap::new(), body: String::new() }
    }

    /// Returns the action that responds with an HTTP status, one header and no body.
    pub fn status_with(status: u16, name: &str, value: &str) -> Self {
        Self::Http { status, headers: [(name.to_owned(), value.to_owned())].into(), body: String::new() }
    }

    /// Returns the action that responds with a JSON-RPC error.
    pub fn error(code: i32, message: &str) -> Self {
        Self::Error(raw_json(&serde_json::json!({"code": code, "message": message}).to_string()))
    }

    /// Returns the action that responds with this message, in which `$ID` stands for the id of the request.
    pub fn message(text: &str) -> Self {
        Self::Message(text.to_owned())
    }

    /// Returns the action that responds with this JSON as the result.
    pub fn result(json: &str) -> Self {
        Self::Result(raw_json(json))
    }
}

/// Returns JSON text as a raw value, without reformatting.
pub(super) fn raw_json(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("the script holds JSON")
}

fn raw_names(names: &[&str]) -> Vec<Box<RawValue>> {
    names.iter().map(|name| raw_json(&serde_json::json!(name).to_string())).collect()
}
