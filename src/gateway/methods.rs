//! The JSON-RPC methods of the endpoint.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use jiff::Timestamp;
use rmcp::model::{ErrorCode, SKILLS_EXTENSION_ID};

use super::agent_subscriptions::{AgentSubscriptions, MAX_RESOURCE_SUBSCRIPTIONS};
use super::body::{self, ResponseBody};
use super::call::{CallAgent, CallRequest, call};
use super::caller::Caller;
use super::era::{negotiate_version, supported_versions};
use super::handler::{AgentRequest, SESSION_HEADER, ViewHandler, error_response, result_response};
use super::in_flight::UnacceptedRequest;
use super::instructions::instructions;
use super::limits::ExceededLimit;
use super::notification_stream::listen_stream;
use super::response::{self, ResponseError, RouteError, cache_members, invalid_params};
use super::route_target;
use super::routed_method::RoutedMethod;
use super::session::{NOTIFIED_LISTS, Session};
use super::session_id::{SealedSession, bounded_client_name};
use super::skill_methods::skills_capability;
use crate::catalog::{ResourceRoute, View};
use crate::upstream::{ResourceSubscription, Responder};
use crate::wire::{
    ClientCapabilities, Era, JsonRpcId, LOOP_KEY, ListKind, LogLevel, RequestParams, VIA_KEY,
    decode_json_string, parse_members,
};

impl ViewHandler {
    /// Responds to a request.
    pub(super) async fn respond(&self, caller: Caller, request: AgentRequest<'_>) -> Response<ResponseBody> {
        if let Some(method) = RoutedMethod::from_method(request.method) {
            return self.forward_call(&caller, method, request).await;
        }
        if let Some(list) = list_kind_for_method(request.method) {
            return self.list_page(&caller, &request, list);
        }
        match (request.method, &caller) {
            ("skills/list" | "skills/get" | "resources/directory/read", _) => {
                self.handle_skills(&caller, &request)
            }
            ("ping", Caller::Session(_)) => result_response(&request.id, "{}"),
            ("logging/setLevel", Caller::Session(session)) => self.set_level(session, &request),
            ("resources/subscribe", Caller::Session(session)) => self.subscribe(session, &request),
            ("resources/unsubscribe", Caller::Session(session)) => {
                match request.params.members.get_string("uri") {
                    Some(uri) => {
                        session
                            .update_subscriptions(|subscriptions| subscriptions.unsubscribe_resource(&uri));
                        result_response(&request.id, "{}")
                    }
                    None => error_response(
                        &invalid_params("resources/unsubscribe needs the \"uri\" of a resource"),
                        Some(&request.id),
                    ),
                }
            }
            (method, Caller::Session(_)) => error_response(&method_not_found(method), Some(&request.id)),
            ("server/discover", Caller::Sessionless(_)) => self.discover(&request.id),
            ("subscriptions/listen", Caller::Sessionless(_)) => self.listen(request),
            (method, Caller::Sessionless(_)) => error_response(
                &method_not_found(method).with_status(StatusCode::NOT_FOUND),
                Some(&request.id),
            ),
        }
    }

    async fn forward_call(
        &self,
        caller: &Caller,
        method: RoutedMethod,
        request: AgentRequest<'_>,
    ) -> Response<ResponseBody> {
        let AgentRequest { id, params, params_json, headers, accepts_stream, .. } = request;
        let era = caller.era();
        let max = self.gateway.limits.max_session_calls;
        let in_flight = match caller.begin_request(&id, max) {
            Ok(in_flight) => in_flight,
            Err(UnacceptedRequest::DuplicateId) => {
                let error = ResponseError::in_band(
                    ErrorCode::INVALID_REQUEST,
                    "Invalid request: another request with this id is in flight",
                );
                return error_response(&error, Some(&id));
            }
            Err(UnacceptedRequest::TooMany) => {
                self.gateway.metrics.count_refusal(ExceededLimit::SessionCalls);
                let text = response::busy_session_text(max);
                return body::json(StatusCode::OK, response::failure_message(&id, &text, method, era));
            }
        };
        let declared_capabilities = caller.input_capabilities(params);
        // A legacy agent is asked on the stream of its call.
        let capabilities = match era {
            Era::Legacy if !accepts_stream => ClientCapabilities::NONE,
            _ => declared_capabilities,
        };
        let keeps_params = era == Era::Modern || capabilities != ClientCapabilities::NONE;
        let agent = CallAgent {
            era,
            view: self.view.clone(),
            log_level: caller.log_level(params),
            capabilities,
            declared_capabilities,
            session: caller.session().filter(|_| capabilities != ClientCapabilities::NONE).cloned(),
            caller: caller.id(),
            params: if keeps_params { params_json.clone() } else { Bytes::new() },
        };
        let protocol_version = caller.protocol_version();
        let request = CallRequest { id, protocol_version, headers, in_flight, accepts_stream, agent };
        call(&self.gateway, request, method, params).await
    }

    /// Returns the error for an evenkeel instance that must not use this one as a server, because one of them would be
    /// its own upstream. `None` for any other client.
    pub(super) fn loop_error(&self, method: &str, params: &RequestParams<'_>) -> Option<ResponseError> {
        let is_handshake = matches!(method, "initialize" | "server/discover");
        if !is_handshake && list_kind_for_method(method).is_none() {
            return None;
        }
        let via = params.meta.as_ref()?.get(VIA_KEY)?;
        let detected = self.gateway.instance_id.check_via(via.get(), is_handshake).err()?;
        let message = "an evenkeel instance cannot be its own server, directly or through other instances";
        let error = ResponseError::in_band(ErrorCode::INVALID_REQUEST, message);
        Some(error.with_data(serde_json::json!({ LOOP_KEY: detected.as_str() })))
    }

    pub(super) fn initialize(&self, id: &JsonRpcId, params: &RequestParams<'_>) -> Response<ResponseBody> {
        let Some(requested) = params.members.get_string("protocolVersion") else {
            return error_response(&invalid_params("initialize needs a \"protocolVersion\""), Some(id));
        };
        let client = params.members.get("clientInfo").and_then(|client| parse_members(client.get()).ok());
        let client_text = |key| {
            bounded_client_name(
                &client.as_ref().and_then(|client| client.get_string(key)).unwrap_or_default(),
            )
        };
        let client_capabilities = params.members.get("capabilities").map_or("{}", |value| value.get());
        let sealed = SealedSession {
            version: negotiate_version(&requested).to_owned(),
            client: client_text("name"),
            client_version: client_text("version"),
            namespace: self.view.namespace().cloned(),
            path_id: self.path_id.clone(),
            issued_at: Timestamp::now().as_second(),
            capabilities: ClientCapabilities::from_json(client_capabilities).bits(),
        };
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let opened = self.gateway.sessions.open(&sealed, |list| view.version(list));
        let session_id = opened.ok().and_then(|session_id| HeaderValue::from_str(&session_id).ok());
        let Some(session_id) = session_id else {
            let message = "the random number generator of the system failed";
            let error = ResponseError::bad_request(ErrorCode::INTERNAL_ERROR, message);
            return error_response(&error.with_status(StatusCode::INTERNAL_SERVER_ERROR), Some(id));
        };
        self.gateway.update_session_gauge();
        tracing::debug!(client = %sealed.client, version = %sealed.version, view = ?self.view, "session opened");
        let mut result = serde_json::json!({
            "protocolVersion": sealed.version,
            "capabilities": capabilities(),
            "serverInfo": server_info(),
        });
        self.add_instructions(&mut result);
        let mut response = result_response(id, &result.to_string());
        response.headers_mut().insert(SESSION_HEADER, session_id);
        response
    }

    fn discover(&self, id: &JsonRpcId) -> Response<ResponseBody> {
        let mut result = serde_json::json!({
            "resultType": "complete",
            "supportedVersions": supported_versions().collect::<Vec<_>>(),
            "capabilities": capabilities(),
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": server_info() },
        });
        self.add_instructions(&mut result);
        result_response(id, &result.to_string())
    }

    /// Adds the instructions of the servers in this view to an `initialize` or `server/discover` result.
    fn add_instructions(&self, result: &mut serde_json::Value) {
        let text = instructions(&self.gateway.catalog.load(), &self.view);
        if let (Some(text), Some(result)) = (text, result.as_object_mut()) {
            result.insert("instructions".to_owned(), text.into());
        }
    }

    fn list_page(
        &self,
        caller: &Caller,
        request: &AgentRequest<'_>,
        list: ListKind,
    ) -> Response<ResponseBody> {
        let cursor = request.params.members.get("cursor").filter(|cursor| cursor.get() != "null");
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let page = match cursor.map(decode_json_string) {
            None => view.table(list).page(None, caller.era()),
            Some(cursor) => view.table(list).page(Some(cursor.as_deref().unwrap_or("?")), caller.era()),
        };
        let Ok(page) = page else {
            return error_response(&invalid_params("unknown cursor"), Some(&request.id));
        };
        if let Some(session) = caller.session().filter(|_| cursor.is_none()) {
            session.record_listed(list, view.version(list));
        }
        let start = format!("{{{}\"{}\":", cache_members(caller.era()), list.result_member());
        // The cursor is base64, which needs no JSON escapes.
        let end = page.cursor.map_or("}".to_owned(), |cursor| format!(r#","nextCursor":"{cursor}"}}"#));
        let result = response::result_message(&request.id, &[start.as_bytes(), &page.items, end.as_bytes()]);
        body::json(StatusCode::OK, result)
    }

    fn set_level(&self, session: &Session, request: &AgentRequest<'_>) -> Response<ResponseBody> {
        let level = request.params.members.get_string("level").and_then(|level| LogLevel::from_name(&level));
        let Some(level) = level else {
            let levels = LogLevel::ALL.map(LogLevel::as_str).join(", ");
            return error_response(
                &invalid_params(format!("\"level\" must be one of {levels}")),
                Some(&request.id),
            );
        };
        let subscriptions = &self.gateway.subscriptions;
        let log_subscription = subscriptions.subscribe_logs(&self.view, level);
        session.update_subscriptions(|agent| agent.subscribe_log(subscriptions, log_subscription));
        result_response(&request.id, "{}")
    }

    fn subscribe(&self, session: &Session, request: &AgentRequest<'_>) -> Response<ResponseBody> {
        let Some(uri) = request.params.members.get_string("uri") else {
            return error_response(
                &invalid_params("resources/subscribe needs the \"uri\" of a resource"),
                Some(&request.id),
            );
        };
        let subscription = match self.subscribe_resource(self.gateway.catalog.load().view(&self.view), &uri) {
            Ok(subscription) => subscription,
            Err(route_error) => {
                let (status, message) = response::route_error_response(
                    &request.id,
                    &route_error,
                    RoutedMethod::ReadResource,
                    Era::Legacy,
                );
                return body::json(status, message);
            }
        };
        let subscriptions = &self.gateway.subscriptions;
        if session.update_subscriptions(|agent| {
            agent.subscribe_resource(subscriptions, uri.into_owned(), subscription)
        }) {
            result_response(&request.id, "{}")
        } else {
            self.gateway.metrics.count_refusal(ExceededLimit::Subscriptions);
            let text = format!(
                "the session watches {MAX_RESOURCE_SUBSCRIPTIONS} resources, the maximum: unsubscribe from others first"
            );
            let error = ResponseError::in_band(ErrorCode::INVALID_REQUEST, text);
            error_response(&error, Some(&request.id))
        }
    }

    /// Subscribes to the resource that is exposed to the agent under this URI.
    fn subscribe_resource(&self, view: &View, uri: &str) -> Result<ResourceSubscription, RouteError> {
        let ResourceRoute { section, uri } = route_target::resolve_resource(view, uri)?;
        let subscribe = || self.gateway.subscriptions.subscribe_resource(&section.key, &uri);
        let handle = match &section.responder {
            Responder::Server(handle) => handle,
            Responder::Isolated { .. } => {
                let text = format!(
                    "MCP server {} does not support resource subscriptions, because each caller has a connection of \
                     its own (spec.isolation: Session)",
                    section.key
                );
                return Err(RouteError::Unsupported(text));
            }
            // The updates of skills are published in this process.
            Responder::Local(_) => return Ok(subscribe()),
        };
        if handle.live_connection().is_some_and(|connection| !connection.handshake().capabilities.subscribe) {
            let text = format!("MCP server {} does not support resource subscriptions", section.key);
            return Err(RouteError::Unsupported(text));
        }
        let subscription = subscribe();
        handle.wake();
        Ok(subscription)
    }

    fn listen(&self, request: AgentRequest<'_>) -> Response<ResponseBody> {
        if !request.accepts_stream {
            let error = ResponseError::bad_request(
                ErrorCode::INVALID_REQUEST,
                "Accept must include text/event-stream",
            );
            return error_response(&error.with_status(StatusCode::NOT_ACCEPTABLE), Some(&request.id));
        }
        let filter =
            request.params.members.get("notifications").and_then(|filter| parse_members(filter.get()).ok());
        let Some(filter) = filter else {
            let error = invalid_params("subscriptions/listen needs a \"notifications\" filter");
            return error_response(&error, Some(&request.id));
        };
        let requested = |list: &ListKind| {
            filter.get(list.listen_filter_member()).is_some_and(|requested| requested.get() == "true")
        };
        let lists = NOTIFIED_LISTS.into_iter().filter(requested).collect();
        let uris = filter.get("resourceSubscriptions");
        let uris: Vec<String> =
            uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
        let mut subscriptions = AgentSubscriptions::default();
        {
            let generation = self.gateway.catalog.load();
            let view = generation.view(&self.view);
            for uri in uris {
                if let Ok(subscription) = self.subscribe_resource(view, &uri)
                    && !subscriptions.subscribe_resource(&self.gateway.subscriptions, uri, subscription)
                {
                    // The acknowledgement names those that are watched.
                    self.gateway.metrics.count_refusal(ExceededLimit::Subscriptions);
                }
            }
        }
        body::event_stream(listen_stream(self.stream_context(), request.id, lists, subscriptions))
    }
}

fn list_kind_for_method(method: &str) -> Option<ListKind> {
    ListKind::ALL.into_iter().find(|list| list.method() == method)
}

/// Returns the capabilities of the endpoint. Only capabilities that work from end to end are declared, and always
/// all of them, because servers that need them may be attached later.
fn capabilities() -> serde_json::Value {
    serde_json::json!({
        "tools": { "listChanged": true },
        "prompts": { "listChanged": true },
        "resources": { "listChanged": true, "subscribe": true },
        "completions": {},
        "logging": {},
        "extensions": { SKILLS_EXTENSION_ID: skills_capability() },
    })
}

fn server_info() -> serde_json::Value {
    serde_json::json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

fn method_not_found(method: &str) -> ResponseError {
    ResponseError::in_band(ErrorCode::METHOD_NOT_FOUND, format!("Method not found: {method}"))
}
