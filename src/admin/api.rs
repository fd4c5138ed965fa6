use std::convert::Infallible;

use axum::Router;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
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

/// A question, and how its answer is to be written.
struct Question {
    app: App,
    uri: Uri,
    /// For people: over several lines, as the API server does it for browsers and curl.
    pretty: bool,
}

impl FromRequestParts<App> for Question {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let person = ["curl/", "Wget/", "Mozilla/5.0"].iter().any(|start| agent.starts_with(start));
        let asked = parameters(&parts.uri).find(|(name, _)| name == "pretty").map(|(_, value)| is_on(&value));
        Ok(Self { app: app.clone(), uri: parts.uri.clone(), pretty: asked.unwrap_or(person) })
    }
}

/// A JSON document.
struct Document {
    value: Value,
    pretty: bool,
}

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        let text = if self.pretty { format!("{:#}\n", self.value) } else { self.value.to_string() };
        ([(CONTENT_TYPE, "application/json")], text).into_response()
    }
}

type Answer = Result<Document, Refusal>;

async fn list_all(question: Question, Path(plural): Path<String>) -> Answer {
    question.list(question.kind(&plural)?, None)
}

async fn list_one_namespace(question: Question, Path((namespace, plural)): Path<(String, String)>) -> Answer {
    question.list(question.namespaced(&plural)?, Some(&namespace))
}

async fn get_unscoped(question: Question, Path((plural, name)): Path<(String, String)>) -> Answer {
    let kind = question.kind(&plural)?;
    if kind.namespaced() {
        return Err(question.no_path());
    }
    question.object(kind, &ObjectKey::new("", name))
}

async fn get_namespaced(
    question: Question,
    Path((namespace, plural, name)): Path<(String, String, String)>,
) -> Answer {
    question.object(question.namespaced(&plural)?, &ObjectKey::new(namespace, name))
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal::no_path(uri.path())
}

async fn read_only(State(app): State<App>, method: Method) -> Refusal {
    let directory = app.store.borrow().source.directory.display().to_string();
    Refusal::read_only(&method, &directory)
}

impl Question {
    fn kind(&self, plural: &str) -> Result<Kind, Refusal> {
        Kind::of_plural(plural).ok_or_else(|| self.no_path())
    }

    fn namespaced(&self, plural: &str) -> Result<Kind, Refusal> {
        let kind = self.kind(plural)?;
        if kind.namespaced() { Ok(kind) } else { Err(self.no_path()) }
    }

    fn no_path(&self) -> Refusal {
        Refusal::no_path(self.uri.path())
    }

    fn object(&self, kind: Kind, key: &ObjectKey) -> Answer {
        let found = self.snapshot().get(kind, key);
        let value = found.ok_or_else(|| Refusal::no_object(kind, &key.name))?;
        Ok(Document { value, pretty: self.pretty })
    }

    fn list(&self, kind: Kind, namespace: Option<&str>) -> Answer {
        for (name, value) in parameters(&self.uri) {
            let chooses = CHOOSING.iter().find(|chooses| **chooses == name);
            if let Some(name) = chooses.filter(|_| is_on(&value)) {
                return Err(Refusal::parameter(name));
            }
        }
        let snapshot = self.snapshot();
        let value = json!({
            "apiVersion": API_VERSION,
            "kind": format!("{}List", kind.name()),
            "metadata": { "resourceVersion": snapshot.resource_version.to_string() },
            "items": snapshot.list(kind, namespace),
        });
        Ok(Document { value, pretty: self.pretty })
    }

    /// A copy, so that the reporter never waits for an answer to be written.
    fn snapshot(&self) -> Snapshot {
        self.app.store.borrow().clone()
    }
}

fn parameters(uri: &Uri) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
}

fn is_on(value: &str) -> bool {
    !matches!(value, "" | "false" | "0")
}
