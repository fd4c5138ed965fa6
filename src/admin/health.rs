use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::Deserialize;

use super::app::App;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz))
}

/// The query of `/readyz`.
#[derive(Deserialize)]
struct ReadyzQuery {
    /// A check to leave out: [`FIRST_ATTEMPTS_CHECK`].
    exclude: Option<String>,
}

/// The check that each server declared at startup has been attached or has failed once.
const FIRST_ATTEMPTS_CHECK: &str = "first-attempts";

/// Returns 200, or 503 with each reason on its own line. Never waits.
async fn readyz(State(app): State<App>, Query(checks): Query<ReadyzQuery>) -> (StatusCode, String) {
    let mut reasons =
        app.state.store.borrow().unready_reasons(checks.exclude.as_deref() == Some(FIRST_ATTEMPTS_CHECK));
    reasons.extend(app.state.agents_not_ready.borrow().clone());
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}
