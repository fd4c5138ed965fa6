//! Resolves the server that a request is forwarded to, and the change of its params.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::value::RawValue;

use super::param_header_check::check_param_headers;
use super::response::{self, ResponseError, RouteError};
use super::routed_method::RoutedMethod;
use crate::catalog::{ResourceRoute, Route, Table, View};
use crate::upstream::{Item, Section};
use crate::wire::{JsonEdit, ListKind, Members, json_string, parse_members};

/// The server that a request is forwarded to, and the server's own name or URI of the requested item.
#[derive(Clone, Debug)]
pub(super) struct RouteTarget {
    pub(super) method: RoutedMethod,
    kind: RouteKind,
}

#[derive(Clone, Debug)]
enum RouteKind {
    Listed(Arc<Route>),
    /// With the server's URI as JSON.
    Resource(ResourceRoute, String),
    /// With the whole rewritten reference as JSON.
    Reference(Arc<Section>, String),
}

impl RouteTarget {
    /// Resolves the target of a request with these params.
    pub(super) fn resolve(
        view: &View,
        method: RoutedMethod,
        params: &Members<'_>,
    ) -> Result<Self, RouteError> {
        let kind = match method {
            RoutedMethod::CallTool => {
                let name = params.get_string("name");
                let name = name.ok_or(RouteError::InvalidParams("a call needs the \"name\" of a tool"))?;
                RouteKind::Listed(resolve_listed(view.table(ListKind::Tools), ListKind::Tools, &name)?)
            }
            RoutedMethod::GetPrompt => {
                let name = params.get_string("name");
                let name =
                    name.ok_or(RouteError::InvalidParams("prompts/get needs the \"name\" of a prompt"))?;
                RouteKind::Listed(resolve_listed(view.table(ListKind::Prompts), ListKind::Prompts, &name)?)
            }
            RoutedMethod::ReadResource => {
                let uri = params.get_string("uri");
                let uri =
                    uri.ok_or(RouteError::InvalidParams("resources/read needs the \"uri\" of a resource"))?;
                let route = resolve_resource(view, &uri)?;
                let json = json_string(&route.uri);
                RouteKind::Resource(route, json)
            }
            RoutedMethod::Complete => resolve_reference(view, params.get("ref"))?,
        };
        Ok(Self { method, kind })
    }

    /// Returns the section of the server.
    pub(super) fn section(&self) -> &Arc<Section> {
        match &self.kind {
            RouteKind::Listed(route) => route.section(),
            RouteKind::Resource(route, _) => &route.section,
            RouteKind::Reference(section, _) => section,
        }
    }

    /// Returns the item of the server's list that the agent requested, if the request is for a tool or prompt.
    pub(super) fn listed_item(&self) -> Option<(ListKind, &Item)> {
        match (&self.kind, self.method) {
            (RouteKind::Listed(route), RoutedMethod::CallTool) => Some((ListKind::Tools, route.item())),
            (RouteKind::Listed(route), RoutedMethod::GetPrompt) => Some((ListKind::Prompts, route.item())),
            _ => None,
        }
    }

    /// Checks the headers of a modern agent that repeat arguments of the called tool.
    pub(super) fn check_param_headers(
        &self,
        headers: &HeaderMap,
        params: &Members<'_>,
    ) -> Result<(), ResponseError> {
        let expected = self.listed_item().and_then(|(_, item)| item.param_headers());
        expected.map_or(Ok(()), |expected| check_param_headers(expected, headers, params.get("arguments")))
    }

    /// Returns the list in which the server has the requested item; `None` for a resource of a template and for a
    /// completion.
    pub(super) fn list(&self) -> Option<ListKind> {
        match (&self.kind, self.method) {
            (RouteKind::Resource(route, _), _) => {
                let resources = route.section.lists.items(ListKind::Resources);
                let found = resources.binary_search_by(|resource| (**resource.name()).cmp(&route.uri));
                found.is_ok().then_some(ListKind::Resources)
            }
            _ => self.listed_item().map(|(list, _)| list),
        }
    }

    /// Returns the edit of the request's params: the exposed name is replaced by the server's own.
    pub(super) fn params_edit(&self) -> JsonEdit<'_> {
        match &self.kind {
            RouteKind::Listed(route) => JsonEdit::Set("name", route.name_json()),
            RouteKind::Resource(_, json) => JsonEdit::Set("uri", json),
            RouteKind::Reference(_, json) => JsonEdit::Set("ref", json),
        }
    }

    /// Returns the server's own name or URI of the item, for methods that repeat it in a header.
    pub(super) fn upstream_name(&self) -> Option<&str> {
        match &self.kind {
            RouteKind::Listed(route) => Some(route.name()),
            RouteKind::Resource(route, _) => Some(&route.uri),
            RouteKind::Reference(..) => None,
        }
    }
}

/// Resolves a resource by the URI that is exposed to the agent.
pub(super) fn resolve_resource(view: &View, uri: &str) -> Result<ResourceRoute, RouteError> {
    view.resolve_resource(uri)
        .ok_or_else(|| not_found_error(view.table(ListKind::Resources), ListKind::Resources, uri))
}

fn resolve_listed(table: &Table, list: ListKind, name: &str) -> Result<Arc<Route>, RouteError> {
    table.route(name).cloned().ok_or_else(|| not_found_error(table, list, name))
}

fn not_found_error(table: &Table, list: ListKind, name: &str) -> RouteError {
    match table.removed(name) {
        Some(removed) => RouteError::Removed(response::removed_item_text(list, name, removed)),
        None => RouteError::Unknown(list, name.to_owned()),
    }
}

/// Resolves the reference of a completion request: its server, and the reference with the server's own name or URI.
fn resolve_reference(view: &View, reference: Option<&RawValue>) -> Result<RouteKind, RouteError> {
    const INVALID_REF: RouteError =
        RouteError::InvalidParams("completion/complete needs a \"ref\" to a prompt or a resource template");
    let Some(Ok(reference)) = reference.map(|reference| parse_members(reference.get())) else {
        return Err(INVALID_REF);
    };
    let (list, key) = match reference.get_string("type").as_deref() {
        Some("ref/prompt") => (ListKind::Prompts, "name"),
        Some("ref/resource") => (ListKind::Templates, "uri"),
        _ => return Err(INVALID_REF),
    };
    let Some(name) = reference.get_string(key) else { return Err(INVALID_REF) };
    let table = view.table(list);
    let (section, upstream_name) = match (table.route(&name), list) {
        (Some(route), _) => (route.section().clone(), route.name_json().to_owned()),
        (None, ListKind::Templates) => {
            let ResourceRoute { section, uri } = resolve_resource(view, &name)?;
            (section, json_string(&uri))
        }
        (None, _) => return Err(not_found_error(table, list, &name)),
    };
    Ok(RouteKind::Reference(section, reference.rewrite(&[JsonEdit::Set(key, &upstream_name)])))
}
