use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::app::App;
use crate::oauth::{CALLBACK_PATH, CallbackOutcome, callback_page};

/// Returns the page to which authorization servers redirect browsers. It needs no token: whoever knows the state of a login
/// may end it, once.
pub(super) fn routes() -> Router<App> {
    Router::new().route(CALLBACK_PATH, get(end_login))
}

async fn end_login(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let query = format!("?{}", query.unwrap_or_default());
    let parameters = url::form_urlencoded::parse(query.trim_start_matches('?').as_bytes());
    let state = parameters.into_iter().find(|(name, _)| name == "state").map(|(_, value)| value.into_owned());
    let outcome = match state {
        Some(state) => app.state.logins.finish(&state, &query).await,
        None => CallbackOutcome::Unknown,
    };
    callback_page(outcome).into_response()
}
