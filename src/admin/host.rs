use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Refusal;
use crate::gateway::Allowed;

/// Answers only requests that name a host which is ours.
///
/// A web page can make a browser ask a loopback address under a name of its own; it cannot make it say
/// one of these.
pub(super) async fn check(State(allowed): State<Arc<Allowed>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if allowed.knows_host(host) { next.run(request).await } else { Refusal::host(host).into_response() }
}
