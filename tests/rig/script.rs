//! What the rig is told to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How one server behaves. The default is a well-behaved server of both eras with a few tools.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// The name it gives itself.
    pub name: String,
    /// The protocol eras it speaks.
    pub era: ServerEra,
    /// The legacy revision it insists on; else the one that the client asks for, if it is known.
    pub protocol: Option<String>,
    /// Its capabilities; else tools with `listChanged`.
    pub capabilities: Option<Box<RawValue>>,
    /// The tools it lists: a name of one that the rig knows (see `tools.rs`) or of one that echoes, or a whole
    /// descriptor, listed byte for byte. A call of a tool that the rig does not know echoes.
    pub tools: Vec<Box<RawValue>>,
    /// The prompts it lists, byte for byte.
    pub prompts: Vec<Box<RawValue>>,
    /// The resources it lists, byte for byte; all others can be read too, but those with `missing` in the URI.
    pub resources: Vec<Box<RawValue>>,
    /// The resource templates it lists, byte for byte.
    pub templates: Vec<Box<RawValue>>,
    /// Items per page of a list; 0 for all at once.
    pub page_size: usize,
    /// Every page says that the same page comes next.
    pub repeat_cursor: bool,
    /// The tool list changes without a notice.
    pub quiet: bool,
    /// Whoever lists the tools is told that they changed.
    pub restless: bool,
    /// What happens on a method, in place of or before the right answer. Over HTTP also on `POST`, `GET` and
    /// `DELETE`, before the body is read.
    pub on: BTreeMap<String, Vec<Rule>>,
    /// What only a process can do wrong.
    pub stdio: StdioFaults,
    /// How it speaks HTTP.
    pub http: HttpBehavior,
    /// The Unix socket of the test that controls this process.
    pub control: Option<PathBuf>,
}

/// Protocol eras.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerEra {
    /// `initialize`, sessions and the GET stream.
    Legacy,
    /// 2026-07-28: `server/discover`, `_meta` in each request, `subscriptions/listen`.
    Modern,
    /// Both, by how the client opens.
    Dual,
}

/// What happens on a request or notification.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Wait this long first.
    pub delay_ms: u64,
    /// How many messages this rule meets before the next rule is looked at; all if absent.
    pub times: Option<u32>,
    /// Then do this.
    pub then: Action,
}

/// What a [`Rule`] does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The right thing.
    #[default]
    Answer,
    /// Never answer.
    Hang,
    /// Answer with this result, byte for byte.
    Result(Box<RawValue>),
    /// Answer with this error object, byte for byte.
    Error(Box<RawValue>),
    /// Send this text where an answer belongs.
    Junk(String),
    /// Answer with this HTTP status, these headers and this body.
    Http {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: String,
    },
    /// Close the connection without a word.
    Drop,
    /// Begin an answer and break it off.
    Cut,
    /// End the process.
    Exit(i32),
    /// Close the process's stdin and live on, deaf.
    CloseStdin,
    /// Close the process's stdout and live on, mute.
    CloseStdout,
}

/// What only a process can do wrong.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StdioFaults {
    /// End with this code before anything is read.
    pub exit_at_start: Option<i32>,
    /// Wait this long before anything is read.
    pub start_delay_ms: u64,
    /// Lines for stdout before anything else.
    pub stdout: Vec<String>,
    /// Lines for stderr before anything else.
    pub stderr: Vec<String>,
    /// Bytes of noise for stderr, beside the work.
    pub stderr_flood: u64,
    /// Write one line to stdout that never ends.
    pub endless_line: bool,
    /// Outlive SIGTERM.
    pub ignore_sigterm: bool,
    /// Outlive the end of stdin.
    pub ignore_eof: bool,
    /// Start a process of its own that nothing but its end can stop, and that holds stdout and stderr.
    pub grandchild: bool,
    /// That process leaves our session, as daemons do.
    pub runaway: bool,
}

/// How the rig speaks HTTP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpBehavior {
    /// The form of answers.
    pub answers: ResponseFormat,
    /// Give legacy clients a session.
    pub sessions: bool,
    /// Offer legacy clients the GET stream; else 405.
    pub get_stream: bool,
    /// Let legacy clients end their session; else 405.
    pub delete: bool,
    /// Open streams with an event that has an id and no data, as servers that can resume do.
    pub priming: bool,
    /// Answer 401 to whoever does not send this as `Authorization`.
    pub authorization: Option<String>,
    /// How a request in a session that is not known is answered: the HTTP status, and the code and message of the
    /// JSON-RPC error.
    pub unknown_session: (u16, i32, String),
}

/// The form of HTTP answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// A stream for `tools/call`, begun before the tool runs; a JSON body for all else.
    Mixed,
    /// A JSON body, unless there is something to tell before the answer.
    Json,
    /// A stream, always.
    Stream,
}

/// The capabilities of a server that has it all.
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
            authorization: None,
            unknown_session: (404, -32001, "Session not found".into()),
        }
    }
}

impl Script {
    /// A well-behaved server of one era, or of both.
    pub fn new(name: &str, era: ServerEra) -> Self {
        Self { name: name.into(), era, ..Self::default() }
    }

    /// With these tools, by name.
    pub fn tools(mut self, tools: &[&str]) -> Self {
        self.tools = raw_names(tools);
        self
    }

    /// With all that a server can offer: these prompts, by name, resources, by URI, and templates.
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

    /// With this happening on a method, after what was said before.
    pub fn on(mut self, method: &str, rule: Rule) -> Self {
        self.on.entry(method.into()).or_default().push(rule);
        self
    }
}

impl Rule {
    /// Always this.
    pub fn always(then: Action) -> Self {
        Self { then, ..Self::default() }
    }

    /// This, the next `times` times.
    pub fn times(times: u32, then: Action) -> Self {
        Self { times: Some(times), then, ..Self::default() }
    }

    /// The right answer, late.
    pub fn delay(ms: u64) -> Self {
        Self { delay_ms: ms, ..Self::default() }
    }
}

impl Action {
    /// An HTTP status with no body.
    pub fn status(status: u16) -> Self {
        Self::Http { status, headers: BTreeMap::new(), body: String::new() }
    }

    /// An HTTP status with one header and no body.
    pub fn status_with(status: u16, name: &str, value: &str) -> Self {
        Self::Http { status, headers: [(name.to_owned(), value.to_owned())].into(), body: String::new() }
    }

    /// A JSON-RPC error.
    pub fn error(code: i32, message: &str) -> Self {
        Self::Error(raw_json(&serde_json::json!({"code": code, "message": message}).to_string()))
    }

    /// This JSON as the result.
    pub fn result(json: &str) -> Self {
        Self::Result(raw_json(json))
    }
}

/// JSON text as it is.
pub(super) fn raw_json(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("the script holds JSON")
}

fn raw_names(names: &[&str]) -> Vec<Box<RawValue>> {
    names.iter().map(|name| raw_json(&serde_json::json!(name).to_string())).collect()
}
