//! One HTTP request of an agent: checked, read, and handed to whoever answers it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use rmcp::model::ErrorCode;

use super::Gateway;
use super::answer::{self, ResponseError};
use super::body::{self, ResponseBody};
use super::caller::Caller;
use super::era::era;
use super::notification_stream::{StreamContext, session_stream};
use super::session::Session;
use crate::net::{accepts, is_json};
use crate::upstream::ViewName;
use crate::wire::{Envelope, Era, JsonRpcId, MalformedMessage, RequestParams};

pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
/// The longest request.
const BODY_LIMIT: usize = 4 << 20;
/// A request must be there by then.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Answers a request.
pub(super) async fn handle(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<ResponseBody> {
    if let Err(denied) = gateway.authorization.admit(request.headers()) {
        return body::plain(denied.status(), denied.to_string());
    }
    let Some(view) = view(request.uri().path()) else {
        return body::plain(StatusCode::NOT_FOUND, "MCP is served at /mcp and /ns/NAMESPACE/mcp");
    };
    let agent = AgentPath { gateway, view };
    match *request.method() {
        Method::POST => agent.post(request).await,
        Method::GET => agent.get(request.headers()),
        Method::DELETE => agent.delete(request.headers()),
        _ => not_allowed(),
    }
}

/// The view at a path.
fn view(path: &str) -> Option<ViewName> {
    if path == "/mcp" {
        return Some(ViewName::Everything);
    }
    let namespace = path.strip_prefix("/ns/")?.strip_suffix("/mcp")?;
    (!namespace.is_empty() && !namespace.contains('/')).then(|| ViewName::Namespace(namespace.into()))
}

/// Who asks, as far as the path tells.
pub(super) struct AgentPath {
    pub(super) gateway: Arc<Gateway>,
    pub(super) view: ViewName,
}

/// A request message, read.
pub(super) struct AgentRequest<'a> {
    pub(super) id: JsonRpcId,
    pub(super) method: &'a str,
    pub(super) params: &'a RequestParams<'a>,
    /// True if the agent takes a stream for an answer.
    pub(super) streams: bool,
}

impl AgentPath {
    async fn post(self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        let headers = head.headers;
        if !is_json(&headers) {
            return body::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json");
        }
        let streams = accepts(&headers, "text", "event-stream");
        if !streams && !accepts(&headers, "application", "json") {
            let text = "Accept must name application/json and text/event-stream";
            return body::plain(StatusCode::NOT_ACCEPTABLE, text);
        }
        let bytes = match read(body).await {
            Ok(bytes) => bytes,
            Err(response) => return response,
        };
        let envelope = match Envelope::parse(&bytes) {
            Ok(envelope) => envelope,
            Err(malformed) => return fail(&unreadable(&malformed), None),
        };
        let id = envelope.id.map(JsonRpcId::of);
        let params = match envelope.params.map(|params| RequestParams::parse(params.get())).transpose() {
            Ok(params) => params.unwrap_or_default(),
            Err(error) => return fail(&unreadable(&error.into()), id.as_ref()),
        };
        let method = envelope.method.as_deref();
        let era = match era(&headers, method, envelope.is_request(), &params) {
            Ok(era) => era,
            Err(failure) => return fail(&failure, id.as_ref()),
        };
        if let Some(failure) = method.and_then(|method| self.refuses(method, &params)) {
            return fail(&failure, id.as_ref());
        }
        match (era, method, id) {
            (Era::Modern, Some(method), Some(id)) => {
                self.answer(Caller::Nobody, AgentRequest { id, method, params: &params, streams }).await
            }
            // A modern agent's notifications ask for nothing, and answers it never owes.
            (Era::Modern, _, _) => body::empty(StatusCode::ACCEPTED),
            (Era::Legacy, Some("initialize"), Some(id)) => self.initialize(&id, &params),
            (Era::Legacy, method, id) => {
                let session = match self.session(&headers) {
                    Ok(session) => session,
                    Err((status, text)) => {
                        let failure = ResponseError::bad(ErrorCode::INVALID_REQUEST, text).status(status);
                        return fail(&failure, id.as_ref());
                    }
                };
                match (method, id) {
                    (Some(method), Some(id)) => {
                        self.answer(
                            Caller::Session(session),
                            AgentRequest { id, method, params: &params, streams },
                        )
                        .await
                    }
                    (Some("notifications/cancelled"), None) => {
                        if let Some(id) = params.members.get("requestId") {
                            session.cancel(&JsonRpcId::of(id));
                        }
                        body::empty(StatusCode::ACCEPTED)
                    }
                    _ => body::empty(StatusCode::ACCEPTED),
                }
            }
        }
    }

    /// Opens the notice stream of a session.
    fn get(&self, headers: &HeaderMap) -> Response<ResponseBody> {
        if !headers.contains_key(SESSION_HEADER) {
            return not_allowed();
        }
        if !accepts(headers, "text", "event-stream") {
            return body::plain(StatusCode::NOT_ACCEPTABLE, "Accept must name text/event-stream");
        }
        match self.session(headers) {
            Ok(session) => body::events(session_stream(self.source(), session.open_stream())),
            Err((status, text)) => body::plain(status, text),
        }
    }

    /// Ends a session.
    fn delete(&self, headers: &HeaderMap) -> Response<ResponseBody> {
        let Some(id) = headers.get(SESSION_HEADER).and_then(|id| id.to_str().ok()) else {
            return not_allowed();
        };
        match self.session(headers) {
            Ok(_) => {
                self.gateway.sessions.end(id);
                self.gateway.count_sessions();
                body::empty(StatusCode::NO_CONTENT)
            }
            Err((status, text)) => body::plain(status, text),
        }
    }

    /// The session that a request names: 400 without one, 404 if there is none such here.
    fn session(&self, headers: &HeaderMap) -> Result<Arc<Session>, (StatusCode, &'static str)> {
        let id = headers
            .get(SESSION_HEADER)
            .ok_or((StatusCode::BAD_REQUEST, "Bad request: the Mcp-Session-Id header is missing"))?;
        let session = id.to_str().ok().and_then(|id| self.gateway.sessions.get(id, &self.view));
        session.ok_or((StatusCode::NOT_FOUND, "Session not found: initialize again"))
    }

    pub(super) fn source(&self) -> StreamContext {
        StreamContext { gateway: self.gateway.clone(), view: self.view.clone() }
    }
}

async fn read(body: Incoming) -> Result<Bytes, Response<ResponseBody>> {
    match tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(body::plain(StatusCode::PAYLOAD_TOO_LARGE, "the request is longer than 4 MiB"))
        }
        Ok(Err(_)) => Err(body::plain(StatusCode::BAD_REQUEST, "the request could not be read")),
        Err(_) => Err(body::plain(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    }
}

fn unreadable(malformed: &MalformedMessage) -> ResponseError {
    let code = match malformed {
        MalformedMessage::Json(error) if error.is_syntax() || error.is_eof() => ErrorCode::PARSE_ERROR,
        _ => ErrorCode::INVALID_REQUEST,
    };
    ResponseError::bad(code, malformed.to_string())
}

pub(super) fn succeed(id: &JsonRpcId, result: &str) -> Response<ResponseBody> {
    body::json(StatusCode::OK, answer::result(id, &[result.as_bytes()]))
}

pub(super) fn fail(failure: &ResponseError, id: Option<&JsonRpcId>) -> Response<ResponseBody> {
    body::json(failure.status, failure.message(id))
}

fn not_allowed() -> Response<ResponseBody> {
    let mut response = body::plain(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_views() {
        assert_eq!(view("/mcp"), Some(ViewName::Everything));
        assert_eq!(view("/ns/team-a/mcp"), Some(ViewName::Namespace("team-a".into())));
        for path in ["/", "/mcp/", "/ns//mcp", "/ns/a/b/mcp", "/ns/mcp", "/sse"] {
            assert_eq!(view(path), None, "{path}");
        }
    }
}
