//! The Kubernetes API of evenkeel's kinds, as far as kubectl, client libraries and evenkeel's own commands use it.
//!
//! Promises that every response is made from one snapshot of the store, that a watch receives every lasting state in
//! order, and that the reporter never waits for a watch. Accepts two annotations that request work; any other change
//! is refused with the files to edit.

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
        Err(error) => error.into_response(),
    }
}

async fn dispatch(app: &App, request: Request) -> Result<Response, ErrorResponse> {
    let (parts, body) = request.into_parts();
    let path = ResourcePath::parse(parts.uri.path())
        .ok_or_else(|| ErrorResponse::path_not_found(parts.uri.path()))?;
    match parts.method {
        Method::GET | Method::HEAD => get(app, path, &parts.uri, &parts.headers),
        Method::PATCH => patch(app, path, &parts.uri, &parts.headers, body).await,
        method => Err(ErrorResponse::read_only(&method, &app.state.edit_hint)),
    }
}

fn get(app: &App, path: ResourcePath, uri: &Uri, headers: &HeaderMap) -> Result<Response, ErrorResponse> {
    let parameters = Parameters::from_uri(uri)?;
    let document =
        |value| Ok(json_response(&value, parameters.pretty.unwrap_or_else(|| prefers_pretty_json(headers))));
    let representation = Representation::from_headers(headers, &parameters);
    let (resource, namespace, name) = match path {
        ResourcePath::Document(text) => return document(text),
        ResourcePath::Discovery(root) => {
            let aggregated = representation::accepted_parameters(headers, "APIGroupDiscoveryList");
            return Ok(typed_json_response(&discovery::root(root, aggregated.is_some()), aggregated));
        }
        ResourcePath::Collection(resource, namespace) => (resource, namespace, None),
        ResourcePath::Object(resource, namespace, name) => (resource, namespace, Some(name)),
    };
    if name.is_none() || parameters.watch {
        let selector = selector::Selector::new(resource, namespace, name, &parameters)?;
        if parameters.watch {
            return watch::start(app, selector, representation, &parameters);
        }
        return document(list::list(app, &selector, representation, &parameters)?);
    }
    let key = object_key(namespace, name);
    let found = object_version::find_object(&app.snapshot(), resource, &key);
    let item = found
        .ok_or_else(|| ErrorResponse::object_not_found(resource.group(), resource.plural(), &key.name))?;
    let version = item.version;
    document(representation.render_object(resource, &item, version))
}

async fn patch(
    app: &App,
    path: ResourcePath,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let ResourcePath::Object(resource, namespace, name) = path else {
        return Err(ErrorResponse::read_only(&Method::PATCH, &app.state.edit_hint));
    };
    let parameters = Parameters::from_uri(uri)?;
    let item =
        patch::patch(app, resource, &object_key(namespace, Some(name)), headers, &parameters, body).await?;
    let version = item.version;
    Ok(json_response(
        &Representation::from_headers(headers, &parameters).render_object(resource, &item, version),
        false,
    ))
}

/// Returns the key of an object. A cluster-scoped object has an empty namespace.
fn object_key(namespace: Option<String>, name: Option<String>) -> ObjectKey {
    ObjectKey::new(namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// True if the client is curl, wget or a browser. It receives indented JSON, as from the API server.
fn prefers_pretty_json(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl/", "Wget/", "Mozilla/5.0"].iter().any(|start| agent.starts_with(start))
}

fn json_response(value: &Value, pretty: bool) -> Response {
    let text = if pretty { format!("{value:#}\n") } else { value.to_string() };
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

/// Returns a JSON response whose content type repeats the media type parameters of the request.
fn typed_json_response(value: &Value, parameters: Option<&'static str>) -> Response {
    let kind = match parameters {
        Some(parameters) => format!("application/json;{parameters}"),
        None => "application/json".to_owned(),
    };
    ([(CONTENT_TYPE, kind)], value.to_string()).into_response()
}
