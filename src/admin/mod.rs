//! Serves the status that `report/` maintains: the Kubernetes read API of evenkeel's kinds, health and metrics.
//!
//! Promises that a response is made from one snapshot, in the formats that Kubernetes clients expect, and that a
//! request never starts, probes or delays a server. Never changes declarations. Host names are checked, so that a web
//! page cannot send requests through a browser.

mod api;
mod app;
mod declared;
mod error_response;
mod health;
mod history;
mod local;
mod login;
mod login_callback;
mod metrics;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use self::app::App;
use self::error_response::ErrorResponse;
use crate::net::Authorization;

pub use app::ApiState;
pub use declared::{DECLARED_PATH, DeclaredParts as Declaration, DeclaredState, declared_routes};
pub use local::{LocalApi, PRUNE_EMPTY_PATH, RELOAD_SKILLS_PATH, SCAN_PATH, SkillReload, local_routes};
pub use login::{LOGINS_PATH, LoginAnswer, LoginEvent, login_routes};
pub use metrics::register_status_metrics;
pub use serve::{serve, serve_local, serve_tls_or_plain};
pub use tls::{Certificate, CertificateError};

/// Returns the status API, health and metrics, for the address of `--admin`. Every admitted client may read; a
/// request for work is authorized separately.
pub fn status_api(sources: ApiState, authorization: Authorization) -> Router {
    all_routes()
        .merge(login_callback::routes())
        .layer(from_fn_with_state(authorization.clone(), authorize))
        .with_state(App::new(sources, authorization))
}

/// Returns the same routes for the Unix socket in the state directory. Only its owner can open that, so nothing is
/// checked.
pub fn local_api(sources: ApiState) -> Router {
    all_routes().with_state(App::new(sources, Authorization::unchecked()))
}

fn all_routes() -> Router<App> {
    api::routes().merge(health::routes()).merge(metrics::routes())
}

/// Returns health and metrics only, for the address of `--probes`. Hosts are not checked, since a kubelet uses the
/// address.
pub fn probe_api(sources: ApiState) -> Router {
    let app = App::new(sources, Authorization::unchecked());
    health::routes().merge(metrics::routes()).with_state(app)
}

/// Passes on only requests that are admitted.
async fn authorize(State(authorization): State<Authorization>, request: Request, next: Next) -> Response {
    match authorization.check_request(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(denied) => ErrorResponse::from(denied).into_response(),
    }
}
