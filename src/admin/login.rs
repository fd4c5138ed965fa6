//! Logins to servers with OAuth, for the commands `login` and `logout`.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::local::LocalApi;
use crate::oauth::{BegunLogin, OAuthError};
use crate::resource::{API_VERSION, ObjectKey};

/// The path of the logins that wait for a person. A POST of a [`LoginAnswer`] below it ends one.
pub const LOGINS_PATH: &str = "/logins";

/// A line of the response to the POST that begins a login. The login is given up when the response is not read any more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoginEvent {
    /// The login has begun.
    Begun {
        /// The id of the login.
        id: String,
        /// The URL that the person opens.
        url: String,
        /// The issuer of the authorization server.
        issuer: String,
    },
    /// The server has a token.
    Complete {
        /// The issuer of the token.
        issuer: String,
        /// The scopes of the token.
        scopes: Vec<String>,
    },
    /// The login failed, for this reason.
    Failed(String),
}

/// The answer of the authorization server, which the person copied from the browser.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// The address to which the browser was redirected, or the code in it.
    pub answer: String,
}

/// Returns `login` below a server: POST begins a login, DELETE forgets the token.
pub fn login_routes(local: LocalApi) -> Router {
    let login = format!("/apis/{API_VERSION}/namespaces/{{namespace}}/mcpservers/{{name}}/login");
    Router::new()
        .route(&login, post(begin).delete(forget))
        .route(&format!("{LOGINS_PATH}/{{id}}"), post(answer))
        .with_state(local)
}

async fn begin(State(local): State<LocalApi>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let begun = match local.authorizer.begin_login(&ObjectKey::new(namespace, name)).await {
        Ok(begun) => begun,
        Err(error) => return refusal(&error),
    };
    let BegunLogin { id, authorization_url: url, issuer, outcome } = begun;
    let first = LoginEvent::Begun { id, url, issuer };
    let lines = unfold((Some(first), Some(outcome)), move |(first, outcome)| {
        let local = local.clone();
        async move {
            if let Some(first) = first {
                return Some((Ok::<_, Infallible>(line(&first)), (None, outcome)));
            }
            let outcome = outcome?;
            let grant = tokio::select! {
                grant = outcome => grant.unwrap_or_else(|_| Err(OAuthError::Failed("the login was given up".into()))),
                () = local.stop.cancelled() => Err(OAuthError::Failed("evenkeel is shutting down".into())),
            };
            let event = match grant {
                Ok(grant) => {
                    let (issuer, scopes) = (grant.issuer().to_owned(), grant.scopes().to_vec());
                    match local.authorizer.keep(grant).await {
                        Ok(()) => LoginEvent::Complete { issuer, scopes },
                        Err(error) => LoginEvent::Failed(format!("the token cannot be stored: {error}")),
                    }
                }
                Err(error) => LoginEvent::Failed(error.to_string()),
            };
            Some((Ok(line(&event)), (None, None)))
        }
    });
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

fn line(event: &LoginEvent) -> Bytes {
    format!("{}\n", serde_json::to_string(event).unwrap_or_default()).into()
}

async fn answer(
    State(local): State<LocalApi>,
    Path(id): Path<String>,
    Json(LoginAnswer { answer }): Json<LoginAnswer>,
) -> StatusCode {
    // The response that began the login tells the outcome.
    local.authorizer.logins().finish(&id, &answer).await;
    StatusCode::NO_CONTENT
}

async fn forget(State(local): State<LocalApi>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let key = ObjectKey::new(namespace, name);
    if local.authorizer.logout(&key).await {
        return StatusCode::NO_CONTENT.into_response();
    }
    let message = format!("{key} has no token");
    (StatusCode::NOT_FOUND, Json(json!({ "message": message }))).into_response()
}

fn refusal(error: &OAuthError) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "message": error.to_string() }))).into_response()
}
