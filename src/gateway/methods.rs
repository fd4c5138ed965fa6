//! What agents ask for, method by method.

use http::{HeaderValue, Response, StatusCode};
use jiff::Timestamp;
use rmcp::model::{ErrorCode, SKILLS_EXTENSION_ID};

use super::agent_subscriptions::AgentSubscriptions;
use super::body::{self, ResponseBody};
use super::call::{CallRequest, call};
use super::caller::Caller;
use super::era::{negotiate_version, supported_versions};
use super::handler::{AgentRequest, SESSION_HEADER, ViewHandler, error_response, result_response};
use super::instructions::instructions;
use super::notification_stream::listen_stream;
use super::response::{self, ResponseError, RouteError};
use super::route_target;
use super::routed_method::RoutedMethod;
use super::session::{NOTIFIED_LISTS, Session};
use super::session_id::{SealedSession, bounded_client_name};
use crate::catalog::{ResourceRoute, View};
use crate::upstream::{ResourceSubscription, Responder};
use crate::wire::{Era, JsonRpcId, LOOP_KEY, ListKind, LogLevel, RequestParams, VIA_KEY, members, text};

impl ViewHandler {
    /// Answers a request.
    pub(super) async fn respond(&self, caller: Caller, asked: AgentRequest<'_>) -> Response<ResponseBody> {
        if let Some(ask) = RoutedMethod::from_method(asked.method) {
            return self.forward_call(&caller, ask, asked).await;
        }
        if let Some(list) = list_kind_for_method(asked.method) {
            return self.list_page(&caller, &asked, list);
        }
        match (asked.method, &caller) {
            ("skills/list" | "skills/get", _) => self.handle_skills(&caller, &asked),
            ("ping", Caller::Session(_)) => result_response(&asked.id, "{}"),
            ("logging/setLevel", Caller::Session(session)) => self.set_level(session, &asked),
            ("resources/subscribe", Caller::Session(session)) => self.subscribe(session, &asked),
            ("resources/unsubscribe", Caller::Session(session)) => {
                match asked.params.members.get_string("uri") {
                    Some(uri) => {
                        session.update_subscriptions(|interest| interest.unsubscribe_resource(&uri));
                        result_response(&asked.id, "{}")
                    }
                    None => error_response(
                        &invalid_params("resources/unsubscribe needs the \"uri\" of a resource"),
                        Some(&asked.id),
                    ),
                }
            }
            (method, Caller::Session(_)) => error_response(&method_not_found(method), Some(&asked.id)),
            ("server/discover", Caller::Sessionless) => self.discover(&asked.id),
            ("subscriptions/listen", Caller::Sessionless) => self.listen(asked),
            (method, Caller::Sessionless) => {
                error_response(&method_not_found(method).with_status(StatusCode::NOT_FOUND), Some(&asked.id))
            }
        }
    }

    async fn forward_call(
        &self,
        caller: &Caller,
        ask: RoutedMethod,
        asked: AgentRequest<'_>,
    ) -> Response<ResponseBody> {
        let AgentRequest { id, params, accepts_stream: streams, .. } = asked;
        let Ok(in_flight) = caller.begin_request(&id) else {
            let failure = ResponseError::in_band(
                ErrorCode::INVALID_REQUEST,
                "Invalid request: another request with this id is in flight",
            );
            return error_response(&failure, Some(&id));
        };
        let (era, level) = (caller.era(), caller.log_level(params));
        call(
            &self.gateway,
            CallRequest { id, era, view: &self.view, in_flight, accepts_stream: streams, log_level: level },
            ask,
            params,
        )
        .await
    }

    /// Why an evenkeel must not have this one as a server; `None` for whoever else asks.
    pub(super) fn loop_error(&self, method: &str, params: &RequestParams<'_>) -> Option<ResponseError> {
        let opening = matches!(method, "initialize" | "server/discover");
        if !opening && list_kind_for_method(method).is_none() {
            return None;
        }
        let via = params.meta.as_ref()?.get(VIA_KEY)?;
        let ring = self.gateway.instance_id.check_via(via.get(), opening).err()?;
        let message = "an evenkeel cannot be a server of its own, directly or through others";
        let failure = ResponseError::in_band(ErrorCode::INVALID_REQUEST, message);
        Some(failure.with_data(serde_json::json!({ LOOP_KEY: ring.as_str() })))
    }

    pub(super) fn initialize(&self, id: &JsonRpcId, params: &RequestParams<'_>) -> Response<ResponseBody> {
        let Some(asked) = params.members.get_string("protocolVersion") else {
            return error_response(&invalid_params("initialize needs a \"protocolVersion\""), Some(id));
        };
        let client = params.members.get("clientInfo").and_then(|client| members(client.get()).ok());
        let told = |key| {
            bounded_client_name(
                &client.as_ref().and_then(|client| client.get_string(key)).unwrap_or_default(),
            )
        };
        let handshake = SealedSession {
            version: negotiate_version(&asked).to_owned(),
            client: told("name"),
            client_version: told("version"),
            namespace: self.view.namespace().cloned(),
            issued_at: Timestamp::now().as_second(),
        };
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let opened = self.gateway.sessions.open(&handshake, |list| view.version(list));
        let session_id = opened.ok().and_then(|session_id| HeaderValue::from_str(&session_id).ok());
        let Some(session_id) = session_id else {
            return body::plain_text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the random source of the system failed",
            );
        };
        self.gateway.update_session_gauge();
        tracing::debug!(client = %handshake.client, version = %handshake.version, view = ?self.view, "session opened");
        let mut result = serde_json::json!({
            "protocolVersion": handshake.version,
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

    /// Adds what the servers of this view want models to know.
    fn add_instructions(&self, result: &mut serde_json::Value) {
        let text = instructions(&self.gateway.catalog.load(), &self.view);
        if let (Some(text), Some(result)) = (text, result.as_object_mut()) {
            result.insert("instructions".to_owned(), text.into());
        }
    }

    fn list_page(&self, caller: &Caller, asked: &AgentRequest<'_>, list: ListKind) -> Response<ResponseBody> {
        let cursor = asked.params.members.get("cursor").filter(|cursor| cursor.get() != "null");
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let page = match cursor.map(text) {
            None => view.table(list).page(None),
            Some(cursor) => view.table(list).page(Some(cursor.as_deref().unwrap_or("?"))),
        };
        let Ok(page) = page else {
            return error_response(&invalid_params("unknown cursor"), Some(&asked.id));
        };
        if let Some(session) = caller.session().filter(|_| cursor.is_none()) {
            session.record_listed(list, view.version(list));
        }
        let start = format!("{{{}\"{}\":", cache_members(caller.era()), list.result_member());
        // Base64 needs no escapes.
        let end = page.cursor.map_or("}".to_owned(), |cursor| format!(r#","nextCursor":"{cursor}"}}"#));
        let result = response::result_message(&asked.id, &[start.as_bytes(), &page.items, end.as_bytes()]);
        body::json(StatusCode::OK, result)
    }

    /// The skills of this view, or one of them by the URI of its SKILL.md (SEP-2640).
    fn handle_skills(&self, caller: &Caller, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let generation = self.gateway.catalog.load();
        let shown = generation.sections().filter(|section| self.view.shows(&section.key.namespace));
        let mut skills = shown.filter_map(|section| match &section.responder {
            Responder::Local(local) => local.skill(),
            Responder::Server(_) => None,
        });
        let found = if asked.method == "skills/list" {
            let entries: Vec<_> = skills.map(|skill| skill.json.get()).collect();
            format!("\"skills\":[{}]", entries.join(","))
        } else {
            let Some(uri) = asked.params.members.get_string("uri") else {
                return error_response(
                    &invalid_params("skills/get needs the \"uri\" of a skill"),
                    Some(&asked.id),
                );
            };
            match skills.find(|skill| skill.uri == uri).map(|skill| skill.json) {
                Some(entry) => format!("\"skill\":{entry}"),
                None => {
                    return error_response(&invalid_params(format!("unknown skill {uri}")), Some(&asked.id));
                }
            }
        };
        result_response(&asked.id, &format!("{{{}{found}}}", cache_members(caller.era())))
    }

    fn set_level(&self, session: &Session, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let level = asked.params.members.get_string("level").and_then(|level| LogLevel::from_name(&level));
        let Some(level) = level else {
            let levels = LogLevel::ALL.map(LogLevel::as_str).join(", ");
            return error_response(
                &invalid_params(format!("\"level\" must be one of {levels}")),
                Some(&asked.id),
            );
        };
        let listeners = &self.gateway.subscriptions;
        let request = listeners.subscribe_logs(&self.view, level);
        session.update_subscriptions(|interest| interest.subscribe_log(listeners, request));
        result_response(&asked.id, "{}")
    }

    fn subscribe(&self, session: &Session, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let Some(uri) = asked.params.members.get_string("uri") else {
            return error_response(
                &invalid_params("resources/subscribe needs the \"uri\" of a resource"),
                Some(&asked.id),
            );
        };
        let watch = match self.subscribe_resource(self.gateway.catalog.load().view(&self.view), &uri) {
            Ok(watch) => watch,
            Err(miss) => {
                let (status, message) =
                    response::route_error_response(&asked.id, &miss, RoutedMethod::ReadResource, Era::Legacy);
                return body::json(status, message);
            }
        };
        let listeners = &self.gateway.subscriptions;
        if session
            .update_subscriptions(|interest| interest.subscribe_resource(listeners, uri.into_owned(), watch))
        {
            result_response(&asked.id, "{}")
        } else {
            let failure =
                ResponseError::in_band(ErrorCode::INVALID_REQUEST, "the session watches too many resources");
            error_response(&failure, Some(&asked.id))
        }
    }

    /// A subscription to the resource that the agent knows by this URI.
    fn subscribe_resource(&self, view: &View, uri: &str) -> Result<ResourceSubscription, RouteError> {
        let ResourceRoute { section, uri } = route_target::resolve_resource(view, uri)?;
        let Responder::Server(handle) = &section.responder else {
            let text =
                "Skills do not tell of one resource: when one changes, the list of resources has changed";
            return Err(RouteError::Unknown(text.to_owned()));
        };
        if handle.live_connection().is_some_and(|link| !link.handshake().capabilities.subscribe) {
            let text = format!("MCP server {} does not tell when a resource changes", section.key);
            return Err(RouteError::Unknown(text));
        }
        let watch = self.gateway.subscriptions.subscribe_resource(&section.key, &uri);
        handle.wake();
        Ok(watch)
    }

    fn listen(&self, asked: AgentRequest<'_>) -> Response<ResponseBody> {
        if !asked.accepts_stream {
            let failure =
                ResponseError::bad_request(ErrorCode::INVALID_REQUEST, "Accept must name text/event-stream");
            return error_response(&failure.with_status(StatusCode::NOT_ACCEPTABLE), Some(&asked.id));
        }
        let filter = asked.params.members.get("notifications").and_then(|filter| members(filter.get()).ok());
        let Some(filter) = filter else {
            let failure = invalid_params("subscriptions/listen needs a \"notifications\" filter");
            return error_response(&failure, Some(&asked.id));
        };
        let wanted = |list: &ListKind| {
            filter.get(list.listen_filter_member()).is_some_and(|wanted| wanted.get() == "true")
        };
        let lists = NOTIFIED_LISTS.into_iter().filter(wanted).collect();
        let uris = filter.get("resourceSubscriptions");
        let uris: Vec<String> =
            uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
        let mut interest = AgentSubscriptions::default();
        {
            let generation = self.gateway.catalog.load();
            let view = generation.view(&self.view);
            for uri in uris {
                if let Ok(watch) = self.subscribe_resource(view, &uri) {
                    interest.subscribe_resource(&self.gateway.subscriptions, uri, watch);
                }
            }
        }
        body::event_stream(listen_stream(self.stream_context(), asked.id, lists, interest))
    }
}

fn list_kind_for_method(method: &str) -> Option<ListKind> {
    ListKind::ALL.into_iter().find(|list| list.method() == method)
}

/// The first members of a list, in the era that wants to know how long it may be kept: not at all.
fn cache_members(era: Era) -> &'static str {
    match era {
        Era::Modern => r#""resultType":"complete","ttlMs":0,"cacheScope":"private","#,
        Era::Legacy => "",
    }
}

/// Only what works from end to end is offered, and all of it from the first handshake on: what there is may
/// come later.
fn capabilities() -> serde_json::Value {
    serde_json::json!({
        "tools": { "listChanged": true },
        "prompts": { "listChanged": true },
        "resources": { "listChanged": true, "subscribe": true },
        "completions": {},
        "logging": {},
        "extensions": { SKILLS_EXTENSION_ID: {} },
    })
}

fn server_info() -> serde_json::Value {
    serde_json::json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

fn method_not_found(method: &str) -> ResponseError {
    ResponseError::in_band(ErrorCode::METHOD_NOT_FOUND, format!("Method not found: {method}"))
}

fn invalid_params(why: impl std::fmt::Display) -> ResponseError {
    ResponseError::in_band(ErrorCode::INVALID_PARAMS, format!("Invalid params: {why}"))
}
