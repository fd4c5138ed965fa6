use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::SkillStatus;

/// The desired state of an Agent Skill.
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
    doc = "An Agent Skill that evenkeel exposes to agents.",
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
#[x_kube(validation = Rule::new("[has(self.inline), has(self.path), has(self.configMapRef)].filter(x, x).size() == 1")
    .message("exactly one of inline, path and configMapRef must be set"))]
pub struct SkillSpec {
    /// The text of SKILL.md, for a skill without other files; at most 262,144 characters. Exactly one of `inline`,
    /// `path` and `configMapRef` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub inline: Option<String>,
    /// The skill folder, which contains SKILL.md and the other files, relative to the folder of the declaring file.
    /// Exactly one of `inline`, `path` and `configMapRef` must be set. Only in a directory source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub path: Option<String>,
    /// The ConfigMap with the files of the skill: the key SKILL.md is required, and each other key is another file.
    /// Exactly one of `inline`, `path` and `configMapRef` must be set. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapRef>,
    /// The servers that must be attached for the skill to be exposed. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub server_refs: Vec<ServerRef>,
    /// If true, the skill is not exposed to agents, but the object is kept. Default: false.
    #[serde(default)]
    pub suspend: bool,
}

impl SkillSpec {
    /// Returns the source of the skill's content: `inline`, `path` or `configMap`.
    pub fn source_kind(&self) -> &'static str {
        match (&self.inline, &self.path) {
            (Some(_), _) => "inline",
            (None, Some(_)) => "path",
            (None, None) => "configMap",
        }
    }
}

/// A reference to a ConfigMap in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapRef {
    /// The name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// A reference to an `McpServer` in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerRef {
    /// The name of the `McpServer`.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
