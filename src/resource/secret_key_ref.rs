use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A reference to a key of a Secret.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// If true, a missing Secret or key is not an error and the variable, header or certificate is left out. Default:
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}
