use std::time::Duration;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{
    CallTimeout, ConnectTimeout, DrainTimeout, GracePeriod, HealthInterval, IdleTimeout, RetryDelay,
    StartTimeout, StopTimeout,
};
use super::oauth::HttpAuth;
use super::secret_key_ref::SecretKeyRef;
use super::{Literal, McpServerStatus};

/// The desired state of an MCP server.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "evenkeel.dev",
    version = "v1alpha1",
    kind = "McpServer",
    plural = "mcpservers",
    shortname = "mcps",
    category = "mcp",
    namespaced,
    status = "McpServerStatus",
    derive = "PartialEq",
    doc = "An MCP server that evenkeel keeps attached and exposes to agents.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Transport", type_ = "string", json_path = ".status.transport"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.tools"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".status.protocolVersion", priority = 1),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.stdio) != has(self.http)")
    .message("exactly one of stdio and http must be set"))]
#[x_kube(validation = Rule::new("!self.roots || self.isolation == 'Session'")
    .message("roots requires isolation: Session"))]
#[x_kube(validation = Rule::new("self.maxSessions >= 1 && self.maxSessions <= 1024")
    .message("maxSessions must be from 1 to 1024"))]
pub struct McpServerSpec {
    /// The child process to start; MCP messages are exchanged over its stdin and stdout. Exactly one of `stdio` and
    /// `http` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioTransport>,
    /// The HTTP endpoint to connect to; MCP messages are exchanged over streamable HTTP. Exactly one of `stdio` and
    /// `http` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTransport>,
    /// The protocol era that is used with the server: `Auto` detects it, `Legacy` begins with `initialize` (revisions to
    /// 2025-11-25), `Modern` with `server/discover` (2026-07-28). For servers that support both eras, or whose response
    /// to the detection is misleading. Default: `Auto`.
    #[serde(default)]
    pub protocol: ProtocolMode,
    /// The tools, prompts and resources that agents see, and the prefix of their names.
    #[serde(default)]
    pub expose: Expose,
    /// The kinds that the server has although its own capabilities do not declare them.
    #[serde(default, skip_serializing_if = "ExtraCapabilities::is_empty")]
    pub capabilities: ExtraCapabilities,
    /// If true, the server is detached and not exposed to agents, but the object is kept. Default: false.
    #[serde(default)]
    pub suspend: bool,
    /// The connection policy: `Always` keeps a connection as long as the object exists; `OnDemand` connects for a call
    /// and disconnects after `timeouts.idle` without calls. Default: `Always`.
    #[serde(default)]
    pub activation: Activation,
    /// Who shares a connection: `Shared` is one connection for all callers; with `Session` each caller has a connection of
    /// its own, which starts with its first call and ends with the caller's session or after `timeouts.idle` without
    /// calls. A caller is a session, or a modern agent with a path of its own (`/as/ID/mcp`). For servers that keep state
    /// for their client, such as a browser or a debugger. `activation` has no effect then: another connection reads the
    /// lists and is closed at once. Default: `Shared`.
    #[serde(default)]
    pub isolation: Isolation,
    /// The number of callers that may have a connection at the same time, from 1 to 1024. Only with
    /// `isolation: Session`. Default: 32.
    #[serde(default = "max_sessions_default")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_sessions: u16,
    /// If true, the server may ask for the roots of the caller: the directories that its agent works in. Requires
    /// `isolation: Session`, because servers let the roots of their client replace the directories in their arguments.
    /// Default: false.
    #[serde(default)]
    pub roots: bool,
    /// The way in which a changed connection is replaced: `MakeBeforeBreak` verifies the new connection before it
    /// drains the old one; `Recreate` ends the old connection first, for servers that cannot run twice at the same
    /// time. Default: `MakeBeforeBreak`.
    #[serde(default)]
    pub update: UpdateStrategy,
    /// If true, evenkeel does not report itself as ready until this server has been attached once. Default: false.
    #[serde(default)]
    pub required: bool,
    /// The time limits for starting, connecting, calls, draining and idle connections.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// The delays between attempts to connect.
    #[serde(default)]
    pub retry: Retry,
    /// The health checks of a connection on which the server sends nothing.
    #[serde(default)]
    pub health: HealthCheck,
    /// The time for which the tools, prompts and resources of a lost server stay listed while it reconnects, from 0s to
    /// 1h. Default: 1m.
    #[serde(default = "grace_default")]
    pub grace_period: GracePeriod,
}

/// A child process that exchanges MCP messages over its stdin and stdout.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("size(self.command) > 0").message("command must not be empty"))]
pub struct StdioTransport {
    /// The program to run: a name that is looked up on PATH, or a path. It is not run through a shell.
    #[schemars(length(max = 4096))]
    pub command: String,
    /// The arguments, passed to the program unchanged. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub args: Vec<String>,
    /// The working directory, relative to the folder of the declaring file. Default: that folder, or `/` if
    /// `--allow-stdio` restricts commands. Only in a directory source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub cwd: Option<String>,
    /// Environment variables, in addition to those that every child process inherits: HOME, LANG, `LC_*`, LOGNAME,
    /// PATH, SHELL, TERM, TMPDIR, TZ and USER; unless `--allow-stdio` restricts commands also `XDG_*` and the variables
    /// for proxies and certificates; and those that `--pass-env` names. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// A file with further environment variables, as lines `NAME=value`. The path is relative to the folder of the
    /// declaring file, and inside the directory of declarations. A variable in `env` takes precedence. Only in a
    /// directory source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub env_file: Option<String>,
    /// The time that the processes of the server have to exit after SIGTERM before they are killed, from 0s to 10m. SIGTERM
    /// follows 2s after stdin was closed. Default: 5s.
    #[serde(default = "stop_default")]
    pub stop: StopTimeout,
}

/// An MCP endpoint that is reached over HTTP.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.url.startsWith('http://') || self.url.startsWith('https://')")
    .message("url must start with http:// or https://"))]
#[x_kube(validation = Rule::new(
    "!has(self.headers) || self.headers.all(one, \
     self.headers.exists_one(other, one.name.lowerAscii() == other.name.lowerAscii()))"
)
.message("a header is declared twice; header names are case-insensitive"))]
#[x_kube(validation = Rule::new(
    "!has(self.auth) || !has(self.auth.oauth) || !has(self.headers) || \
     self.headers.all(header, header.name.lowerAscii() != 'authorization')"
)
.message("auth.oauth sets the header Authorization; remove it from headers"))]
pub struct HttpTransport {
    /// The URL of the MCP endpoint, with scheme `http` or `https` and without user name and password.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// The transport of the endpoint: `StreamableHTTP`, or `SSE` for the deprecated HTTP+SSE of MCP 2024-11-05, whose URL
    /// often ends in `/sse`. Default: `StreamableHTTP`.
    #[serde(default, skip_serializing_if = "HttpTransportKind::is_default")]
    pub transport: HttpTransportKind,
    /// The headers that are sent with every request. At most 64. Names are case-insensitive and must be unique.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<Header>,
    /// The TLS settings. Default: certificates are verified with the system's trust store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The authorization of requests, other than by headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,
}

/// A transport of MCP over HTTP.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HttpTransportKind {
    /// Streamable HTTP (MCP 2025-03-26 and later).
    #[default]
    #[serde(rename = "StreamableHTTP")]
    StreamableHttp,
    /// HTTP+SSE (MCP 2024-11-05), which is deprecated.
    #[serde(rename = "SSE")]
    Sse,
}

impl HttpTransportKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One environment variable of a child process.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)")
    .message("exactly one of value and valueFrom must be set"))]
pub struct EnvVar {
    /// The name of the variable.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// The literal value, redacted in every output. Exactly one of `value` and `valueFrom` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Literal>,
    /// The reference to the value. Exactly one of `value` and `valueFrom` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// One HTTP header.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)")
    .message("exactly one of value and valueFrom must be set"))]
#[x_kube(validation = Rule::new(
    "!self.name.matches('(?i)^(accept|connection|content-length|content-type|expect|host|keep-alive|\
     mcp-(method|name|param-.*|protocol-version|session-id)|proxy-(authenticate|connection)|\
     te|trailer|transfer-encoding|upgrade)$')"
)
.message("this header is set by evenkeel itself, or applies to a single connection; remove it"))]
pub struct Header {
    /// The name of the header. Headers that evenkeel sets itself or that apply to a single connection are not allowed.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// The literal value, redacted in every output. Exactly one of `value` and `valueFrom` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Literal>,
    /// The reference to the value. Exactly one of `value` and `valueFrom` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// A reference to a value.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.env)")
    .message("exactly one of secretKeyRef and env must be set"))]
pub struct ValueFrom {
    /// A key of a Secret in the same namespace. Exactly one of `secretKeyRef` and `env` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// The name of a variable of evenkeel's own environment. Exactly one of `secretKeyRef` and `env` must be set. Only
    /// in a directory source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub env: Option<String>,
}

/// The TLS settings of an HTTP endpoint.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The key of a Secret with PEM certificates to trust instead of the system's trust store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

/// The part of a server that agents see.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expose {
    /// The prefix of the exposed names of tools, prompts and skills: at most 32 letters, digits, `_` or `-`; an empty
    /// text for no prefix. Default: the name of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^[A-Za-z0-9_-]*$"))]
    pub prefix: Option<String>,
    /// The filter for tools, by the names that the server gives them.
    #[serde(default)]
    pub tools: NameFilter,
    /// The filter for prompts, by the names that the server gives them.
    #[serde(default)]
    pub prompts: NameFilter,
    /// The filter for resources and resource templates, by URI.
    #[serde(default)]
    pub resources: NameFilter,
}

/// A filter that selects the names that match a glob of `allow` and no glob of `deny`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameFilter {
    /// Globs of the names to expose. At most 256. Default: `*`, which matches every name.
    #[serde(default = "allow_all")]
    #[schemars(length(max = 256))]
    pub allow: Vec<String>,
    /// Globs of the names to hide. Takes precedence over `allow`. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub deny: Vec<String>,
}

/// The way in which the protocol era of a server is determined.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProtocolMode {
    /// The era is detected with `server/discover`, and remembered.
    #[default]
    Auto,
    /// `initialize` and sessions: revisions 2024-11-05 to 2025-11-25.
    Legacy,
    /// `server/discover`: revision 2026-07-28.
    Modern,
}

/// The kinds that a server has although its own capabilities do not declare them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtraCapabilities {
    /// If true, the tools are requested even if the server does not declare tools. Default: false.
    #[serde(default)]
    pub tools: bool,
    /// If true, the prompts are requested even if the server does not declare prompts. Default: false.
    #[serde(default)]
    pub prompts: bool,
    /// If true, the resources and resource templates are requested even if the server does not declare resources.
    /// Default: false.
    #[serde(default)]
    pub resources: bool,
}

/// The policy that decides when a connection is kept.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// A connection is kept as long as the object exists.
    #[default]
    Always,
    /// A connection is made for a call and closed after `timeouts.idle` without calls.
    OnDemand,
}

/// The callers that share a connection.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Isolation {
    /// All callers share one connection.
    #[default]
    Shared,
    /// Each caller has a connection of its own.
    Session,
}

/// The way in which a changed connection is replaced.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UpdateStrategy {
    /// The new connection is verified before the old one is drained.
    #[default]
    MakeBeforeBreak,
    /// The old connection is closed before the new one starts.
    Recreate,
}

/// The time limits of a server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The time from the start of a process to its first response, from 1s to 1h. It includes the download of the
    /// server by a runner such as npx or uvx. Only for `stdio`. Default: 5m.
    #[serde(default = "start_default")]
    pub start: StartTimeout,
    /// The time from the start of an attempt to connect, or from the first response of a process, until all lists have
    /// been read, from 1s to 10m. Default: 30s.
    #[serde(default = "connect_default")]
    pub connect: ConnectTimeout,
    /// The time from the start of a call to its response or its next progress notification, from 1s to 24h. With
    /// progress, a call may take ten times as long in total, but at most 24h. Default: 10m.
    #[serde(default = "call_default")]
    pub call: CallTimeout,
    /// The time for which calls in flight may continue when the server is detached, from 0s to 10m. Default: 30s.
    #[serde(default = "drain_default")]
    pub drain: DrainTimeout,
    /// The time without calls after which an `OnDemand` connection, or one with `isolation: Session`, is closed, from 10s
    /// to 24h. Default: 15m.
    #[serde(default = "idle_default")]
    pub idle: IdleTimeout,
}

/// The delays between attempts to connect. The delay doubles from `initial` up to `max`, with random jitter.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.initial) <= duration(self.max)")
    .message("initial must not be longer than max"))]
pub struct Retry {
    /// The first delay, from 100ms to 24h and not longer than `max`. Default: 1s.
    #[serde(default = "retry_initial_default")]
    pub initial: RetryDelay,
    /// The longest delay, from 100ms to 24h. Default: 5m.
    #[serde(default = "retry_max_default")]
    pub max: RetryDelay,
}

/// The health checks of a connection on which the server sends nothing.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "duration(self.interval) == duration('0s') || duration(self.interval) >= duration('5s')"
)
.message("interval must be 0s (off) or at least 5s"))]
#[x_kube(validation = Rule::new("self.failures >= 1 && self.failures <= 20").message("failures must be from 1 to 20"))]
pub struct HealthCheck {
    /// The time without a message from the server after which it is checked: 0s to disable health checks, or 5s to 1h.
    /// Default: 30s.
    #[serde(default = "health_default")]
    pub interval: HealthInterval,
    /// The number of consecutive failed checks after which the connection counts as lost, from 1 to 20. Default: 3.
    #[serde(default = "failures_default")]
    #[schemars(range(min = 1, max = 20))]
    pub failures: u8,
}

impl ExtraCapabilities {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl NameFilter {
    /// Returns true if it permits no name at all, whatever the names are.
    pub fn hides_all(&self) -> bool {
        let is_any = |glob: &String| !glob.is_empty() && glob.bytes().all(|byte| byte == b'*');
        self.allow.is_empty() || self.deny.iter().any(is_any)
    }
}

impl Default for NameFilter {
    fn default() -> Self {
        Self { allow: allow_all(), deny: Vec::new() }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start: start_default(),
            connect: connect_default(),
            call: call_default(),
            drain: drain_default(),
            idle: idle_default(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { initial: retry_initial_default(), max: retry_max_default() }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { interval: health_default(), failures: failures_default() }
    }
}

fn allow_all() -> Vec<String> {
    vec!["*".into()]
}

fn stop_default() -> StopTimeout {
    StopTimeout::from_millis_clamped(5_000)
}

fn start_default() -> StartTimeout {
    StartTimeout::from_millis_clamped(300_000)
}

fn connect_default() -> ConnectTimeout {
    ConnectTimeout::from_millis_clamped(30_000)
}

fn call_default() -> CallTimeout {
    CallTimeout::from_millis_clamped(600_000)
}

fn drain_default() -> DrainTimeout {
    DrainTimeout::from_millis_clamped(30_000)
}

fn idle_default() -> IdleTimeout {
    IdleTimeout::from_millis_clamped(900_000)
}

fn retry_initial_default() -> RetryDelay {
    RetryDelay::from_millis_clamped(1_000)
}

fn retry_max_default() -> RetryDelay {
    RetryDelay::from_millis_clamped(300_000)
}

fn health_default() -> HealthInterval {
    HealthInterval::from_millis_clamped(30_000)
}

fn failures_default() -> u8 {
    3
}

fn max_sessions_default() -> u16 {
    32
}

fn grace_default() -> GracePeriod {
    GracePeriod::from_millis_clamped(60_000)
}

impl McpServerSpec {
    /// Returns when the connection that publishes the lists is held. That of an isolated server takes no calls.
    pub fn effective_activation(&self) -> Activation {
        match self.isolation {
            Isolation::Shared => self.activation,
            Isolation::Session => Activation::OnDemand,
        }
    }

    /// Returns the time without calls after which that connection is closed, if it is not always held.
    pub fn unused_timeout(&self) -> Duration {
        match self.isolation {
            Isolation::Shared => self.timeouts.idle.get(),
            Isolation::Session => Duration::ZERO,
        }
    }

    /// Returns the name of the transport in status and logs: `stdio`, `http` or `sse`.
    pub fn transport_name(&self) -> &'static str {
        match &self.http {
            None => "stdio",
            Some(HttpTransport { transport: HttpTransportKind::Sse, .. }) => "sse",
            Some(_) => "http",
        }
    }
}
