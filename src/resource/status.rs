use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The observed state of an `McpServer`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpServerStatus {
    /// The generation that this status describes; -1 for a new object that evenkeel has not processed yet, so that
    /// kstatus waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The generation of the live connection; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_generation: Option<i64>,
    /// The conditions: Ready, Accepted, ResolvedRefs and Attached are always present; Reconciling, Stalled and Degraded
    /// only while they are true.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The name and version that the server reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// The MCP protocol version that is used with the server, such as 2025-11-25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// The transport: `stdio`, `http` (streamable HTTP) or `sse` (HTTP+SSE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// The number of tools that are exposed to agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<u32>,
    /// The number of prompts that are exposed to agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<u32>,
    /// The number of resources that are exposed to agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<u32>,
    /// The digest of everything that the server lists, before filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_digest: Option<String>,
    /// The digest of the declared spec, without the values of env and headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<String>,
    /// The time of the next attempt to connect (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_time: Option<String>,
    /// The number of times that the connection was lost since the object appeared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// The number of callers that have a connection of their own; only with `isolation: Session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// The OAuth authorization at the server; only if it has, or had, a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthStatus>,
    /// The last value of the annotation `evenkeel.dev/reconcile-requested-at` that evenkeel acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// The source revision at which this object last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_applied_revision: Option<String>,
}

/// The OAuth authorization at a server. It never contains a token.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthStatus {
    /// The issuer of the token.
    pub issuer: String,
    /// The scopes of the token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// When the token expires, unless it is renewed before (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// The name and version that a server reports about itself. Not trusted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// The name that the server reports.
    pub name: String,
    /// The version that the server reports.
    pub version: String,
}

/// The observed state of a `Skill`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkillStatus {
    /// The generation that this status describes; -1 for a new object that evenkeel has not processed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The conditions: Ready, Accepted and ResolvedRefs are always present; Reconciling, Stalled and Degraded only while
    /// they are true.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The source of the skill's content: `inline`, `path` or `configMap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The description from the frontmatter of SKILL.md, written by the skill's author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The number of files, including SKILL.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u32>,
    /// The digest of the skill's files, as they are exposed to agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
    /// The digest of the declared spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<String>,
    /// The source revision at which this object last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_applied_revision: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_doc_describes_every_server_field() {
        let document = include_str!("../../docs/status.md");
        let schema = serde_json::to_value(schemars::schema_for!(McpServerStatus)).unwrap();
        for field in schema["properties"].as_object().unwrap().keys() {
            assert!(document.contains(&format!("`{field}`")), "docs/status.md does not describe {field}");
        }
    }
}
