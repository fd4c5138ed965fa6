//! What agents ask for, method by method.

use http::{HeaderValue, Response, StatusCode};
use jiff::Timestamp;
use rmcp::model::{ErrorCode, SKILLS_EXTENSION_ID};

use super::agent_subscriptions::AgentSubscriptions;
use super::answer::{self, ResponseError, RouteError};
use super::body::{self, ResponseBody};
use super::call::{CallRequest, call};
use super::caller::Caller;
use super::era::{negotiate, supported};
use super::handler::{AgentPath, AgentRequest, SESSION_HEADER, fail, succeed};
use super::instructions::instructions;
use super::notification_stream::listen_stream;
use super::route_target;
use super::routed_method::RoutedMethod;
use super::session::{Session, TOLD};
use super::session_id::{SealedSession, called};
use crate::catalog::{ResourceRoute, View};
use crate::upstream::{ResourceSubscription, Responder};
use crate::wire::{Era, JsonRpcId, ListKind, LogLevel, RING_KEY, RequestParams, VIA_KEY, members, text};

impl AgentPath {
    /// Answers a request.
    pub(super) async fn answer(&self, caller: Caller, asked: AgentRequest<'_>) -> Response<ResponseBody> {
        if let Some(ask) = RoutedMethod::of(asked.method) {
            return self.call(&caller, ask, asked).await;
        }
        if let Some(list) = listed_by(asked.method) {
            return self.list(&caller, &asked, list);
        }
        match (asked.method, &caller) {
            ("skills/list" | "skills/get", _) => self.skills(&caller, &asked),
            ("ping", Caller::Session(_)) => succeed(&asked.id, "{}"),
            ("logging/setLevel", Caller::Session(session)) => self.set_level(session, &asked),
            ("resources/subscribe", Caller::Session(session)) => self.subscribe(session, &asked),
            ("resources/unsubscribe", Caller::Session(session)) => match asked.params.members.text("uri") {
                Some(uri) => {
                    session.interest(|interest| interest.unwatch(&uri));
                    succeed(&asked.id, "{}")
                }
                None => {
                    fail(&invalid("resources/unsubscribe needs the \"uri\" of a resource"), Some(&asked.id))
                }
            },
            (method, Caller::Session(_)) => fail(&unknown(method), Some(&asked.id)),
            ("server/discover", Caller::Nobody) => self.discover(&asked.id),
            ("subscriptions/listen", Caller::Nobody) => self.listen(asked),
            (method, Caller::Nobody) => fail(&unknown(method).status(StatusCode::NOT_FOUND), Some(&asked.id)),
        }
    }

    async fn call(
        &self,
        caller: &Caller,
        ask: RoutedMethod,
        asked: AgentRequest<'_>,
    ) -> Response<ResponseBody> {
        let AgentRequest { id, params, streams, .. } = asked;
        let Ok(in_flight) = caller.begin(&id) else {
            let failure = ResponseError::in_band(
                ErrorCode::INVALID_REQUEST,
                "Invalid request: another request with this id is in flight",
            );
            return fail(&failure, Some(&id));
        };
        let (era, level) = (caller.era(), caller.level(params));
        call(&self.gateway, CallRequest { id, era, view: &self.view, in_flight, streams, level }, ask, params)
            .await
    }

    /// Why an evenkeel must not have this one as a server; `None` for whoever else asks.
    pub(super) fn refuses(&self, method: &str, params: &RequestParams<'_>) -> Option<ResponseError> {
        let opening = matches!(method, "initialize" | "server/discover");
        if !opening && listed_by(method).is_none() {
            return None;
        }
        let via = params.meta.as_ref()?.get(VIA_KEY)?;
        let ring = self.gateway.identity.meet(via.get(), opening).err()?;
        let message = "an evenkeel cannot be a server of its own, directly or through others";
        let failure = ResponseError::in_band(ErrorCode::INVALID_REQUEST, message);
        Some(failure.data(serde_json::json!({ RING_KEY: ring.word() })))
    }

    pub(super) fn initialize(&self, id: &JsonRpcId, params: &RequestParams<'_>) -> Response<ResponseBody> {
        let Some(asked) = params.members.text("protocolVersion") else {
            return fail(&invalid("initialize needs a \"protocolVersion\""), Some(id));
        };
        let client = params.members.get("clientInfo").and_then(|client| members(client.get()).ok());
        let told = |key| called(&client.as_ref().and_then(|client| client.text(key)).unwrap_or_default());
        let handshake = SealedSession {
            version: negotiate(&asked).to_owned(),
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
            return body::plain(StatusCode::INTERNAL_SERVER_ERROR, "the random source of the system failed");
        };
        self.gateway.count_sessions();
        tracing::debug!(client = %handshake.client, version = %handshake.version, view = ?self.view, "session opened");
        let mut result = serde_json::json!({
            "protocolVersion": handshake.version,
            "capabilities": capabilities(),
            "serverInfo": server_info(),
        });
        self.instruct(&mut result);
        let mut response = succeed(id, &result.to_string());
        response.headers_mut().insert(SESSION_HEADER, session_id);
        response
    }

    fn discover(&self, id: &JsonRpcId) -> Response<ResponseBody> {
        let mut result = serde_json::json!({
            "resultType": "complete",
            "supportedVersions": supported().collect::<Vec<_>>(),
            "capabilities": capabilities(),
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": server_info() },
        });
        self.instruct(&mut result);
        succeed(id, &result.to_string())
    }

    /// Adds what the servers of this view want models to know.
    fn instruct(&self, result: &mut serde_json::Value) {
        let text = instructions(&self.gateway.catalog.load(), &self.view);
        if let (Some(text), Some(result)) = (text, result.as_object_mut()) {
            result.insert("instructions".to_owned(), text.into());
        }
    }

    fn list(&self, caller: &Caller, asked: &AgentRequest<'_>, list: ListKind) -> Response<ResponseBody> {
        let cursor = asked.params.members.get("cursor").filter(|cursor| cursor.get() != "null");
        let generation = self.gateway.catalog.load();
        let view = generation.view(&self.view);
        let page = match cursor.map(text) {
            None => view.of(list).page(None),
            Some(cursor) => view.of(list).page(Some(cursor.as_deref().unwrap_or("?"))),
        };
        let Ok(page) = page else {
            return fail(&invalid("unknown cursor"), Some(&asked.id));
        };
        if let Some(session) = caller.session().filter(|_| cursor.is_none()) {
            session.has_listed(list, view.version(list));
        }
        let start = format!("{{{}\"{}\":", cached(caller.era()), list.member());
        // Base64 needs no escapes.
        let end = page.cursor.map_or("}".to_owned(), |cursor| format!(r#","nextCursor":"{cursor}"}}"#));
        let result = answer::result(&asked.id, &[start.as_bytes(), &page.items, end.as_bytes()]);
        body::json(StatusCode::OK, result)
    }

    /// The skills of this view, or one of them by the URI of its SKILL.md (SEP-2640).
    fn skills(&self, caller: &Caller, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let generation = self.gateway.catalog.load();
        let shown = generation.sections().filter(|section| self.view.shows(&section.key.namespace));
        let mut skills = shown.filter_map(|section| match &section.answered_by {
            Responder::Evenkeel(local) => local.skill(),
            Responder::Server(_) => None,
        });
        let found = if asked.method == "skills/list" {
            let entries: Vec<_> = skills.map(|skill| skill.json.get()).collect();
            format!("\"skills\":[{}]", entries.join(","))
        } else {
            let Some(uri) = asked.params.members.text("uri") else {
                return fail(&invalid("skills/get needs the \"uri\" of a skill"), Some(&asked.id));
            };
            match skills.find(|skill| skill.uri == uri).map(|skill| skill.json) {
                Some(entry) => format!("\"skill\":{entry}"),
                None => return fail(&invalid(format!("unknown skill {uri}")), Some(&asked.id)),
            }
        };
        succeed(&asked.id, &format!("{{{}{found}}}", cached(caller.era())))
    }

    fn set_level(&self, session: &Session, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let level = asked.params.members.text("level").and_then(|level| LogLevel::named(&level));
        let Some(level) = level else {
            let levels = LogLevel::ALL.map(LogLevel::name).join(", ");
            return fail(&invalid(format!("\"level\" must be one of {levels}")), Some(&asked.id));
        };
        let listeners = &self.gateway.listeners;
        let request = listeners.log_from(&self.view, level);
        session.interest(|interest| interest.log(listeners, request));
        succeed(&asked.id, "{}")
    }

    fn subscribe(&self, session: &Session, asked: &AgentRequest<'_>) -> Response<ResponseBody> {
        let Some(uri) = asked.params.members.text("uri") else {
            return fail(&invalid("resources/subscribe needs the \"uri\" of a resource"), Some(&asked.id));
        };
        let watch = match self.watch(self.gateway.catalog.load().view(&self.view), &uri) {
            Ok(watch) => watch,
            Err(miss) => {
                let (status, message) = answer::missed(&asked.id, &miss, RoutedMethod::Read, Era::Legacy);
                return body::json(status, message);
            }
        };
        let listeners = &self.gateway.listeners;
        if session.interest(|interest| interest.watch(listeners, uri.into_owned(), watch)) {
            succeed(&asked.id, "{}")
        } else {
            let failure =
                ResponseError::in_band(ErrorCode::INVALID_REQUEST, "the session watches too many resources");
            fail(&failure, Some(&asked.id))
        }
    }

    /// A subscription to the resource that the agent knows by this URI.
    fn watch(&self, view: &View, uri: &str) -> Result<ResourceSubscription, RouteError> {
        let ResourceRoute { section, uri } = route_target::resource(view, uri)?;
        let Responder::Server(handle) = &section.answered_by else {
            let text =
                "Skills do not tell of one resource: when one changes, the list of resources has changed";
            return Err(RouteError::Unknown(text.to_owned()));
        };
        if handle.peek().is_some_and(|link| !link.peer().capabilities.subscribe) {
            let text = format!("MCP server {} does not tell when a resource changes", section.key);
            return Err(RouteError::Unknown(text));
        }
        let watch = self.gateway.listeners.subscribe(&section.key, &uri);
        handle.wake();
        Ok(watch)
    }

    fn listen(&self, asked: AgentRequest<'_>) -> Response<ResponseBody> {
        if !asked.streams {
            let failure =
                ResponseError::bad(ErrorCode::INVALID_REQUEST, "Accept must name text/event-stream");
            return fail(&failure.status(StatusCode::NOT_ACCEPTABLE), Some(&asked.id));
        }
        let filter = asked.params.members.get("notifications").and_then(|filter| members(filter.get()).ok());
        let Some(filter) = filter else {
            let failure = invalid("subscriptions/listen needs a \"notifications\" filter");
            return fail(&failure, Some(&asked.id));
        };
        let wanted = |list: &ListKind| filter.get(list.filter()).is_some_and(|wanted| wanted.get() == "true");
        let lists = TOLD.into_iter().filter(wanted).collect();
        let uris = filter.get("resourceSubscriptions");
        let uris: Vec<String> =
            uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
        let mut interest = AgentSubscriptions::default();
        {
            let generation = self.gateway.catalog.load();
            let view = generation.view(&self.view);
            for uri in uris {
                if let Ok(watch) = self.watch(view, &uri) {
                    interest.watch(&self.gateway.listeners, uri, watch);
                }
            }
        }
        body::events(listen_stream(self.source(), asked.id, lists, interest))
    }
}

fn listed_by(method: &str) -> Option<ListKind> {
    ListKind::ALL.into_iter().find(|list| list.method() == method)
}

/// The first members of a list, in the era that wants to know how long it may be kept: not at all.
fn cached(era: Era) -> &'static str {
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

fn unknown(method: &str) -> ResponseError {
    ResponseError::in_band(ErrorCode::METHOD_NOT_FOUND, format!("Method not found: {method}"))
}

fn invalid(why: impl std::fmt::Display) -> ResponseError {
    ResponseError::in_band(ErrorCode::INVALID_PARAMS, format!("Invalid params: {why}"))
}
