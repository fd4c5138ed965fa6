//! Where a request goes that one server answers, and what changes in it on the way.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::answer::{self, RouteError};
use super::routed_method::RoutedMethod;
use crate::catalog::{ResourceRoute, Route, Table, View};
use crate::upstream::{Item, Section};
use crate::wire::{JsonEdit, ListKind, Members, json_string, members};

/// A request's server, and what it calls the thing that is asked for.
#[derive(Clone, Debug)]
pub(super) struct RouteTarget {
    pub(super) ask: RoutedMethod,
    way: RouteKind,
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
    pub(super) fn take(view: &View, ask: RoutedMethod, params: &Members<'_>) -> Result<Self, RouteError> {
        let way = match ask {
            RoutedMethod::Call => {
                let name = params.text("name");
                let name = name.ok_or(RouteError::Bad("a call needs the \"name\" of a tool"))?;
                RouteKind::Listed(listed(view.of(ListKind::Tools), ListKind::Tools, &name)?)
            }
            RoutedMethod::Prompt => {
                let name = params.text("name");
                let name = name.ok_or(RouteError::Bad("prompts/get needs the \"name\" of a prompt"))?;
                RouteKind::Listed(listed(view.of(ListKind::Prompts), ListKind::Prompts, &name)?)
            }
            RoutedMethod::Read => {
                let uri = params.text("uri");
                let uri = uri.ok_or(RouteError::Bad("resources/read needs the \"uri\" of a resource"))?;
                let place = resource(view, &uri)?;
                let json = json_string(&place.uri);
                RouteKind::Resource(place, json)
            }
            RoutedMethod::Complete => reference(view, params.get("ref"))?,
        };
        Ok(Self { ask, way })
    }

    /// The server.
    pub(super) fn section(&self) -> &Arc<Section> {
        match &self.way {
            RouteKind::Listed(route) => route.section(),
            RouteKind::Resource(place, _) => &place.section,
            RouteKind::Reference(section, _) => section,
        }
    }

    /// The entry of the server's list that the agent saw, if the request is for one.
    pub(super) fn listed(&self) -> Option<(ListKind, &Item)> {
        match (&self.way, self.ask) {
            (RouteKind::Listed(route), RoutedMethod::Call) => Some((ListKind::Tools, route.item())),
            (RouteKind::Listed(route), RoutedMethod::Prompt) => Some((ListKind::Prompts, route.item())),
            _ => None,
        }
    }

    /// What changes in the request's params.
    pub(super) fn edit(&self) -> JsonEdit<'_> {
        match &self.way {
            RouteKind::Listed(route) => JsonEdit::Set("name", route.name_json()),
            RouteKind::Resource(_, json) => JsonEdit::Set("uri", json),
            RouteKind::Reference(_, json) => JsonEdit::Set("ref", json),
        }
    }

    /// What the server calls it, where the request's headers say so.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.way {
            RouteKind::Listed(route) => Some(route.name()),
            RouteKind::Resource(place, _) => Some(&place.uri),
            RouteKind::Reference(..) => None,
        }
    }
}

/// Where a resource is, by the URI that the agent knows.
pub(super) fn resource(view: &View, uri: &str) -> Result<ResourceRoute, RouteError> {
    view.resource(uri).ok_or_else(|| missed(view.of(ListKind::Resources), ListKind::Resources, uri))
}

fn listed(table: &Table, list: ListKind, name: &str) -> Result<Arc<Route>, RouteError> {
    table.route(name).cloned().ok_or_else(|| missed(table, list, name))
}

fn missed(table: &Table, list: ListKind, name: &str) -> RouteError {
    match table.gone(name) {
        Some(gone) => RouteError::Gone(answer::gone(list, name, gone)),
        None => RouteError::Unknown(format!("Unknown {}: {name}", list.item())),
    }
}

/// The server of what a completion is for, and the reference as that server knows it.
fn reference(view: &View, reference: Option<&RawValue>) -> Result<RouteKind, RouteError> {
    const BAD: RouteError =
        RouteError::Bad("completion/complete needs a \"ref\" to a prompt or a resource template");
    let Some(Ok(reference)) = reference.map(|reference| members(reference.get())) else {
        return Err(BAD);
    };
    let (list, key) = match reference.text("type").as_deref() {
        Some("ref/prompt") => (ListKind::Prompts, "name"),
        Some("ref/resource") => (ListKind::Templates, "uri"),
        _ => return Err(BAD),
    };
    let Some(name) = reference.text(key) else { return Err(BAD) };
    let table = view.of(list);
    let (section, own) = match (table.route(&name), list) {
        (Some(route), _) => (route.section().clone(), route.name_json().to_owned()),
        (None, ListKind::Templates) => {
            let ResourceRoute { section, uri } = resource(view, &name)?;
            (section, json_string(&uri))
        }
        (None, _) => return Err(missed(table, list, &name)),
    };
    Ok(RouteKind::Reference(section, reference.rewrite(&[JsonEdit::Set(key, &own)])))
}
