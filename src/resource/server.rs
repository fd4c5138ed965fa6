use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{
    CallTimeout, ConnectTimeout, DrainTimeout, GracePeriod, HealthInterval, IdleTimeout, RetryDelay,
    StartTimeout,
};
use super::{Literal, McpServerStatus};

/// An MCP server that evenkeel keeps attached.
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
    doc = "An MCP server that evenkeel keeps attached and offers to agents.",
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
#[x_kube(validation = Rule::new("has(self.stdio) != has(self.http)").message("exactly one of stdio and http must be set"))]
pub struct McpServerSpec {
    /// Start a process and speak MCP on its stdin and stdout. Exactly one of `stdio` and `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioTransport>,
    /// Speak MCP over streamable HTTP. Exactly one of `stdio` and `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTransport>,
    /// What agents get to see, and under which names.
    #[serde(default)]
    pub expose: Expose,
    /// Detach the server and keep the object.
    #[serde(default)]
    pub suspend: bool,
    /// When to hold a connection: `Always`, or `OnDemand` for the time of calls.
    #[serde(default)]
    pub activation: Activation,
    /// How a changed connection is replaced.
    #[serde(default)]
    pub update: UpdateStrategy,
    /// Readiness waits until this server has been attached once.
    #[serde(default)]
    pub required: bool,
    /// How long to wait for what.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// The delays between attempts to connect.
    #[serde(default)]
    pub retry: Retry,
    /// How a silent connection is checked.
    #[serde(default)]
    pub health: HealthCheck,
    /// How long a lost server's tools stay listed while it reconnects (0s to 1h).
    #[serde(default = "grace_default")]
    pub grace_period: GracePeriod,
}

/// A process that speaks MCP on stdin and stdout.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("size(self.command) > 0").message("command must not be empty"))]
pub struct StdioTransport {
    /// The program: a name looked up on PATH, or a path. Never run through a shell.
    #[schemars(length(max = 4096))]
    pub command: String,
    /// Its arguments, passed as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub args: Vec<String>,
    /// The working directory, relative to the declaring file. Directory source only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub cwd: Option<String>,
    /// Variables of its environment, beside the few that every child inherits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
}

/// A server behind a URL, spoken to over streamable HTTP.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.url.startsWith('http://') || self.url.startsWith('https://')").message("url must start with http:// or https://"))]
#[x_kube(validation = Rule::new("!has(self.headers) || self.headers.all(one, self.headers.exists_one(other, one.name.lowerAscii() == other.name.lowerAscii()))").message("a header is declared twice; upper and lower case make no difference"))]
pub struct HttpTransport {
    /// The MCP endpoint; `http` or `https`, without user name or password.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// Headers sent with every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<Header>,
    /// TLS settings beyond the system's trust store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// One variable of a child's environment.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)").message("exactly one of value and valueFrom must be set"))]
pub struct EnvVar {
    /// The variable's name.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// The value itself. Treated as a secret in every output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Literal>,
    /// Where the value is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// One HTTP header.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)").message("exactly one of value and valueFrom must be set"))]
#[x_kube(validation = Rule::new("!self.name.matches('(?i)^(accept|connection|content-length|content-type|expect|host|keep-alive|mcp-(method|name|param-.*|protocol-version|session-id)|proxy-(authenticate|connection)|te|trailer|transfer-encoding|upgrade)$')").message("this header is set by evenkeel itself, or belongs to a single connection; leave it out"))]
pub struct Header {
    /// The header's name.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// The value itself. Treated as a secret in every output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Literal>,
    /// Where the value is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// Where a value is found.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.env)").message("exactly one of secretKeyRef and env must be set"))]
pub struct ValueFrom {
    /// A key of a secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// A variable of evenkeel's own environment. Directory source only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub env: Option<String>,
}

/// A key of a secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// Go on without the variable or header if the secret or key is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// TLS settings of an HTTP server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// PEM certificates to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

/// What agents get of a server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expose {
    /// Stands before the names of tools, prompts and skills; default the object's name, `""` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^[A-Za-z0-9_-]*$"))]
    pub prefix: Option<String>,
    /// Which tools, by the server's own names.
    #[serde(default)]
    pub tools: NameFilter,
    /// Which prompts, by the server's own names.
    #[serde(default)]
    pub prompts: NameFilter,
    /// Which resources, by URI.
    #[serde(default)]
    pub resources: NameFilter,
}

/// Globs that choose names: what `allow` matches and `deny` does not.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameFilter {
    /// Names to offer.
    #[serde(default = "everything")]
    #[schemars(length(max = 256))]
    pub allow: Vec<String>,
    /// Names to leave out; wins over `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub deny: Vec<String>,
}

/// When a connection is held.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// As long as the object exists.
    #[default]
    Always,
    /// While calls need it, and `timeouts.idle` longer.
    OnDemand,
}

/// How a changed connection is replaced.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UpdateStrategy {
    /// The new connection is verified before the old one is drained.
    #[default]
    MakeBeforeBreak,
    /// The old connection is gone before the new one starts.
    Recreate,
}

/// How long to wait for what.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// From the start of a process to its first answer (1s to 1h): a runner such as npx or uvx downloads the server
    /// first. Only for stdio.
    #[serde(default = "start_default")]
    pub start: StartTimeout,
    /// From the start of an attempt, or the first answer of a process, to the last page of the last list (1s to 10m).
    #[serde(default = "connect_default")]
    pub connect: ConnectTimeout,
    /// One call, from dispatch to answer or to its next progress; at most ten times as long in all (1s to 24h).
    #[serde(default = "call_default")]
    pub call: CallTimeout,
    /// Calls in flight when the server is detached (0s to 10m).
    #[serde(default = "drain_default")]
    pub drain: DrainTimeout,
    /// How long an `OnDemand` connection is kept without calls (10s to 24h).
    #[serde(default = "idle_default")]
    pub idle: IdleTimeout,
}

/// The delays between attempts to connect: exponential and jittered.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.initial) <= duration(self.max)").message("initial must not be longer than max"))]
pub struct Retry {
    /// The first delay (100ms to 24h).
    #[serde(default = "retry_initial_default")]
    pub initial: RetryDelay,
    /// The longest delay (100ms to 24h).
    #[serde(default = "retry_max_default")]
    pub max: RetryDelay,
}

/// How a silent connection is checked.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.interval) == duration('0s') || duration(self.interval) >= duration('5s')").message("interval must be 0s (off) or at least 5s"))]
#[x_kube(validation = Rule::new("self.failures >= 1 && self.failures <= 20").message("failures must be from 1 to 20"))]
pub struct HealthCheck {
    /// Time without traffic after which the server is asked (0s for never, or 5s to 1h).
    #[serde(default = "health_default")]
    pub interval: HealthInterval,
    /// Checks failed in a row that make a loss (1 to 20).
    #[serde(default = "failures_default")]
    #[schemars(range(min = 1, max = 20))]
    pub failures: u8,
}

impl Default for NameFilter {
    fn default() -> Self {
        Self { allow: everything(), deny: Vec::new() }
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

fn everything() -> Vec<String> {
    vec!["*".into()]
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

fn grace_default() -> GracePeriod {
    GracePeriod::from_millis_clamped(60_000)
}

impl McpServerSpec {
    /// The word for the transport in status and logs: `stdio` or `http`.
    pub fn transport_name(&self) -> &'static str {
        if self.stdio.is_some() { "stdio" } else { "http" }
    }
}
