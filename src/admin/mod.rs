//! Serves what `report/` tells: the Kubernetes read API of our kinds, health and metrics.
//!
//! Promises that an answer is made from one snapshot, in the shapes that Kubernetes clients expect, and
//! that a question never starts, probes or delays a server. Never changes what is declared, which is done where
//! it is written. Host names are checked, so that a web page cannot ask through a browser.

mod answer;
mod api;
mod app;
mod declared;
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

use self::answer::ErrorResponse;
use self::app::App;
use crate::net::Authorization;

pub use app::ApiState;
pub use declared::{DECLARED, DeclaredParts as Declaration, DeclaredState, declared};
pub use local::{LOOK, LocalApi, PRUNE_EMPTY, RELOAD_SKILLS, SkillReload, local_routes};
pub use metrics::register;
pub use serve::{serve, serve_local, serve_secured};
pub use tls::{Certificate, CertificateError};

/// Everything: the status API, health and metrics, for the address of `--admin`. Everyone who is admitted may read; who
/// may ask for work is checked for each request.
pub fn status_api(sources: ApiState, authorization: Authorization) -> Router {
    everything()
        .layer(from_fn_with_state(authorization.clone(), admit))
        .with_state(App::new(sources, authorization))
}

/// The same for the socket in the state directory: whoever can open that is the owner.
pub fn local_api(sources: ApiState) -> Router {
    everything().with_state(App::new(sources, Authorization::unchecked()))
}

fn everything() -> Router<App> {
    api::routes().merge(health::routes()).merge(metrics::routes())
}

/// Health and metrics alone, for the address of `--probes`: no host check, since a kubelet asks by address.
pub fn probes(sources: ApiState) -> Router {
    let app = App::new(sources, Authorization::unchecked());
    health::routes().merge(metrics::routes()).with_state(app)
}

/// Answers only requests that are admitted.
async fn admit(State(authorization): State<Authorization>, request: Request, next: Next) -> Response {
    match authorization.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(denied) => ErrorResponse::from(denied).into_response(),
    }
}
