use serde_json::{Value, json};

use super::resource::Resource;

/// The root of a discovery document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscoveryRoot {
    /// `/api`: the core group.
    Core,
    /// `/apis`: all others.
    Groups,
}

/// The minor version of the Kubernetes API that this one resembles. Clients select their behaviour by it.
const KUBERNETES_MINOR_VERSION: &str = "36";

/// Returns the document of `/version`.
pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": KUBERNETES_MINOR_VERSION,
        "gitVersion": format!("v1.{KUBERNETES_MINOR_VERSION}.0+evenkeel.{}", env!("CARGO_PKG_VERSION")),
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// Returns the document of `/api` or `/apis`: the legacy format or, if `aggregated`, the one with all resources.
pub(super) fn root(root: DiscoveryRoot, aggregated: bool) -> Value {
    let groups = groups(root);
    if aggregated {
        return json!({
            "apiVersion": "apidiscovery.k8s.io/v2",
            "kind": "APIGroupDiscoveryList",
            "metadata": {},
            "items": groups.into_iter().map(aggregated_group).collect::<Vec<_>>(),
        });
    }
    match root {
        DiscoveryRoot::Core => json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        }),
        DiscoveryRoot::Groups => json!({
            "apiVersion": "v1",
            "kind": "APIGroupList",
            "groups": groups.into_iter().filter_map(group).collect::<Vec<_>>(),
        }),
    }
}

/// Returns the document of `/apis/GROUP`; `None` if the group is not served.
pub(super) fn group(name: &str) -> Option<Value> {
    let group_resources =
        Resource::ALL.into_iter().find(|resource| resource.group() == name && !name.is_empty())?;
    let version =
        json!({ "groupVersion": group_resources.api_version(), "version": group_resources.version() });
    Some(json!({
        "apiVersion": "v1",
        "kind": "APIGroup",
        "name": name,
        "versions": [version],
        "preferredVersion": version,
    }))
}

/// Returns the document of `/apis/GROUP/VERSION` and `/api/v1`.
pub(super) fn resources(group: &str, version: &str) -> Option<Value> {
    let resources_of_group: Vec<_> = served_resources(group, version).collect();
    let resources = resources_of_group.iter().map(|resource| {
        json!({
            "name": resource.plural(),
            "singularName": resource.singular(),
            "namespaced": resource.namespaced(),
            "kind": resource.kind(),
            "verbs": resource.verbs(),
            "shortNames": resource.short_names(),
            "categories": resource.categories(),
        })
    });
    Some(json!({
        "apiVersion": "v1",
        "kind": "APIResourceList",
        "groupVersion": resources_of_group.first()?.api_version(),
        "resources": resources.collect::<Vec<_>>(),
    }))
}

/// Returns the resources of a version of a group.
pub(super) fn served_resources(group: &str, version: &str) -> impl Iterator<Item = Resource> {
    Resource::ALL
        .into_iter()
        .filter(move |resource| (resource.group(), resource.version()) == (group, version))
}

fn groups(root: DiscoveryRoot) -> Vec<&'static str> {
    let mut groups: Vec<_> = Resource::ALL.into_iter().map(Resource::group).collect();
    groups.dedup();
    groups.retain(|group| group.is_empty() == (root == DiscoveryRoot::Core));
    groups
}

fn aggregated_group(group: &str) -> Value {
    let group_resources = Resource::ALL.into_iter().filter(|resource| resource.group() == group);
    let version = group_resources.clone().map(Resource::version).next().unwrap_or_default();
    let resources = group_resources.map(|resource| {
        let kind = json!({ "group": group, "version": version, "kind": resource.kind() });
        json!({
            "resource": resource.plural(),
            "responseKind": kind,
            "scope": if resource.namespaced() { "Namespaced" } else { "Cluster" },
            "singularResource": resource.singular(),
            "verbs": resource.verbs(),
            "shortNames": resource.short_names(),
            "categories": resource.categories(),
        })
    });
    json!({
        "metadata": { "name": group, "creationTimestamp": null },
        "versions": [{
            "version": version,
            "resources": resources.collect::<Vec<_>>(),
            "freshness": "Current",
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_and_legacy_discovery_list_the_same_resources() {
        let aggregated = root(DiscoveryRoot::Groups, true);
        let names: Vec<_> =
            aggregated["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
        assert_eq!(names, ["evenkeel.dev", "events.k8s.io"]);
        let groups = root(DiscoveryRoot::Groups, false);
        assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "evenkeel.dev/v1alpha1");
        let resources = resources("evenkeel.dev", "v1alpha1").unwrap();
        for index in 0..3 {
            let (old, new) =
                (&resources["resources"][index], &aggregated["items"][0]["versions"][0]["resources"][index]);
            assert_eq!(old["name"], new["resource"]);
            assert_eq!(old["shortNames"], new["shortNames"]);
            assert_eq!(old["verbs"], new["verbs"]);
        }
        assert_eq!(resources["resources"][0]["shortNames"], json!(["mcps"]));
        assert_eq!(resources["resources"][0]["categories"], json!(["mcp"]));
        assert_eq!(resources["resources"][2]["shortNames"], json!(["src"]));
        assert_eq!(
            root(DiscoveryRoot::Core, true)["items"][0]["versions"][0]["resources"][1]["resource"],
            "namespaces"
        );
        assert_eq!(group("nothing"), None);
        assert_eq!(group(""), None);
    }
}
