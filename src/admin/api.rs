use axum::extract::{Path, RawQuery, State};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::App;
use super::answer::Refusal;
use crate::report::{Kind, Snapshot};
use crate::resource::{API_VERSION, ObjectKey};

/// Parameters that choose from a list. Leaving one unheeded would give a wrong answer.
const CHOOSING: [&str; 4] = ["watch", "labelSelector", "fieldSelector", "continue"];

pub(super) fn routes() -> Router<App> {
    let base = format!("/apis/{API_VERSION}");
    Router::new()
        .route(&format!("{base}/{{plural}}"), get(list_all))
        .route(&format!("{base}/{{plural}}/{{name}}"), get(get_unscoped))
        .route(&format!("{base}/namespaces/{{namespace}}/{{plural}}"), get(list_one_namespace))
        .route(&format!("{base}/namespaces/{{namespace}}/{{plural}}/{{name}}"), get(get_namespaced))
        .fallback(unknown)
        .method_not_allowed_fallback(read_only)
}

type Answer = Result<Json<Value>, Refusal>;

async fn list_all(
    State(app): State<App>,
    Path(plural): Path<String>,
    RawQuery(query): RawQuery,
    uri: Uri,
) -> Answer {
    let kind = kind(&plural, &uri)?;
    list(&app, kind, None, query.as_deref())
}

async fn list_one_namespace(
    State(app): State<App>,
    Path((namespace, plural)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    uri: Uri,
) -> Answer {
    let kind = namespaced(&plural, &uri)?;
    list(&app, kind, Some(&namespace), query.as_deref())
}

async fn get_unscoped(
    State(app): State<App>,
    Path((plural, name)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    let kind = kind(&plural, &uri)?;
    if kind.namespaced() {
        return Err(Refusal::no_path(uri.path()));
    }
    object(&app, kind, &ObjectKey::new("", name))
}

async fn get_namespaced(
    State(app): State<App>,
    Path((namespace, plural, name)): Path<(String, String, String)>,
    uri: Uri,
) -> Answer {
    let kind = namespaced(&plural, &uri)?;
    object(&app, kind, &ObjectKey::new(namespace, name))
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal::no_path(uri.path())
}

async fn read_only(State(app): State<App>, method: Method) -> Response {
    let directory = snapshot(&app).source.directory.display().to_string();
    Refusal::read_only(&method, &directory).into_response()
}

fn kind(plural: &str, uri: &Uri) -> Result<Kind, Refusal> {
    Kind::of_plural(plural).ok_or_else(|| Refusal::no_path(uri.path()))
}

fn namespaced(plural: &str, uri: &Uri) -> Result<Kind, Refusal> {
    kind(plural, uri).and_then(
        |kind| {
            if kind.namespaced() { Ok(kind) } else { Err(Refusal::no_path(uri.path())) }
        },
    )
}

fn object(app: &App, kind: Kind, key: &ObjectKey) -> Answer {
    let found = snapshot(app).get(kind, key);
    found.map(Json).ok_or_else(|| Refusal::no_object(kind, &key.name))
}

fn list(app: &App, kind: Kind, namespace: Option<&str>, query: Option<&str>) -> Answer {
    let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    for (name, value) in parameters {
        let off = value.is_empty() || name == "watch" && matches!(&*value, "false" | "0");
        if let Some(name) = CHOOSING.iter().find(|choosing| **choosing == name).filter(|_| !off) {
            return Err(Refusal::parameter(name));
        }
    }
    let snapshot = snapshot(app);
    Ok(Json(json!({
        "apiVersion": API_VERSION,
        "kind": format!("{}List", kind.name()),
        "metadata": { "resourceVersion": snapshot.resource_version.to_string() },
        "items": snapshot.list(kind, namespace),
    })))
}

/// A copy, so that the reporter never waits for an answer to be written.
fn snapshot(app: &App) -> Snapshot {
    app.store.borrow().clone()
}
