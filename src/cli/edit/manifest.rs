use std::path::Path;

use serde::Serialize;

use super::super::error::CommandError;
use crate::resource::API_VERSION;
use crate::source::first_problem;

/// The manifest of a server, without default values.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerManifest {
    api_version: &'static str,
    kind: &'static str,
    metadata: ManifestMetadata,
    spec: ManifestTransport,
}

#[derive(Debug, Serialize)]
struct ManifestMetadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

/// The transport of a server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ManifestTransport {
    /// A stdio server.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
        /// Its environment.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        env: Vec<NamedValue>,
    },
    /// An HTTP server.
    Http {
        /// The URL.
        url: String,
        /// The headers of every request.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        headers: Vec<NamedValue>,
    },
}

/// An environment variable or a header.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NamedValue {
    pub name: String,
    #[serde(flatten)]
    pub value: ManifestValue,
}

/// The value of a variable or header.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ManifestValue {
    /// A literal value.
    Value(String),
    /// A reference to a value.
    ValueFrom(ManifestReference),
}

/// A reference to a value outside of the file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ManifestReference {
    /// A variable of evenkeel's environment.
    Env(String),
    /// A key of a secret.
    SecretKeyRef {
        /// The secret.
        name: String,
        /// The key in it.
        key: String,
    },
}

impl ServerManifest {
    /// Creates a manifest. `namespace` is given only if it is not `default`.
    pub fn new(name: &str, namespace: Option<&str>, spec: ManifestTransport) -> Self {
        let metadata = ManifestMetadata { name: name.to_owned(), namespace: namespace.map(str::to_owned) };
        Self { api_version: API_VERSION, kind: "McpServer", metadata, spec }
    }

    /// Returns the text of the file.
    ///
    /// # Errors
    ///
    /// Returns the mistake if evenkeel would refuse the file.
    pub fn to_yaml(&self, path: &Path) -> Result<String, CommandError> {
        let text = serde_yaml::to_string(self).map_err(CommandError::failed)?;
        match first_problem(path, &text) {
            Some(mistake) => Err(CommandError::Failed(mistake)),
            None => Ok(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_yaml_holds_only_what_is_set() {
        let env = vec![
            NamedValue { name: "LEVEL".into(), value: ManifestValue::Value("on".into()) },
            NamedValue {
                name: "PROXY".into(),
                value: ManifestValue::ValueFrom(ManifestReference::Env("HTTPS_PROXY".into())),
            },
            NamedValue {
                name: "TOKEN".into(),
                value: ManifestValue::ValueFrom(ManifestReference::SecretKeyRef {
                    name: "gh".into(),
                    key: "token".into(),
                }),
            },
        ];
        let spec = ManifestTransport::Stdio {
            command: "npx".into(),
            args: vec!["-y".into(), "@scope/server".into()],
            env,
        };
        let text = ServerManifest::new("gh", None, spec).to_yaml(Path::new("gh.yaml")).unwrap();
        let expected = "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: gh\nspec:\n  \
            stdio:\n    command: npx\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("secretKeyRef:"), "{text}");

        let spec = ManifestTransport::Http { url: "ftp://example.com".into(), headers: Vec::new() };
        let error =
            ServerManifest::new("x", None, spec).to_yaml(Path::new("x.yaml")).unwrap_err().to_string();
        assert!(error.contains("http"), "{error}");
    }
}
