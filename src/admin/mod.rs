//! Serves what `report/` tells: the Kubernetes read API of our kinds, health and metrics.
//!
//! Promises that an answer is made from one snapshot, in the shapes that Kubernetes clients expect, and
//! that a question never starts, probes or delays a server. Never changes what is declared, which is done where
//! it is written. Host names are checked, so that a web page cannot ask through a browser.

mod api;
mod app;
mod declared;
mod error_response;
mod health;
mod history;
mod local;
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
pub use metrics::register_status_metrics;
pub use serve::{serve, serve_local, serve_tls_or_plain};
pub use tls::{Certificate, CertificateError};

/// Everything: the status API, health and metrics, for the address of `--admin`. Everyone who is admitted may read; who
/// may ask for work is checked for each request.
pub fn status_api(sources: ApiState, authorization: Authorization) -> Router {
    all_routes()
        .layer(from_fn_with_state(authorization.clone(), authorize))
        .with_state(App::new(sources, authorization))
}

/// The same for the socket in the state directory: whoever can open that is the owner.
pub fn local_api(sources: ApiState) -> Router {
    all_routes().with_state(App::new(sources, Authorization::unchecked()))
}

fn all_routes() -> Router<App> {
    api::routes().merge(health::routes()).merge(metrics::routes())
}

/// Health and metrics alone, for the address of `--probes`: no host check, since a kubelet asks by address.
pub fn probe_api(sources: ApiState) -> Router {
    let app = App::new(sources, Authorization::unchecked());
    health::routes().merge(metrics::routes()).with_state(app)
}

/// Answers only requests that are admitted.
async fn authorize(State(authorization): State<Authorization>, request: Request, next: Next) -> Response {
    match authorization.check_request(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(denied) => ErrorResponse::from(denied).into_response(),
    }
}
