//! Where a request goes that one server answers, and what changes in it on the way.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::response::{self, RouteError};
use super::routed_method::RoutedMethod;
use crate::catalog::{ResourceRoute, Route, Table, View};
use crate::upstream::{Item, Section};
use crate::wire::{JsonEdit, ListKind, Members, json_string, members};

/// A request's server, and what it calls the thing that is asked for.
#[derive(Clone, Debug)]
pub(super) struct RouteTarget {
    pub(super) method: RoutedMethod,
    kind: RouteKind,
}

#[derive(Clone, Debug)]
enum RouteKind {
    Listed(Arc<Route>),
    /// With the URI as JSON.
    Resource(ResourceRoute, String),
    /// With the whole reference as JSON.
    Reference(Arc<Section>, String),
}

impl RouteTarget {
    /// Where a request with these params goes.
    pub(super) fn resolve(view: &View, ask: RoutedMethod, params: &Members<'_>) -> Result<Self, RouteError> {
        let way = match ask {
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
                let place = resolve_resource(view, &uri)?;
                let json = json_string(&place.uri);
                RouteKind::Resource(place, json)
            }
            RoutedMethod::Complete => resolve_reference(view, params.get("ref"))?,
        };
        Ok(Self { method: ask, kind: way })
    }

    /// The server.
    pub(super) fn section(&self) -> &Arc<Section> {
        match &self.kind {
            RouteKind::Listed(route) => route.section(),
            RouteKind::Resource(place, _) => &place.section,
            RouteKind::Reference(section, _) => section,
        }
    }

    /// The entry of the server's list that the agent saw, if the request is for one.
    pub(super) fn listed_item(&self) -> Option<(ListKind, &Item)> {
        match (&self.kind, self.method) {
            (RouteKind::Listed(route), RoutedMethod::CallTool) => Some((ListKind::Tools, route.item())),
            (RouteKind::Listed(route), RoutedMethod::GetPrompt) => Some((ListKind::Prompts, route.item())),
            _ => None,
        }
    }

    /// What changes in the request's params.
    pub(super) fn params_edit(&self) -> JsonEdit<'_> {
        match &self.kind {
            RouteKind::Listed(route) => JsonEdit::Set("name", route.name_json()),
            RouteKind::Resource(_, json) => JsonEdit::Set("uri", json),
            RouteKind::Reference(_, json) => JsonEdit::Set("ref", json),
        }
    }

    /// What the server calls it, where the request's headers say so.
    pub(super) fn upstream_name(&self) -> Option<&str> {
        match &self.kind {
            RouteKind::Listed(route) => Some(route.name()),
            RouteKind::Resource(place, _) => Some(&place.uri),
            RouteKind::Reference(..) => None,
        }
    }
}

/// Where a resource is, by the URI that the agent knows.
pub(super) fn resolve_resource(view: &View, uri: &str) -> Result<ResourceRoute, RouteError> {
    view.resolve_resource(uri)
        .ok_or_else(|| not_found_error(view.table(ListKind::Resources), ListKind::Resources, uri))
}

fn resolve_listed(table: &Table, list: ListKind, name: &str) -> Result<Arc<Route>, RouteError> {
    table.route(name).cloned().ok_or_else(|| not_found_error(table, list, name))
}

fn not_found_error(table: &Table, list: ListKind, name: &str) -> RouteError {
    match table.removed(name) {
        Some(gone) => RouteError::Removed(response::removed_item_text(list, name, gone)),
        None => RouteError::Unknown(format!("Unknown {}: {name}", list.item_noun())),
    }
}

/// The server of what a completion is for, and the reference as that server knows it.
fn resolve_reference(view: &View, reference: Option<&RawValue>) -> Result<RouteKind, RouteError> {
    const BAD: RouteError =
        RouteError::InvalidParams("completion/complete needs a \"ref\" to a prompt or a resource template");
    let Some(Ok(reference)) = reference.map(|reference| members(reference.get())) else {
        return Err(BAD);
    };
    let (list, key) = match reference.get_string("type").as_deref() {
        Some("ref/prompt") => (ListKind::Prompts, "name"),
        Some("ref/resource") => (ListKind::Templates, "uri"),
        _ => return Err(BAD),
    };
    let Some(name) = reference.get_string(key) else { return Err(BAD) };
    let table = view.table(list);
    let (section, own) = match (table.route(&name), list) {
        (Some(route), _) => (route.section().clone(), route.name_json().to_owned()),
        (None, ListKind::Templates) => {
            let ResourceRoute { section, uri } = resolve_resource(view, &name)?;
            (section, json_string(&uri))
        }
        (None, _) => return Err(not_found_error(table, list, &name)),
    };
    Ok(RouteKind::Reference(section, reference.rewrite(&[JsonEdit::Set(key, &own)])))
}
