use serde_json::Value;

use super::discovery::{self, DiscoveryRoot};
use super::openapi;
use super::resource::Resource;

/// The resource at a URL path.
#[derive(Debug, PartialEq)]
pub(super) enum ResourcePath {
    /// A constant document.
    Document(Value),
    /// `/api` or `/apis`, which have two formats.
    Discovery(DiscoveryRoot),
    /// All objects of a kind, or those of one namespace.
    Collection(Resource, Option<String>),
    /// One object.
    Object(Resource, Option<String>, String),
}

impl ResourcePath {
    /// Parses a URL path; `None` if nothing is served there.
    pub fn parse(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        Some(match &*segments {
            ["version"] => Self::Document(discovery::version()),
            ["openapi", "v3"] => Self::Document(openapi::index()),
            ["openapi", "v3", "api", "v1"] => Self::Document(openapi::document("", "v1")?),
            ["openapi", "v3", "apis", group, version] => Self::Document(openapi::document(group, version)?),
            ["api"] => Self::Discovery(DiscoveryRoot::Core),
            ["apis"] => Self::Discovery(DiscoveryRoot::Groups),
            ["api", "v1"] => Self::Document(discovery::resources("", "v1")?),
            ["apis", group] => Self::Document(discovery::group(group)?),
            ["apis", group, version] => Self::Document(discovery::resources(group, version)?),
            ["api", "v1", segments_left @ ..] => Self::parse_resource("", "v1", segments_left)?,
            ["apis", group, version, segments_left @ ..] => {
                Self::parse_resource(group, version, segments_left)?
            }
            _ => return None,
        })
    }

    fn parse_resource(group: &str, version: &str, segments_left: &[&str]) -> Option<Self> {
        let resource = |plural: &str| {
            let named = |resource: &Resource| {
                (resource.group(), resource.version(), resource.plural()) == (group, version, plural)
            };
            Resource::ALL.into_iter().find(named)
        };
        Some(match *segments_left {
            [plural] => Self::Collection(resource(plural)?, None),
            ["namespaces", namespace, plural] => {
                let resource = resource(plural).filter(|resource| resource.namespaced())?;
                Self::Collection(resource, Some(namespace.to_owned()))
            }
            [plural, name] => {
                let resource = resource(plural).filter(|resource| !resource.namespaced())?;
                Self::Object(resource, None, name.to_owned())
            }
            ["namespaces", namespace, plural, name] => {
                let resource = resource(plural).filter(|resource| resource.namespaced())?;
                Self::Object(resource, Some(namespace.to_owned()), name.to_owned())
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_parse_and_others_do_not() {
        let all = |resource| Some(ResourcePath::Collection(resource, None));
        let of = |resource, namespace: &str| Some(ResourcePath::Collection(resource, Some(namespace.into())));
        let group = "/apis/evenkeel.dev/v1alpha1";
        for (path, expected) in [
            ("/api", Some(ResourcePath::Discovery(DiscoveryRoot::Core))),
            ("/apis/", Some(ResourcePath::Discovery(DiscoveryRoot::Groups))),
            (&format!("{group}/mcpservers"), all(Resource::McpServers)),
            (&format!("{group}/namespaces/n/skills"), of(Resource::Skills, "n")),
            (&format!("{group}/namespaces/n/sources"), None),
            (&format!("{group}/mcpservers/a"), None),
            (&format!("{group}/pods"), None),
            (
                &format!("{group}/sources/directory"),
                Some(ResourcePath::Object(Resource::Sources, None, "directory".into())),
            ),
            (
                &format!("{group}/namespaces/n/mcpservers/a"),
                Some(ResourcePath::Object(Resource::McpServers, Some("n".into()), "a".into())),
            ),
            (&format!("{group}/namespaces/n/mcpservers/a/status"), None),
            ("/api/v1/namespaces/n/events", of(Resource::CoreEvents, "n")),
            ("/apis/events.k8s.io/v1/events", all(Resource::Events)),
            ("/api/v1/namespaces", all(Resource::Namespaces)),
            ("/api/v1/namespaces/n", Some(ResourcePath::Object(Resource::Namespaces, None, "n".into()))),
            ("/apis/nothing.dev", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(ResourcePath::parse(path), expected, "{path}");
        }
        for document in ["/version", "/openapi/v3", "/openapi/v3/apis/evenkeel.dev/v1alpha1", group] {
            assert!(matches!(ResourcePath::parse(document), Some(ResourcePath::Document(_))), "{document}");
        }
    }
}
