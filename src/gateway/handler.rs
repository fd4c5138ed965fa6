//! One HTTP request of an agent: checked, read, and handed to whoever answers it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use rmcp::model::ErrorCode;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Failure};
use super::body::{self, Body};
use super::call::{Caller, call};
use super::era::{era, member, negotiate, supported, text};
use super::notices::{Source, listen_stream, session_stream};
use super::seal::Handshake;
use super::session::{InFlight, Session};
use super::{Gateway, admit};
use crate::catalog::ViewName;
use crate::wire::{Envelope, Era, Id, Malformed, Members, members};

const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
/// The longest request.
const BODY_LIMIT: usize = 4 << 20;
/// A request must be there by then.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Names of clients are kept this long at most: they travel in every session id.
const CLIENT_LENGTH: usize = 64;

/// Answers a request.
pub(super) async fn handle(
    gateway: Arc<Gateway>,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<Body> {
    if let Err(refused) = gateway.allowed.admit(request.headers()) {
        return body::plain(refused.0, refused.1);
    }
    let Some(view) = view(request.uri().path()) else {
        return body::plain(StatusCode::NOT_FOUND, "MCP is served at /mcp and /ns/NAMESPACE/mcp");
    };
    let agent = Agent { gateway, view, stop };
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
struct Agent {
    gateway: Arc<Gateway>,
    view: ViewName,
    stop: CancellationToken,
}

/// A request message, read.
struct Asked<'a> {
    id: Id,
    method: &'a str,
    params: &'a Members<'a>,
    /// True if the agent takes a stream for an answer.
    streams: bool,
}

impl Agent {
    async fn post(self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let headers = head.headers;
        if !admit::is_json(&headers) {
            return body::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json");
        }
        let streams = admit::accepts(&headers, "text", "event-stream");
        if !streams && !admit::accepts(&headers, "application", "json") {
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
        let id = envelope.id.map(Id::of);
        let params = match envelope.params.map(|params| members(params.get())).transpose() {
            Ok(params) => params.unwrap_or_default(),
            Err(error) => return fail(&unreadable(&error.into()), id.as_ref()),
        };
        let method = envelope.method.as_deref();
        let era = match era(&headers, method, envelope.is_request(), &params) {
            Ok(era) => era,
            Err(failure) => return fail(&failure, id.as_ref()),
        };
        match (era, method, id) {
            (Era::Modern, Some(method), Some(id)) => {
                self.modern(Asked { id, method, params: &params, streams }).await
            }
            // A modern agent's notifications ask for nothing, and answers it never owes.
            (Era::Modern, _, _) => body::empty(StatusCode::ACCEPTED),
            (Era::Legacy, Some("initialize"), Some(id)) => self.initialize(&id, &params),
            (Era::Legacy, method, id) => {
                let session = match self.session(&headers) {
                    Ok(session) => session,
                    Err((status, text)) => {
                        let failure = Failure::bad(ErrorCode::INVALID_REQUEST, text).status(status);
                        return fail(&failure, id.as_ref());
                    }
                };
                match (method, id) {
                    (Some(method), Some(id)) => {
                        self.legacy(&session, Asked { id, method, params: &params, streams }).await
                    }
                    (Some("notifications/cancelled"), None) => {
                        if let Some(id) = member(&params, "requestId") {
                            session.cancel(&Id::of(id));
                        }
                        body::empty(StatusCode::ACCEPTED)
                    }
                    _ => body::empty(StatusCode::ACCEPTED),
                }
            }
        }
    }

    /// Opens the notice stream of a session.
    fn get(&self, headers: &HeaderMap) -> Response<Body> {
        if !headers.contains_key(SESSION_HEADER) {
            return not_allowed();
        }
        if !admit::accepts(headers, "text", "event-stream") {
            return body::plain(StatusCode::NOT_ACCEPTABLE, "Accept must name text/event-stream");
        }
        match self.session(headers) {
            Ok(session) => body::events(session_stream(self.source(), session.open_stream())),
            Err((status, text)) => body::plain(status, text),
        }
    }

    /// Ends a session.
    fn delete(&self, headers: &HeaderMap) -> Response<Body> {
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

    async fn modern(&self, asked: Asked<'_>) -> Response<Body> {
        match asked.method {
            "tools/call" => {
                let Asked { id, params, streams, .. } = asked;
                call(&self.gateway, self.caller(id, Era::Modern, None, streams), params).await
            }
            "tools/list" => self.list(&asked, Era::Modern, None),
            "server/discover" => {
                let result = serde_json::json!({
                    "resultType": "complete",
                    "supportedVersions": supported().collect::<Vec<_>>(),
                    "capabilities": capabilities(),
                    "ttlMs": 0,
                    "cacheScope": "private",
                    "_meta": { "io.modelcontextprotocol/serverInfo": server_info() },
                });
                succeed(&asked.id, &result.to_string())
            }
            "subscriptions/listen" => self.listen(asked),
            method => fail(&unknown(method).status(StatusCode::NOT_FOUND), Some(&asked.id)),
        }
    }

    async fn legacy(&self, session: &Arc<Session>, asked: Asked<'_>) -> Response<Body> {
        match asked.method {
            "tools/call" => {
                let Asked { id, params, streams, .. } = asked;
                let Some(in_flight) = session.begin(id.clone()) else {
                    let failure = Failure::in_band(
                        ErrorCode::INVALID_REQUEST,
                        "Invalid request: another request with this id is in flight",
                    );
                    return fail(&failure, Some(&id));
                };
                call(&self.gateway, self.caller(id, Era::Legacy, Some(in_flight), streams), params).await
            }
            "tools/list" => self.list(&asked, Era::Legacy, Some(session)),
            "ping" => succeed(&asked.id, "{}"),
            method => fail(&unknown(method), Some(&asked.id)),
        }
    }

    fn initialize(&self, id: &Id, params: &Members<'_>) -> Response<Body> {
        let Some(asked) = member(params, "protocolVersion").and_then(text) else {
            let failure = Failure::in_band(
                ErrorCode::INVALID_PARAMS,
                "Invalid params: initialize needs a \"protocolVersion\"",
            );
            return fail(&failure, Some(id));
        };
        let client = member(params, "clientInfo").and_then(|client| members(client.get()).ok());
        let told = |key| {
            let text = client.as_ref().and_then(|client| text(member(client, key)?));
            text.unwrap_or_default().chars().take(CLIENT_LENGTH).collect::<String>()
        };
        let handshake = Handshake {
            version: negotiate(&asked).to_owned(),
            client: told("name"),
            client_version: told("version"),
            namespace: match &self.view {
                ViewName::Everything => None,
                ViewName::Namespace(namespace) => Some(namespace.clone()),
            },
            issued_at: Timestamp::now().as_second(),
        };
        let version = self.gateway.catalog.load().view(&self.view).tools_version();
        let opened = self.gateway.sessions.open(&handshake, version);
        let session_id = opened.ok().and_then(|session_id| HeaderValue::from_str(&session_id).ok());
        let Some(session_id) = session_id else {
            return body::plain(StatusCode::INTERNAL_SERVER_ERROR, "the random source of the system failed");
        };
        self.gateway.count_sessions();
        tracing::debug!(client = %handshake.client, version = %handshake.version, view = ?self.view, "session opened");
        let result = serde_json::json!({
            "protocolVersion": handshake.version,
            "capabilities": capabilities(),
            "serverInfo": server_info(),
        });
        let mut response = succeed(id, &result.to_string());
        response.headers_mut().insert(SESSION_HEADER, session_id);
        response
    }

    fn list(&self, asked: &Asked<'_>, era: Era, session: Option<&Session>) -> Response<Body> {
        let cursor = member(asked.params, "cursor").filter(|cursor| cursor.get() != "null");
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let page = match cursor.map(text) {
            None => view.tools(None),
            Some(cursor) => view.tools(Some(cursor.as_deref().unwrap_or("?"))),
        };
        let Ok(page) = page else {
            let failure = Failure::in_band(ErrorCode::INVALID_PARAMS, "Invalid params: unknown cursor");
            return fail(&failure, Some(&asked.id));
        };
        if let Some(session) = session.filter(|_| cursor.is_none()) {
            session.has_listed(view.tools_version());
        }
        let mut result = String::with_capacity(page.tools.len() + 128);
        result.push('{');
        if era == Era::Modern {
            result.push_str(r#""resultType":"complete","ttlMs":0,"cacheScope":"private","#);
        }
        result.push_str("\"tools\":");
        result.push_str(&page.tools);
        if let Some(cursor) = page.cursor {
            // Base64 needs no escapes.
            result.push_str(",\"nextCursor\":\"");
            result.push_str(&cursor);
            result.push('"');
        }
        result.push('}');
        succeed(&asked.id, &result)
    }

    fn listen(&self, asked: Asked<'_>) -> Response<Body> {
        if !asked.streams {
            let failure = Failure::bad(ErrorCode::INVALID_REQUEST, "Accept must name text/event-stream");
            return fail(&failure.status(StatusCode::NOT_ACCEPTABLE), Some(&asked.id));
        }
        let filter = member(asked.params, "notifications").and_then(|filter| members(filter.get()).ok());
        let Some(filter) = filter else {
            let text = "Invalid params: subscriptions/listen needs a \"notifications\" filter";
            return fail(&Failure::in_band(ErrorCode::INVALID_PARAMS, text), Some(&asked.id));
        };
        let tools = member(&filter, "toolsListChanged").is_some_and(|wanted| wanted.get() == "true");
        body::events(listen_stream(self.source(), asked.id, tools))
    }

    /// The session that a request names: 400 without one, 404 if there is none such here.
    fn session(&self, headers: &HeaderMap) -> Result<Arc<Session>, (StatusCode, &'static str)> {
        let id = headers
            .get(SESSION_HEADER)
            .ok_or((StatusCode::BAD_REQUEST, "Bad request: the Mcp-Session-Id header is missing"))?;
        let session = id.to_str().ok().and_then(|id| self.gateway.sessions.get(id, &self.view));
        session.ok_or((StatusCode::NOT_FOUND, "Session not found: initialize again"))
    }

    fn caller(&self, id: Id, era: Era, in_flight: Option<InFlight>, streams: bool) -> Caller<'_> {
        Caller { id, era, view: &self.view, in_flight, streams, stop: self.stop.clone() }
    }

    fn source(&self) -> Source {
        Source {
            catalog: self.gateway.catalog.clone(),
            view: self.view.clone(),
            stop: self.stop.clone(),
            open: self.gateway.metrics.streams.clone(),
        }
    }
}

/// Only what works from end to end is offered.
fn capabilities() -> serde_json::Value {
    serde_json::json!({ "tools": { "listChanged": true } })
}

fn server_info() -> serde_json::Value {
    serde_json::json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

async fn read(body: Incoming) -> Result<Bytes, Response<Body>> {
    match tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(body::plain(StatusCode::PAYLOAD_TOO_LARGE, "the request is longer than 4 MiB"))
        }
        Ok(Err(_)) => Err(body::plain(StatusCode::BAD_REQUEST, "the request could not be read")),
        Err(_) => Err(body::plain(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    }
}

fn unreadable(malformed: &Malformed) -> Failure {
    let code = match malformed {
        Malformed::Json(error) if error.is_syntax() || error.is_eof() => ErrorCode::PARSE_ERROR,
        _ => ErrorCode::INVALID_REQUEST,
    };
    Failure::bad(code, malformed.to_string())
}

fn unknown(method: &str) -> Failure {
    Failure::in_band(ErrorCode::METHOD_NOT_FOUND, format!("Method not found: {method}"))
}

fn succeed(id: &Id, result: &str) -> Response<Body> {
    body::json(StatusCode::OK, answer::result(id, result))
}

fn fail(failure: &Failure, id: Option<&Id>) -> Response<Body> {
    body::json(failure.status, failure.message(id))
}

fn not_allowed() -> Response<Body> {
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
