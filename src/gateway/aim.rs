//! Where a request goes that one server answers, and what changes in it on the way.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::answer::{self, Miss};
use super::ask::Ask;
use crate::catalog::{Place, Route, Table, View};
use crate::upstream::{Item, Section};
use crate::wire::{Edit, List, Members, json_string, members};

/// A request's server, and what it calls the thing that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Aim {
    pub(super) ask: Ask,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Listed(Arc<Route>),
    /// With the URI as JSON.
    Resource(Place, String),
    /// With the whole reference as JSON.
    Reference(Arc<Section>, String),
}

impl Aim {
    /// Where a request with these params goes.
    pub(super) fn take(view: &View, ask: Ask, params: &Members<'_>) -> Result<Self, Miss> {
        let way = match ask {
            Ask::Call => {
                let name = params.text("name");
                let name = name.ok_or(Miss::Bad("a call needs the \"name\" of a tool"))?;
                Way::Listed(listed(view.of(List::Tools), List::Tools, &name)?)
            }
            Ask::Prompt => {
                let name = params.text("name");
                let name = name.ok_or(Miss::Bad("prompts/get needs the \"name\" of a prompt"))?;
                Way::Listed(listed(view.of(List::Prompts), List::Prompts, &name)?)
            }
            Ask::Read => {
                let uri = params.text("uri");
                let uri = uri.ok_or(Miss::Bad("resources/read needs the \"uri\" of a resource"))?;
                let place = resource(view, &uri)?;
                let json = json_string(&place.uri);
                Way::Resource(place, json)
            }
            Ask::Complete => reference(view, params.get("ref"))?,
        };
        Ok(Self { ask, way })
    }

    /// The server.
    pub(super) fn section(&self) -> &Arc<Section> {
        match &self.way {
            Way::Listed(route) => route.section(),
            Way::Resource(place, _) => &place.section,
            Way::Reference(section, _) => section,
        }
    }

    /// The entry of the server's list that the agent saw, if the request is for one.
    pub(super) fn listed(&self) -> Option<(List, &Item)> {
        match (&self.way, self.ask) {
            (Way::Listed(route), Ask::Call) => Some((List::Tools, route.item())),
            (Way::Listed(route), Ask::Prompt) => Some((List::Prompts, route.item())),
            _ => None,
        }
    }

    /// What changes in the request's params.
    pub(super) fn edit(&self) -> Edit<'_> {
        match &self.way {
            Way::Listed(route) => Edit::Set("name", route.name_json()),
            Way::Resource(_, json) => Edit::Set("uri", json),
            Way::Reference(_, json) => Edit::Set("ref", json),
        }
    }

    /// What the server calls it, where the request's headers say so.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.way {
            Way::Listed(route) => Some(route.name()),
            Way::Resource(place, _) => Some(&place.uri),
            Way::Reference(..) => None,
        }
    }
}

/// Where a resource is, by the URI that the agent knows.
pub(super) fn resource(view: &View, uri: &str) -> Result<Place, Miss> {
    view.resource(uri).ok_or_else(|| missed(view.of(List::Resources), List::Resources, uri))
}

fn listed(table: &Table, list: List, name: &str) -> Result<Arc<Route>, Miss> {
    table.route(name).cloned().ok_or_else(|| missed(table, list, name))
}

fn missed(table: &Table, list: List, name: &str) -> Miss {
    match table.gone(name) {
        Some(gone) => Miss::Gone(answer::gone(list, name, gone)),
        None => Miss::Unknown(format!("Unknown {}: {name}", list.item())),
    }
}

/// The server of what a completion is for, and the reference as that server knows it.
fn reference(view: &View, reference: Option<&RawValue>) -> Result<Way, Miss> {
    const BAD: Miss = Miss::Bad("completion/complete needs a \"ref\" to a prompt or a resource template");
    let Some(Ok(reference)) = reference.map(|reference| members(reference.get())) else {
        return Err(BAD);
    };
    let (list, key) = match reference.text("type").as_deref() {
        Some("ref/prompt") => (List::Prompts, "name"),
        Some("ref/resource") => (List::Templates, "uri"),
        _ => return Err(BAD),
    };
    let Some(name) = reference.text(key) else { return Err(BAD) };
    let table = view.of(list);
    let (section, own) = match (table.route(&name), list) {
        (Some(route), _) => (route.section().clone(), route.name_json().to_owned()),
        (None, List::Templates) => {
            let Place { section, uri } = resource(view, &name)?;
            (section, json_string(&uri))
        }
        (None, _) => return Err(missed(table, list, &name)),
    };
    Ok(Way::Reference(section, reference.rewrite(&[Edit::Set(key, &own)])))
}
