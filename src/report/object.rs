use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Value, json};

use crate::resource::{API_VERSION, DeclaredMeta, DeclaredObject, McpServerSpec, SkillSpec};

/// The annotation in which `kubectl apply` stores the whole previous manifest, secret values included.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The kinds that the status API serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// `McpServer`
    McpServer,
    /// `Skill`
    Skill,
    /// `Source`: the directory or cluster itself. Read-only and cluster-scoped.
    Source,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::McpServer, Self::Skill, Self::Source];

    /// Returns the `kind` of a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::McpServer => "McpServer",
            Self::Skill => "Skill",
            Self::Source => "Source",
        }
    }

    /// Returns the plural, which is used in URLs.
    pub fn plural(self) -> &'static str {
        match self {
            Self::McpServer => "mcpservers",
            Self::Skill => "skills",
            Self::Source => "sources",
        }
    }

    /// Returns the kind with this plural.
    pub fn from_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }

    /// True if objects of this kind are namespaced.
    pub fn is_namespaced(self) -> bool {
        self != Self::Source
    }
}

/// A declared object and its status.
#[derive(Debug)]
pub struct StatusObject<S, T> {
    /// The declaration.
    pub declared: Arc<DeclaredObject<S>>,
    /// The status.
    pub status: T,
    /// The resource version. It grows with every change of any object.
    pub resource_version: u64,
}

/// Two values are equal if they are the same object after the same change.
impl<S, T> PartialEq for StatusObject<S, T> {
    fn eq(&self, other: &Self) -> bool {
        self.resource_version == other.resource_version
    }
}

impl<T: Serialize> StatusObject<McpServerSpec, T> {
    /// Returns the object in the form of the Kubernetes API, with the values of env, headers and the URL's query
    /// redacted.
    pub fn manifest(&self) -> Value {
        let spec = self.declared.spec.as_deref().map(redacted_spec);
        manifest(
            ObjectKind::McpServer,
            &metadata(&self.declared.meta, self.resource_version),
            spec,
            &self.status,
        )
    }
}

impl<T: Serialize> StatusObject<SkillSpec, T> {
    /// Returns the object in the form of the Kubernetes API.
    pub fn manifest(&self) -> Value {
        let spec = self.declared.spec.as_ref().map(|spec| json!(spec));
        manifest(ObjectKind::Skill, &metadata(&self.declared.meta, self.resource_version), spec, &self.status)
    }
}

/// Builds an object in the form of the Kubernetes API.
pub(super) fn manifest(
    kind: ObjectKind,
    metadata: &ObjectMeta,
    spec: Option<Value>,
    status: &impl Serialize,
) -> Value {
    let mut object = json!({
        "apiVersion": API_VERSION,
        "kind": kind.name(),
        "metadata": metadata,
        "status": status,
    });
    // An object whose declaration was never valid has no spec.
    if let (Some(spec), Some(fields)) = (spec, object.as_object_mut()) {
        fields.insert("spec".into(), spec);
    }
    object
}

fn metadata(meta: &DeclaredMeta, resource_version: u64) -> ObjectMeta {
    let mut annotations = meta.annotations.clone();
    annotations.remove(LAST_APPLIED_ANNOTATION);
    let some = |map: BTreeMap<String, String>| (!map.is_empty()).then_some(map);
    ObjectMeta {
        name: Some(meta.key.name.to_string()),
        namespace: Some(meta.key.namespace.to_string()),
        uid: Some(meta.uid.to_string()),
        generation: Some(meta.generation),
        resource_version: Some(resource_version.to_string()),
        creation_timestamp: Some(Time(meta.created_at)),
        labels: some(meta.labels.clone()),
        annotations: some(annotations),
        ..ObjectMeta::default()
    }
}

/// Returns the spec without secrets. Literal values redact themselves when serialized; the query of a URL may contain a
/// key.
fn redacted_spec(spec: &McpServerSpec) -> Value {
    let mut value = json!(spec);
    if let Some(Value::String(url)) = value.pointer_mut("/http/url")
        && let Some((base, _)) = url.split_once('?')
    {
        *url = format!("{base}?<redacted>");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::McpServerStatus;
    use crate::resource::testing::{declared_server, server_spec};

    #[test]
    fn manifest_is_a_custom_resource_with_secrets_redacted() {
        let mut server = declared_server("a", 2);
        server.spec = Some(server_spec(json!({ "http": {
            "url": "https://example.com/mcp?key=hunter2",
            "headers": [{ "name": "Authorization", "value": "Bearer hunter2" }],
        } })));
        server.meta.labels.insert("area".into(), "code".into());
        let annotations = &mut server.meta.annotations;
        annotations.insert(LAST_APPLIED_ANNOTATION.into(), "{\"value\":\"hunter2\"}".into());
        let object = StatusObject {
            declared: Arc::new(server),
            status: McpServerStatus { observed_generation: Some(2), ..McpServerStatus::default() },
            resource_version: 7,
        };
        let manifest = object.manifest();
        assert!(!manifest.to_string().contains("hunter2"), "{manifest}");
        assert_eq!(manifest["spec"]["http"]["url"], "https://example.com/mcp?<redacted>");
        assert_eq!(
            manifest["metadata"],
            json!({
                "name": "a", "namespace": "default", "uid": "uid-a", "generation": 2,
                "resourceVersion": "7", "creationTimestamp": "1970-01-01T00:00:00Z",
                "labels": { "area": "code" },
            })
        );
        // It deserializes into the type of the CRD.
        let typed: crate::resource::McpServer = serde_json::from_value(manifest).unwrap();
        assert_eq!(typed.status.unwrap().observed_generation, Some(2));
    }
}
