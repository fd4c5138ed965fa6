//! The Kubernetes API of our kinds, as far as kubectl, client libraries and our own commands read it.
//!
//! Promises that every answer is made from one snapshot of the store, that a watch gets every state that lasts,
//! in order, and that it is never waited for. Takes two annotations that ask for work and changes nothing
//! else: whoever wants to is told which files to edit.

mod changes;
mod discovery;
mod events;
mod list;
mod manifest;
mod object_version;
mod openapi;
mod parameters;
mod patch;
mod path;
mod representation;
mod resource;
mod selector;
mod table;
mod watch;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use self::parameters::Parameters;
use self::path::ResourcePath;
use self::representation::Representation;
use super::app::App;
use super::error_response::ErrorResponse;
use crate::resource::ObjectKey;

pub(super) fn routes() -> Router<App> {
    Router::new().fallback(handle)
}

async fn handle(State(app): State<App>, request: Request) -> Response {
    match dispatch(&app, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn dispatch(app: &App, request: Request) -> Result<Response, ErrorResponse> {
    let (parts, body) = request.into_parts();
    let place = ResourcePath::parse(parts.uri.path())
        .ok_or_else(|| ErrorResponse::path_not_found(parts.uri.path()))?;
    match parts.method {
        Method::GET | Method::HEAD => get(app, place, &parts.uri, &parts.headers),
        Method::PATCH => patch(app, place, &parts.uri, &parts.headers, body).await,
        method => Err(ErrorResponse::read_only(&method, &app.state.edit_hint)),
    }
}

fn get(app: &App, place: ResourcePath, uri: &Uri, headers: &HeaderMap) -> Result<Response, ErrorResponse> {
    let asked = Parameters::from_uri(uri)?;
    let document =
        |value| Ok(json_response(&value, asked.pretty.unwrap_or_else(|| prefers_pretty_json(headers))));
    let shape = Representation::from_headers(headers, &asked);
    let (resource, namespace, name) = match place {
        ResourcePath::Document(text) => return document(text),
        ResourcePath::Discovery(root) => {
            let aggregated = representation::accepted_parameters(headers, "APIGroupDiscoveryList");
            return Ok(typed_json_response(&discovery::root(root, aggregated.is_some()), aggregated));
        }
        ResourcePath::Collection(resource, namespace) => (resource, namespace, None),
        ResourcePath::Object(resource, namespace, name) => (resource, namespace, Some(name)),
    };
    if name.is_none() || asked.watch {
        let scope = selector::Selector::new(resource, namespace, name, &asked)?;
        if asked.watch {
            return watch::start(app, scope, shape, &asked);
        }
        return document(list::list(app, &scope, shape, &asked)?);
    }
    let key = object_key(namespace, name);
    let found = object_version::find_object(&app.snapshot(), resource, &key);
    let item = found
        .ok_or_else(|| ErrorResponse::object_not_found(resource.group(), resource.plural(), &key.name))?;
    let version = item.version;
    document(shape.render_object(resource, &item, version))
}

async fn patch(
    app: &App,
    place: ResourcePath,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let ResourcePath::Object(resource, namespace, name) = place else {
        return Err(ErrorResponse::read_only(&Method::PATCH, &app.state.edit_hint));
    };
    let asked = Parameters::from_uri(uri)?;
    let item = patch::patch(app, resource, &object_key(namespace, Some(name)), headers, &asked, body).await?;
    let version = item.version;
    Ok(json_response(
        &Representation::from_headers(headers, &asked).render_object(resource, &item, version),
        false,
    ))
}

/// An object without a namespace has an empty one.
fn object_key(namespace: Option<String>, name: Option<String>) -> ObjectKey {
    ObjectKey::new(namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// For people: over several lines, as the API server does it for browsers and curl.
fn prefers_pretty_json(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl/", "Wget/", "Mozilla/5.0"].iter().any(|start| agent.starts_with(start))
}

fn json_response(value: &Value, pretty: bool) -> Response {
    let text = if pretty { format!("{value:#}\n") } else { value.to_string() };
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// A document in the shape that was asked for by parameters of the media type, which the answer repeats.
fn typed_json_response(value: &Value, parameters: Option<&'static str>) -> Response {
    let kind = match parameters {
        Some(parameters) => format!("application/json;{parameters}"),
        None => "application/json".to_owned(),
    };
    ([(CONTENT_TYPE, kind)], value.to_string()).into_response()
}
