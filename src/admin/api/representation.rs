use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::manifest::{partial_metadata, set_fields};
use super::object_version::ObjectVersion;
use super::parameters::Parameters;
use super::resource::Resource;
use super::table::{self, IncludeObject};

/// The representation of objects that a request accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Representation {
    /// The whole object.
    Object,
    /// Rows of a `meta.k8s.io/v1` `Table`.
    Table(IncludeObject),
    /// The metadata alone, as `PartialObjectMetadata`.
    Metadata,
}

/// Returns the media type parameters of `kind` as the response repeats them, if the `Accept` headers prefer it to
/// plain JSON.
pub(super) fn accepted_parameters(headers: &HeaderMap, kind: &str) -> Option<&'static str> {
    const SUPPORTED_KINDS: [(&str, &str, &str); 5] = [
        ("APIGroupDiscoveryList", "v2", "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
        ("Table", "v1", "as=Table;g=meta.k8s.io;v=v1"),
        ("PartialObjectMetadata", "v1", "as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
        ("PartialObjectMetadataList", "v1", "as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
        ("", "", ""),
    ];
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    for range in accepted.flat_map(|accept| accept.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*" | "application/*")) {
            continue;
        }
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let value =
            |name| parameters.iter().find(|(found, _)| *found == name).map_or("", |(_, value)| *value);
        let (requested, version) = (value("as"), value("v"));
        if let Some((supported, _, response_parameters)) =
            SUPPORTED_KINDS.into_iter().find(|(supported, supported_version, _)| {
                (requested, version) == (*supported, *supported_version)
            })
        {
            return (supported == kind).then_some(response_parameters);
        }
    }
    None
}

impl Representation {
    pub fn from_headers(headers: &HeaderMap, parameters: &Parameters) -> Self {
        if accepted_parameters(headers, "Table").is_some() {
            return Self::Table(match parameters.include_object.as_str() {
                "None" => IncludeObject::None,
                "Object" => IncludeObject::Object,
                _ => IncludeObject::Metadata,
            });
        }
        let metadata = ["PartialObjectMetadata", "PartialObjectMetadataList"];
        if metadata.iter().any(|kind| accepted_parameters(headers, kind).is_some()) {
            Self::Metadata
        } else {
            Self::Object
        }
    }

    /// Renders one object; `version` is the resource version of its change.
    pub fn render_object(self, resource: Resource, item: &ObjectVersion, version: u64) -> Value {
        let mut manifest = item.manifest(resource);
        if let Some(metadata) = manifest.get_mut("metadata") {
            set_fields(metadata, [("resourceVersion", json!(version.to_string()))]);
        }
        match self {
            Self::Object => manifest,
            Self::Metadata => partial_metadata(&manifest),
            Self::Table(include) => {
                let row = table::row(resource, item, manifest, include, Timestamp::now());
                table::table(resource, vec![row], json!({ "resourceVersion": version.to_string() }))
            }
        }
    }

    /// Renders a list of objects.
    pub fn render_list(self, resource: Resource, items: &[ObjectVersion], list_metadata: Value) -> Value {
        match self {
            Self::Table(include) => {
                let now = Timestamp::now();
                let row =
                    |item: &ObjectVersion| table::row(resource, item, item.manifest(resource), include, now);
                table::table(resource, items.iter().map(row).collect(), list_metadata)
            }
            Self::Metadata => {
                let items = items.iter().map(|item| partial_metadata(&item.manifest(resource)));
                list_document("meta.k8s.io/v1", "PartialObjectMetadata", list_metadata, items)
            }
            Self::Object => {
                let items = items.iter().map(|item| item.manifest(resource));
                list_document(&resource.api_version(), resource.kind(), list_metadata, items)
            }
        }
    }

    /// Renders the object of a bookmark, which holds a resource version only.
    pub fn render_bookmark(self, resource: Resource, version: u64, initial_end: bool) -> Value {
        let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if initial_end {
            let end = json!({ "k8s.io/initial-events-end": "true" });
            set_fields(&mut metadata, [("annotations", end)]);
        }
        match self {
            Self::Table(_) => table::table(resource, Vec::new(), metadata),
            Self::Metadata => json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata,
            }),
            Self::Object => json!({
                "apiVersion": resource.api_version(), "kind": resource.kind(), "metadata": metadata,
            }),
        }
    }
}

fn list_document(
    api_version: &str,
    kind: &str,
    list_metadata: Value,
    items: impl Iterator<Item = Value>,
) -> Value {
    let mut list = json!({ "apiVersion": api_version, "kind": format!("{kind}List") });
    set_fields(&mut list, [("metadata", list_metadata), ("items", Value::Array(items.collect()))]);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_supported_media_type_in_accept_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,\
            application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, include, expected) in [
            ("", "", Representation::Object),
            ("application/json, */*", "", Representation::Object),
            (table, "", Representation::Table(IncludeObject::Metadata)),
            (table, "Object", Representation::Table(IncludeObject::Object)),
            ("application/vnd.kubernetes.protobuf, application/json", "", Representation::Object),
            ("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", "", Representation::Object),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                 application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                "",
                Representation::Metadata,
            ),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let parameters = Parameters { include_object: include.into(), ..Parameters::default() };
            assert_eq!(Representation::from_headers(&headers, &parameters), expected, "{accept}");
        }
    }
}
