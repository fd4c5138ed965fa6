//! Checks and reads one HTTP request of an agent, and dispatches it by HTTP method, era and session.

use std::sync::Arc;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use rmcp::model::ErrorCode;

use super::Gateway;
use super::body::{self, ResponseBody};
use super::caller::Caller;
use super::cors::CorsHeaders;
use super::endpoint_path::{EndpointPath, window_id};
use super::era::request_era;
use super::input::ProcessRef;
use super::notification_stream::{StreamContext, session_stream};
use super::replica::AgentHttpRequest;
use super::request_body::{self, RefusedRequest};
use super::response::{self, ResponseError};
use super::session::Session;
use crate::net::{accepts, is_json};
use crate::upstream::ViewName;
use crate::wire::{Envelope, Era, JsonRpcId, MalformedMessage, RequestParams, RpcResponse};

/// The params of a request without params.
const NO_PARAMS: Bytes = Bytes::from_static(b"{}");
pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");

/// Handles one HTTP request.
pub(super) async fn handle(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<ResponseBody> {
    let cors = CorsHeaders::for_request(&gateway.authorization, request.headers());
    let mut response = match gateway.authorization.check_request(request.headers()) {
        Err(error) => body::plain_text(error.status(), error.to_string()),
        Ok(()) => match cors.preflight_response(request.method(), request.headers()) {
            Some(response) => response,
            None => handle_checked(gateway, request).await,
        },
    };
    cors.add_to(response.headers_mut());
    response
}

/// Handles one HTTP request with an allowed host and origin.
async fn handle_checked(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<ResponseBody> {
    let Some(EndpointPath { view, path_id }) = EndpointPath::parse(request.uri().path()) else {
        return body::plain_text(StatusCode::NOT_FOUND, "MCP is served at /mcp and /ns/NAMESPACE/mcp");
    };
    let handler = ViewHandler { gateway, view, path_id };
    match *request.method() {
        Method::POST => handler.post(request).await,
        Method::GET => handler.get(request.headers()),
        Method::DELETE => handler.delete(request.headers()),
        _ => handler.method_not_allowed(),
    }
}

/// Handles the requests to one endpoint path.
pub(super) struct ViewHandler {
    pub(super) gateway: Arc<Gateway>,
    pub(super) view: ViewName,
    /// The id in the path, which tells one agent from others.
    pub(super) path_id: Option<Arc<str>>,
}

/// A parsed JSON-RPC request.
pub(super) struct AgentRequest<'a> {
    pub(super) id: JsonRpcId,
    pub(super) method: &'a str,
    pub(super) params: &'a RequestParams<'a>,
    /// The JSON of the params.
    pub(super) params_json: &'a Bytes,
    pub(super) headers: &'a HeaderMap,
    /// True if the agent accepts an event stream as the response.
    pub(super) accepts_stream: bool,
}

impl ViewHandler {
    async fn post(self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        let bytes = match request_body::read(body, &self.gateway.limits).await {
            Ok(bytes) => bytes,
            Err(RefusedRequest { error, id, limit }) => {
                if let Some(limit) = limit {
                    self.gateway.metrics.count_refusal(limit);
                }
                return error_response(&error, id.as_ref());
            }
        };
        let accepts_stream = accepts(&headers, "text", "event-stream");
        let refusal = if !is_json(&headers) {
            Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"))
        } else if !accepts_stream && !accepts(&headers, "application", "json") {
            let message = "Accept must include application/json and text/event-stream";
            Some((StatusCode::NOT_ACCEPTABLE, message))
        } else {
            None
        };
        if let Some((status, message)) = refusal {
            let RefusedRequest { error, id, .. } = RefusedRequest::new(status, message, &bytes);
            return error_response(&error, id.as_ref());
        }
        if request_body::is_batch(&bytes) {
            let batch = self.post_batch(parts.uri.path(), headers, &bytes, accepts_stream);
            // Boxed, as are other rare steps: the future of every request would hold their memory.
            return Box::pin(batch).await;
        }
        let request = AgentHttpRequest { path: parts.uri.path(), headers: &headers, body: &bytes };
        self.handle_message(&request, accepts_stream).await
    }

    /// Handles one JSON-RPC message.
    pub(super) async fn handle_message(
        &self,
        http_request: &AgentHttpRequest<'_>,
        accepts_stream: bool,
    ) -> Response<ResponseBody> {
        let AgentHttpRequest { headers, body: message, .. } = *http_request;
        let envelope = match Envelope::parse(message) {
            Ok(envelope) => envelope,
            Err(error) => return error_response(&malformed_error(&error), None),
        };
        let id = envelope.id.map(JsonRpcId::from_raw);
        let params = match envelope.params.map(|params| RequestParams::parse(params.get())).transpose() {
            Ok(params) => params.unwrap_or_default(),
            Err(error) => return error_response(&malformed_error(&error.into()), id.as_ref()),
        };
        let params_json =
            envelope.params.map_or(NO_PARAMS, |params| message.slice_ref(params.get().as_bytes()));
        let method = envelope.method.as_deref();
        let era = match request_era(headers, method, envelope.is_request(), &params) {
            Ok(era) => era,
            Err(error) => return error_response(&error, id.as_ref()),
        };
        let needs_no_session = era == Era::Modern || method == Some("initialize");
        let unknown_namespace = (needs_no_session || !headers.contains_key(SESSION_HEADER))
            .then(|| self.unknown_namespace_error())
            .flatten();
        let loop_error = || method.and_then(|method| self.loop_error(method, &params));
        if let Some(error) = unknown_namespace.or_else(loop_error) {
            return error_response(&error, id.as_ref());
        }
        let agent_request = |id, method| AgentRequest {
            id,
            method,
            params: &params,
            params_json: &params_json,
            headers,
            accepts_stream,
        };
        match (era, method, id) {
            (Era::Modern, Some(method), Some(id)) => {
                if let Some(response) = self.forward_to_replica(http_request, &params).await {
                    return response;
                }
                match window_id(self.path_id.as_ref(), headers) {
                    Ok(caller_id) => {
                        self.respond(Caller::Sessionless(caller_id), agent_request(id, method)).await
                    }
                    Err(error) => error_response(&error, Some(&id)),
                }
            }
            // Notifications of modern agents need no action.
            (Era::Modern, Some(_), None) => body::empty(StatusCode::ACCEPTED),
            (Era::Modern, None, id) => self.unexpected_response(id.as_ref()),
            (Era::Legacy, Some("initialize"), Some(id)) => self.initialize(&id, &params),
            (Era::Legacy, method, id) => {
                let session = match self.find_session(headers) {
                    Ok(session) => session,
                    Err((status, text)) => {
                        let error =
                            ResponseError::bad_request(ErrorCode::INVALID_REQUEST, text).with_status(status);
                        return error_response(&error, id.as_ref());
                    }
                };
                match (method, id) {
                    (Some(method), Some(id)) => {
                        self.respond(Caller::Session(session), agent_request(id, method)).await
                    }
                    (Some("notifications/cancelled"), None) => {
                        if let Some(id) = params.members.get("requestId") {
                            session.cancel_request(&JsonRpcId::from_raw(id));
                        }
                        body::empty(StatusCode::ACCEPTED)
                    }
                    (Some("notifications/roots/list_changed"), None) => {
                        self.gateway.pass_roots_changed(&session.caller_id()).await;
                        body::empty(StatusCode::ACCEPTED)
                    }
                    (Some(_), None) => body::empty(StatusCode::ACCEPTED),
                    (None, id) => {
                        Box::pin(self.receive_response(&session, id.as_ref(), &envelope, http_request)).await
                    }
                }
            }
        }
    }

    /// Passes a request on to the replica that holds the call whose state the request repeats; `None` if it is this
    /// process, or if the replica cannot be reached.
    async fn forward_to_replica(
        &self,
        request: &AgentHttpRequest<'_>,
        params: &RequestParams<'_>,
    ) -> Option<Response<ResponseBody>> {
        let state = params.members.get_string("requestState")?;
        let holder = self.gateway.request_states.process(&state)?;
        self.forward_to_holder(request, &holder).await
    }

    async fn forward_to_holder(
        &self,
        request: &AgentHttpRequest<'_>,
        holder: &ProcessRef,
    ) -> Option<Response<ResponseBody>> {
        let address = holder.address.as_deref()?;
        if self.gateway.process.holds(holder) || request.is_forwarded() {
            return None;
        }
        Box::pin(request.forward(&self.gateway, address)).await
    }

    /// Gives the response of a legacy agent to the request that it belongs to.
    async fn receive_response(
        &self,
        session: &Session,
        id: Option<&JsonRpcId>,
        envelope: &Envelope<'_>,
        http_request: &AgentHttpRequest<'_>,
    ) -> Response<ResponseBody> {
        let response = match (envelope.result, envelope.error) {
            (Some(result), _) => RpcResponse::Result(Bytes::copy_from_slice(result.get().as_bytes())),
            (_, error) => {
                let error = error.map_or("null", |error| error.get());
                RpcResponse::Error(Bytes::copy_from_slice(error.as_bytes()))
            }
        };
        let Some(request) = id.and_then(|id| self.gateway.process.open_request_id(id)) else {
            return self.unexpected_response(id);
        };
        if self.gateway.process.holds(&request) && session.sent_requests().respond(request.number, response) {
            return body::empty(StatusCode::ACCEPTED);
        }
        match self.forward_to_holder(http_request, &request).await {
            Some(response) => response,
            None => self.unexpected_response(id),
        }
    }

    /// Refuses a response that belongs to no open request.
    fn unexpected_response(&self, id: Option<&JsonRpcId>) -> Response<ResponseBody> {
        self.gateway.metrics.unexpected_responses.inc();
        let message = "no request with this id is open: it was cancelled, has expired or was never sent";
        error_response(&ResponseError::bad_request(ErrorCode::INVALID_REQUEST, message), id)
    }

    /// Opens the notification stream of a session.
    fn get(&self, headers: &HeaderMap) -> Response<ResponseBody> {
        if !headers.contains_key(SESSION_HEADER) {
            return self.method_not_allowed();
        }
        if !accepts(headers, "text", "event-stream") {
            return body::plain_text(StatusCode::NOT_ACCEPTABLE, "Accept must include text/event-stream");
        }
        match self.find_session(headers) {
            Ok(session) => body::event_stream(session_stream(self.stream_context(), session.open_stream())),
            Err((status, text)) => body::plain_text(status, text),
        }
    }

    /// Ends a session.
    fn delete(&self, headers: &HeaderMap) -> Response<ResponseBody> {
        let Some(id) = headers.get(SESSION_HEADER).and_then(|id| id.to_str().ok()) else {
            return self.method_not_allowed();
        };
        match self.find_session(headers) {
            Ok(_) => {
                self.gateway.sessions.end(id);
                self.gateway.update_session_gauge();
                body::empty(StatusCode::NO_CONTENT)
            }
            Err((status, text)) => body::plain_text(status, text),
        }
    }

    /// Returns the session in the `Mcp-Session-Id` header. The error is 400 if the header is missing, and 404 if the
    /// session does not exist or belongs to another path.
    pub(super) fn find_session(
        &self,
        headers: &HeaderMap,
    ) -> Result<Arc<Session>, (StatusCode, &'static str)> {
        let id = headers
            .get(SESSION_HEADER)
            .ok_or((StatusCode::BAD_REQUEST, "Bad request: the Mcp-Session-Id header is missing"))?;
        let session = id
            .to_str()
            .ok()
            .and_then(|id| self.gateway.sessions.get(id, &self.view, self.path_id.as_deref()));
        session.ok_or((StatusCode::NOT_FOUND, "Session not found: initialize again"))
    }

    /// Returns the error for a namespace that does not exist. A session that was opened before its namespace became empty
    /// continues.
    fn unknown_namespace_error(&self) -> Option<ResponseError> {
        let error = ResponseError::bad_request(ErrorCode::INVALID_REQUEST, self.unknown_namespace_text()?);
        Some(error.with_status(StatusCode::NOT_FOUND))
    }

    fn unknown_namespace_text(&self) -> Option<String> {
        self.view.namespace()?;
        self.gateway.namespaces.unknown_text(&self.gateway.catalog.load(), &self.view)
    }

    fn method_not_allowed(&self) -> Response<ResponseBody> {
        if let Some(text) = self.unknown_namespace_text() {
            return body::plain_text(StatusCode::NOT_FOUND, text);
        }
        let mut response = body::plain_text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
        response
    }

    pub(super) fn stream_context(&self) -> StreamContext {
        StreamContext { gateway: self.gateway.clone(), view: self.view.clone() }
    }
}

fn malformed_error(malformed: &MalformedMessage) -> ResponseError {
    let code = match malformed {
        MalformedMessage::Json(error) if error.is_syntax() || error.is_eof() => ErrorCode::PARSE_ERROR,
        _ => ErrorCode::INVALID_REQUEST,
    };
    ResponseError::bad_request(code, malformed.to_string())
}

pub(super) fn result_response(id: &JsonRpcId, result: &str) -> Response<ResponseBody> {
    body::json(StatusCode::OK, response::result_message(id, &[result.as_bytes()]))
}

pub(super) fn error_response(error: &ResponseError, id: Option<&JsonRpcId>) -> Response<ResponseBody> {
    body::json(error.status, error.to_message(id))
}
