use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::SkillStatus;

/// An Agent Skill that evenkeel offers to agents.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "evenkeel.dev",
    version = "v1alpha1",
    kind = "Skill",
    plural = "skills",
    shortname = "skl",
    category = "mcp",
    namespaced,
    status = "SkillStatus",
    derive = "PartialEq",
    doc = "An Agent Skill that evenkeel offers to agents.",
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
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source"),
    printcolumn(name = "Files", type_ = "integer", json_path = ".status.files"),
    printcolumn(name = "Description", type_ = "string", json_path = ".status.description", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.inline), has(self.path), has(self.configMapRef)].filter(x, x).size() == 1").message("exactly one of inline, path and configMapRef must be set"))]
pub struct SkillSpec {
    /// The text of SKILL.md. Exactly one of `inline`, `path` and `configMapRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub inline: Option<String>,
    /// A folder with SKILL.md and its files, relative to the declaring file. Directory source only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub path: Option<String>,
    /// A ConfigMap with the key SKILL.md; its other keys are the skill's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapRef>,
    /// Servers without which the skill is not offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub server_refs: Vec<ServerRef>,
    /// Withdraw the skill and keep the object.
    #[serde(default)]
    pub suspend: bool,
}

impl SkillSpec {
    /// Where the text of the skill is: `inline`, `path` or `configMap`.
    pub fn source_kind(&self) -> &'static str {
        match (&self.inline, &self.path) {
            (Some(_), _) => "inline",
            (None, Some(_)) => "path",
            (None, None) => "configMap",
        }
    }
}

/// A ConfigMap in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// An `McpServer` in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
