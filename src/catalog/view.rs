//! The view of one endpoint path: the four lists, and the routes of their items.

use std::sync::Arc;

use tokio::time::Instant;

use super::conflict::NameConflict;
use super::names::has_hash_suffix;
use super::reserved_names::{ReservedName, ReservedNames};
use super::route::Route;
use super::table::{HomeNamespace, Table};
use super::template;
use crate::resource::ObjectKey;
use crate::upstream::{Responder, Section, ViewName};
use crate::wire::ListKind;

/// The four lists at one endpoint path. Cheap to clone: generations share unchanged parts.
#[derive(Clone, Debug)]
pub struct View {
    tools: Table,
    prompts: Table,
    resources: Table,
    templates: Table,
}

/// The target of a resource request.
#[derive(Clone, Debug)]
pub struct ResourceRoute {
    /// The server.
    pub section: Arc<Section>,
    /// The server's own URI.
    pub uri: String,
}

impl View {
    /// Creates the empty view of one namespace.
    pub(super) fn namespace(namespace: Arc<str>) -> Self {
        Self::new(ViewName::Namespace(namespace), None)
    }

    /// Creates the empty view of all namespaces.
    pub(super) fn everything(home: HomeNamespace) -> Self {
        Self::new(ViewName::All, Some(home))
    }

    fn new(name: ViewName, qualified: Option<HomeNamespace>) -> Self {
        let named = [ListKind::Tools, ListKind::Prompts, ListKind::Resources];
        let [tools, prompts, resources] = named.map(|list| Table::new(list, name.clone(), qualified.clone()));
        Self { tools, prompts, resources, templates: Table::new(ListKind::Templates, name, qualified) }
    }

    /// Returns the table of a list.
    pub fn table(&self, list: ListKind) -> &Table {
        match list {
            ListKind::Tools => &self.tools,
            ListKind::Prompts => &self.prompts,
            ListKind::Resources => &self.resources,
            ListKind::Templates => &self.templates,
        }
    }

    pub(super) fn table_mut(&mut self, list: ListKind) -> &mut Table {
        match list {
            ListKind::Tools => &mut self.tools,
            ListKind::Prompts => &mut self.prompts,
            ListKind::Resources => &mut self.resources,
            ListKind::Templates => &mut self.templates,
        }
    }

    /// Returns the number of the generation in which anything last changed that this list's notification covers.
    pub fn version(&self, list: ListKind) -> u64 {
        match list.notified_as() {
            ListKind::Resources => self.resources.version().max(self.templates.version()),
            list => self.table(list).version(),
        }
    }

    /// Returns the time of that change; `None` if there never was one.
    pub fn changed_at(&self, list: ListKind) -> Option<Instant> {
        match list.notified_as() {
            ListKind::Resources => self.resources.changed_at().max(self.templates.changed_at()),
            list => self.table(list).changed_at(),
        }
    }

    /// Returns the route of a resource, which need not be listed.
    ///
    /// Searches by the URI, then by the template with the most matching literal bytes, then selects the only server with
    /// resources, if there is just one. Returns `None` if none is found, or if the server does not expose the resource.
    pub fn resolve_resource(&self, uri: &str) -> Option<ResourceRoute> {
        if let Some(route) = self.resources.route(uri) {
            return Some(ResourceRoute { section: route.section().clone(), uri: route.name().to_owned() });
        }
        // A URI made from a hash-suffixed template ends with the template's hash suffix.
        let suffixed = self.templates.suffixed().filter(|_| has_hash_suffix(uri, &['#', '-']));
        let templates = self.templates.routes().chain(suffixed);
        let matching =
            templates.filter_map(|found| Some((template::matched_literal_bytes(found.0, uri)?, found)));
        let by_template = matching.max_by_key(|(literal_bytes, _)| *literal_bytes);
        let route = by_template
            .map(|(_, (name, route))| template_route(name, route, uri))
            .or_else(|| self.only_server(uri))?;
        route.section.permits_resource(&route.uri).then_some(route)
    }

    fn only_server(&self, uri: &str) -> Option<ResourceRoute> {
        let routes = self.resources.routes().chain(self.templates.routes());
        let is_server = |section: &&Arc<Section>| {
            matches!(section.responder, Responder::Server(_) | Responder::Isolated { .. })
        };
        let mut sections = routes.map(|(_, route)| route.section()).filter(is_server);
        let first = sections.next()?;
        sections
            .all(|section| section.key == first.key)
            .then(|| ResourceRoute { section: first.clone(), uri: uri.to_owned() })
    }

    /// Returns the items of a server that are hash-suffixed because of another server.
    pub(super) fn conflicts(
        &self,
        section: &Section,
        reserved: &ReservedNames,
        pending_claimant: Option<&ObjectKey>,
    ) -> Vec<NameConflict> {
        ListKind::ALL
            .into_iter()
            .flat_map(|list| self.table(list).conflicts(section, reserved, pending_claimant))
            .collect()
    }

    /// Returns the names under which a server's items are listed.
    pub(super) fn names_of(&self, section: &Section) -> Vec<ReservedName> {
        ListKind::ALL.into_iter().flat_map(|list| self.table(list).names_of(section)).collect()
    }
}

/// Returns the route of a URI that was made from a template under `name`, which may be hash-suffixed; the route has the
/// server's own URI.
fn template_route(name: &str, route: &Arc<Route>, uri: &str) -> ResourceRoute {
    let suffix = name.strip_prefix(route.name()).unwrap_or_default();
    ResourceRoute {
        section: route.section().clone(),
        uri: uri.strip_suffix(suffix).unwrap_or(uri).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::testing::section;
    use crate::catalog::{CatalogUpdate, Generation};
    use crate::resource::NameFilter;
    use crate::upstream::{Item, NameMatcher, ServerLists};

    fn publish_resources(
        name: &str,
        resources: &[&str],
        templates: &[&str],
        filter: Option<&NameFilter>,
    ) -> CatalogUpdate {
        let items = |list: ListKind, names: &[&str]| {
            let entry = |name: &&str| serde_json::json!({ list.item_key(): name }).to_string();
            names.iter().map(|name| Item::parse(list, &entry(name)).unwrap()).collect()
        };
        let mut section = section("default", name, name, &[]);
        section.lists = Arc::new(ServerLists {
            resources: items(ListKind::Resources, resources),
            templates: items(ListKind::Templates, templates),
            ..ServerLists::default()
        });
        section.resource_filter = filter.and_then(NameMatcher::from_filter).map(Box::new);
        CatalogUpdate::Publish(Arc::new(section))
    }

    fn generation(updates: Vec<CatalogUpdate>) -> Generation {
        Generation::new(Some("default".into()), ReservedNames::default(), Instant::now())
            .with_updates(updates, Instant::now())
    }

    fn resolve(generation: &Generation, uri: &str) -> Option<(String, String)> {
        let route = generation.view(&ViewName::All).resolve_resource(uri)?;
        Some((route.section.key.name.to_string(), route.uri))
    }

    #[test]
    fn resource_resolves_by_uri_then_by_template() {
        let both = generation(vec![
            publish_resources("a", &["x:1", "file:///1"], &["file:///{+path}"], None),
            publish_resources("b", &["x:1"], &["file:///{+path}", "file:///log/{day}"], None),
        ]);
        let found = |uri: &str| resolve(&both, uri).map(|(server, uri)| format!("{server} {uri}"));
        assert_eq!(found("x:1").unwrap(), "a x:1");
        assert_eq!(found("file:///1").unwrap(), "a file:///1");
        assert_eq!(found("file:///any/where").unwrap(), "a file:///any/where");
        assert_eq!(
            found("file:///log/monday").unwrap(),
            "b file:///log/monday",
            "the more specific template"
        );
        assert_eq!(found("other:1"), None, "two servers have resources");
        // The equal names of the second server are hash-suffixed; its own URIs are not.
        let view = both.view(&ViewName::All);
        let suffixed: Vec<_> =
            view.table(ListKind::Templates).routes().filter(|(name, _)| name.contains('#')).collect();
        let [(template, _)] = suffixed[..] else { panic!("{suffixed:?}") };
        assert_eq!(found(&template.replace("{+path}", "a/b")).unwrap(), "b file:///a/b");
        let (suffixed, _) =
            view.table(ListKind::Resources).routes().find(|(name, _)| name.starts_with("x:1#")).unwrap();
        assert_eq!(found(suffixed).unwrap(), "b x:1");
    }

    #[test]
    fn unlisted_uri_resolves_to_the_only_server_with_resources() {
        let one = generation(vec![
            publish_resources("a", &["x:1"], &[], None),
            publish_resources("b", &[], &[], None),
        ]);
        assert_eq!(resolve(&one, "y:7").unwrap(), ("a".to_owned(), "y:7".to_owned()));
        let filter = NameFilter { deny: vec!["y:*".into()], ..NameFilter::default() };
        let filtered =
            generation(vec![publish_resources("a", &["x:1"], &["{scheme}:{rest}"], Some(&filter))]);
        assert_eq!(resolve(&filtered, "y:7"), None);
        assert_eq!(resolve(&filtered, "z:7").unwrap().1, "z:7");
    }
}
