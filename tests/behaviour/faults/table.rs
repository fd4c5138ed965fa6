//! The faults of servers, and what is expected of each.

use crate::rig::{Action, Rule, Script, ServerEra};

/// A fault of a server.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// The behavior of the server, for the page.
    pub(super) description: &'static str,
    pub(super) transports: &'static [FaultTransport],
    pub(super) eras: &'static [ServerEra],
    pub(super) inject: fn(Script) -> Script,
    pub(super) status: FaultStatus,
    pub(super) agents: AgentView,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum FaultTransport {
    Stdio,
    Http,
}

/// The condition that reports a fault.
pub(super) enum FaultStatus {
    /// `Ready=False` with this reason, and a message that contains this text.
    NotReady(&'static str, &'static str),
    /// `Ready=True`, and `Degraded=True` with this reason and a message that contains this text.
    Degraded(&'static str, &'static str),
    /// `Ready=True`, and no `Degraded`.
    Ready,
}

/// The tools that agents get from a server with a fault, and the outcome of calls.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum AgentView {
    /// None of its tools.
    NoTools,
    /// Its tool `echo`, which works.
    Tools,
    /// Its tool `echo`; a call fails with a message that contains this text.
    CallFails(&'static str),
}

use AgentView::{CallFails, NoTools, Tools};
use FaultStatus::{Degraded, NotReady, Ready};
use FaultTransport::{Http as H, Stdio as S};

const BOTH_ERAS: &[ServerEra] = &[ServerEra::Legacy, ServerEra::Modern];
const LEGACY: &[ServerEra] = &[ServerEra::Legacy];
const MODERN: &[ServerEra] = &[ServerEra::Modern];

/// Sets the action on the first request of the script's era.
fn on_first_request(script: Script, then: Action) -> Script {
    let method = if script.era == ServerEra::Modern { "server/discover" } else { "initialize" };
    script.on(method, Rule::always(then))
}

/// Sets the response to `tools/call`, in which `$ID` stands for the id.
fn on_call(script: Script, message: &str) -> Script {
    script.on("tools/call", Rule::always(Action::message(message)))
}

fn exit_at_start(mut script: Script, code: i32) -> Script {
    script.stdio.exit_at_start = Some(code);
    script.stdio.stderr = vec!["the token is missing".into()];
    script
}

fn endless_line(mut script: Script) -> Script {
    script.stdio.endless_line = true;
    script
}

fn login_prompt(mut script: Script) -> Script {
    script.stdio.stderr = vec!["please log in at http://127.0.0.1:1/".into()];
    on_first_request(script, Action::Hang)
}

fn bad_item(mut script: Script) -> Script {
    let broken = serde_json::value::RawValue::from_string(r#"{"name":"broken"}"#.into());
    script.tools.push(broken.expect("it is JSON"));
    script
}

fn text_on_stdout(mut script: Script) -> Script {
    script.stdio.stdout = vec!["Server is running".into()];
    script
}

fn authorization_required(mut script: Script) -> Script {
    script.http.authorization = Some("Bearer right".into());
    script
}

fn http(status: u16, kind: &str, body: &str) -> Action {
    Action::Http {
        status,
        headers: [("Content-Type".to_owned(), kind.to_owned())].into(),
        body: body.to_owned(),
    }
}

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "silent",
        description: "does not answer the first request",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::Hang),
        status: NotReady("Timeout", "within 2 s"),
        agents: NoTools,
    },
    Fault {
        name: "rejecting",
        description: "answers the handshake with an error",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::error(-32600, "not today")),
        status: NotReady("HandshakeFailed", "not today"),
        agents: NoTools,
    },
    Fault {
        name: "invalid-result",
        description: "answers the handshake with something else than a result of MCP",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::result("[1]")),
        status: NotReady("HandshakeFailed", ""),
        agents: NoTools,
    },
    Fault {
        name: "list-fails",
        description: "answers `tools/list` with an error",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| s.on("tools/list", Rule::always(Action::error(-32603, "the database is gone"))),
        status: NotReady("ListFailed", "the database is gone"),
        agents: NoTools,
    },
    Fault {
        name: "list-hangs",
        description: "does not answer `tools/list`",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| s.on("tools/list", Rule::always(Action::Hang)),
        status: NotReady("Timeout", "waited for the response to tools/list"),
        agents: NoTools,
    },
    Fault {
        name: "list-invalid",
        description: "answers `tools/list` without a list",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| s.on("tools/list", Rule::always(Action::result("{}"))),
        status: NotReady("ListFailed", ""),
        agents: NoTools,
    },
    Fault {
        name: "exits-at-start",
        description: "exits at its start",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: |s| exit_at_start(s, 7),
        status: NotReady("Exited", "the token is missing"),
        agents: NoTools,
    },
    Fault {
        name: "exits-in-handshake",
        description: "exits during the handshake",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::Exit(4)),
        status: NotReady("Exited", "4"),
        agents: NoTools,
    },
    Fault {
        name: "login-prompt",
        description: "waits for a person, whom it asks on stderr",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: login_prompt,
        status: NotReady("Timeout", "please log in"),
        agents: NoTools,
    },
    Fault {
        name: "endless-line",
        description: "writes a line that never ends",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: endless_line,
        status: NotReady("Timeout", "within 2 s"),
        agents: NoTools,
    },
    Fault {
        name: "error-500",
        description: "answers the handshake with HTTP 500",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::status(500)),
        status: NotReady("ConnectFailed", "500"),
        agents: NoTools,
    },
    Fault {
        name: "not-found",
        description: "answers all requests with HTTP 404",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| s.on("POST", Rule::always(Action::status(404))),
        status: NotReady("ConnectFailed", "404"),
        agents: NoTools,
    },
    Fault {
        name: "too-many",
        description: "answers with HTTP 429 and Retry-After",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::status_with(429, "Retry-After", "7200")),
        status: NotReady("ConnectFailed", "429"),
        agents: NoTools,
    },
    Fault {
        name: "html",
        description: "answers the handshake with HTML",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::Junk("<html>".into())),
        status: NotReady("HandshakeFailed", "<html>"),
        agents: NoTools,
    },
    Fault {
        name: "login-page",
        description: "or a proxy in front of it answers with a page to sign in and HTTP 200",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| s.on("POST", Rule::always(http(200, "text/html", "<title>Sign in to Corp</title>"))),
        status: NotReady("HandshakeFailed", "Sign in to Corp"),
        agents: NoTools,
    },
    Fault {
        name: "dropped",
        description: "closes the connection instead of an answer to the handshake",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::Drop),
        status: NotReady("ConnectFailed", "broke"),
        agents: NoTools,
    },
    Fault {
        name: "cut",
        description: "closes the connection in the middle of its answer to the handshake",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::Cut),
        status: NotReady("ConnectFailed", "broke"),
        agents: NoTools,
    },
    Fault {
        name: "redirect",
        description: "redirects to another origin",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| on_first_request(s, Action::status_with(307, "Location", "http://example.com/mcp")),
        status: NotReady("ConnectFailed", "example.com"),
        agents: NoTools,
    },
    Fault {
        name: "auth-required",
        description: "requires credentials that are not declared (HTTP 401)",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: authorization_required,
        status: NotReady("AuthRequired", "401"),
        agents: NoTools,
    },
    Fault {
        name: "forbidden-page",
        description: "or a proxy in front of it answers with HTTP 403 and a page",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| {
            let page = "<html><head><title>Access denied by policy</title></head></html>";
            s.on("POST", Rule::always(http(403, "text/html", page)))
        },
        status: NotReady("AuthRequired", "Access denied by policy"),
        agents: NoTools,
    },
    Fault {
        name: "bad-item",
        description: "lists a tool without `inputSchema`, which would break the parsers of agents",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: bad_item,
        status: Degraded("ItemsLeftOut", "broken"),
        agents: Tools,
    },
    Fault {
        name: "prompts-fail",
        description: "answers `prompts/list` with an error",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| {
            let s = s.prompts_and_resources(&["p"], &[], &[]);
            s.on("prompts/list", Rule::always(Action::error(-32603, "the database is gone")))
        },
        status: Degraded("ListUnavailable", "the database is gone"),
        agents: Tools,
    },
    Fault {
        name: "odd-cursor",
        description: "returns a `nextCursor` that is not a string",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| {
            let result = r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}],"nextCursor":7}"#;
            s.on("tools/list", Rule::always(Action::result(result)))
        },
        status: Degraded("NonCompliant", "nextCursor"),
        agents: Tools,
    },
    Fault {
        name: "unknown-probe",
        description: "answers `server/discover`, which it does not know, with success, HTML, HTTP 202 or nothing",
        transports: &[S, H],
        eras: LEGACY,
        inject: |s| s.on("server/discover", Rule::always(Action::result("{}"))),
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "notification-rejected",
        description: "rejects `notifications/initialized`",
        transports: &[H],
        eras: LEGACY,
        inject: |s| s.on("notifications/initialized", Rule::always(http(400, "text/plain", "no id"))),
        status: Degraded("NonCompliant", "notifications/initialized"),
        agents: Tools,
    },
    Fault {
        name: "text-on-stdout",
        description: "writes text on stdout that is not a message",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: text_on_stdout,
        status: Degraded("NonCompliant", "evenkeel logs"),
        agents: Tools,
    },
    Fault {
        name: "odd-content-type",
        description: "answers a call with the media type `text/plain`",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| {
            // Any id: it is the only response of its request.
            let body = r#"{"jsonrpc":"2.0","id":null,"result":{"content":[{"type":"text","text":"fine"}]}}"#;
            s.on("tools/call", Rule::always(http(200, "text/plain", body)))
        },
        status: Degraded("NonCompliant", "Content-Type"),
        agents: Tools,
    },
    Fault {
        name: "endless-notification",
        description: "answers each notification with HTTP 200 and a body that never ends",
        transports: &[H],
        eras: LEGACY,
        inject: |s| {
            s.on("notifications/initialized", Rule::always(Action::Endless))
                .on("notifications/cancelled", Rule::always(Action::Endless))
        },
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "no-stream-in-session",
        description: "declares `listChanged` and opens a session, but answers GET with HTTP 405",
        transports: &[H],
        eras: LEGACY,
        inject: |s| s.on("GET", Rule::always(Action::status(405))),
        status: Degraded("NoticesNotHeard", "no event stream"),
        agents: Tools,
    },
    Fault {
        name: "no-listen",
        description: "declares `listChanged`, but does not implement `subscriptions/listen`",
        transports: &[S, H],
        eras: MODERN,
        inject: |s| s.on("subscriptions/listen", Rule::always(Action::error(-32601, "Method not found"))),
        status: Degraded("NoticesNotHeard", "listChanged"),
        agents: Tools,
    },
    Fault {
        name: "polled-responses",
        description: "ends the stream of each call at once, and is polled for the response (2025-11-25)",
        transports: &[H],
        eras: LEGACY,
        inject: |mut s| {
            s.http.polling = Some(200);
            s
        },
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "text-id",
        description: "returns the id of a request as a string",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| {
            let result = r#"{"content":[{"type":"text","text":"fine"}]}"#;
            on_call(s, &format!(r#"{{"jsonrpc":"2.0","id":"$ID","result":{result}}}"#))
        },
        status: Degraded("NonCompliant", "id of the request"),
        agents: Tools,
    },
    Fault {
        name: "no-version",
        description: "omits `\"jsonrpc\": \"2.0\"`",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_call(s, r#"{"id":$ID,"result":{"content":[{"type":"text","text":"fine"}]}}"#),
        status: Degraded("NonCompliant", "JSON-RPC 2.0"),
        agents: Tools,
    },
    Fault {
        name: "null-result",
        description: "answers a call with the result null",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_call(s, r#"{"jsonrpc":"2.0","id":$ID,"result":null}"#),
        status: Degraded("NonCompliant", "not objects"),
        agents: CallFails("not an object"),
    },
    Fault {
        name: "invalid-json",
        description: "answers a call with text that is not JSON, such as NaN",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_call(s, r#"{"jsonrpc":"2.0","id":$ID,"result":{"value":NaN}}"#),
        status: Degraded("NonCompliant", "not a JSON-RPC message"),
        agents: CallFails("not valid JSON-RPC"),
    },
    Fault {
        name: "text-error",
        description: "answers a call with an error that is a string",
        transports: &[S, H],
        eras: BOTH_ERAS,
        inject: |s| on_call(s, r#"{"jsonrpc":"2.0","id":$ID,"error":"the disk is full"}"#),
        status: Degraded("NonCompliant", "JSON-RPC 2.0"),
        agents: CallFails("the disk is full"),
    },
    Fault {
        name: "http-sse",
        description: "speaks HTTP+SSE of 2024-11-05, which is deprecated",
        transports: &[H],
        eras: LEGACY,
        inject: |mut s| {
            (s.http.sse, s.http.sessions) = (true, false);
            s
        },
        status: Degraded("NonCompliant", "deprecated"),
        agents: Tools,
    },
    Fault {
        name: "redirect-within-origin",
        description: "redirects a request within its origin",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| s.on("POST", Rule::times(1, Action::status_with(308, "Location", "/mcp"))),
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "comments-alone",
        description: "keeps its event stream open with comments, and sends nothing else",
        transports: &[H],
        eras: LEGACY,
        inject: |mut s| {
            s.http.comments = Some(100);
            s
        },
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "spelled-content-type",
        description: "spells the media type `Application/JSON ; Charset=\"UTF-8\"`, as RFC 9110 allows",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| {
            let body = r#"{"jsonrpc":"2.0","id":null,"result":{"content":[{"type":"text","text":"fine"}]}}"#;
            s.on("tools/call", Rule::always(http(200, "Application/JSON ; Charset=\"UTF-8\"", body)))
        },
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "call-dropped",
        description: "closes the connection instead of an answer to a call",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| s.on("tools/call", Rule::always(Action::Drop)),
        status: Ready,
        agents: CallFails("broke"),
    },
    Fault {
        name: "call-unavailable",
        description: "answers a call with HTTP 503",
        transports: &[H],
        eras: BOTH_ERAS,
        inject: |s| s.on("tools/call", Rule::always(Action::status(503))),
        status: Ready,
        agents: CallFails("503"),
    },
    Fault {
        name: "stderr-flood",
        description: "writes megabytes to stderr",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: |mut s| {
            s.stdio.stderr_flood = 4_000_000;
            s
        },
        status: Ready,
        agents: Tools,
    },
    Fault {
        name: "grandchild",
        description: "starts a process that ignores SIGTERM and keeps its stdout open",
        transports: &[S],
        eras: BOTH_ERAS,
        inject: |mut s| {
            s.stdio.grandchild = true;
            s
        },
        status: Ready,
        agents: Tools,
    },
];
