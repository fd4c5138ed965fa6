use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use super::App;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// Answers at once: 200, or 503 and every reason on a line of its own.
async fn ready(State(app): State<App>) -> (StatusCode, String) {
    let mut reasons = app.store.borrow().unready();
    reasons.extend(app.agents_wait.borrow().clone());
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}
