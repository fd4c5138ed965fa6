//! The page to which an authorization server redirects the browser of a person who logs in.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use http::{Response, StatusCode};

/// The path of the page.
pub const CALLBACK_PATH: &str = "/oauth/callback";

/// The outcome that the page tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackOutcome {
    /// The login is complete.
    Complete,
    /// The login failed; the command says why.
    Failed,
    /// There is no such login: it ended, or it never began.
    Unknown,
}

/// Returns the page. It repeats nothing of the request, and no other page may show it.
pub fn callback_page(outcome: CallbackOutcome) -> Response<String> {
    let (status, title, text) = match outcome {
        CallbackOutcome::Complete => {
            (StatusCode::OK, "Logged in", "Evenkeel is logged in. You can close this page.")
        }
        CallbackOutcome::Failed => (
            StatusCode::BAD_REQUEST,
            "Not logged in",
            "The login failed. The command that began it says why. You can close this page.",
        ),
        CallbackOutcome::Unknown => (
            StatusCode::NOT_FOUND,
            "Not logged in",
            "There is no such login, or it has ended. Begin again with evenkeel login.",
        ),
    };
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><p>{text}</p></html>\n"
    );
    let mut response = Response::new(page);
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        // The address of the page holds the code.
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    response
}
