use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, http::StatusCode};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::fleet::ServerLogs;
use crate::oauth::AuthorizerHandle;
use crate::report::{ObjectKind, StatusSnapshot};
use crate::resource::{API_VERSION, Desired, Digest, ObjectKey, Problem, Reason, SkillContent};
use crate::source::SourceControl;
use crate::wire::{LogPage, ServerLog};

/// The state of the endpoints that are served on the Unix socket only, for the commands: server logs may hold any
/// data.
#[derive(Clone)]
pub struct LocalApi {
    /// The status of every object.
    pub store: watch::Receiver<StatusSnapshot>,
    /// The declared objects.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The logs of servers.
    pub logs: ServerLogs,
    /// The catalog of what servers offer.
    pub catalog: Catalog,
    /// Logs in to servers.
    pub authorizer: AuthorizerHandle,
    /// Controls a watched directory; `None` in a cluster.
    pub source_control: Option<SourceControl>,
    /// Ends all streams when cancelled.
    pub stop: CancellationToken,
}

/// The path to which a POST confirms that an empty directory is intended.
pub const PRUNE_EMPTY_PATH: &str = "/prune-empty";

/// The path to which a POST starts a scan of all skills; the response is a list of [`SkillReload`].
pub const RELOAD_SKILLS_PATH: &str = "/reload-skills";

/// The path to which a POST starts a scan of all files; the response comes once the status API shows its result.
pub const SCAN_PATH: &str = "/look";

/// The result of scanning one skill.
#[derive(Debug, Serialize, Deserialize)]
pub struct SkillReload {
    /// The namespace of the skill.
    pub namespace: String,
    /// The name of the skill.
    pub name: String,
    /// True if its content is not what it was before the scan.
    pub changed: bool,
    /// The reason why it is not accepted.
    pub problem: Option<ProblemText>,
}

/// A problem as the API reports it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProblemText {
    /// The machine-readable reason.
    pub reason: Reason,
    /// The message: the failure, and the action to take.
    pub message: String,
}

/// Returns the routes below a server, and [`SCAN_PATH`], [`PRUNE_EMPTY_PATH`] and [`RELOAD_SKILLS_PATH`].
///
/// `log` below a server serves JSON lines (`follow=true`, `tailLines=N`; the line `gone` when its object is removed),
/// `tools` the tools that agents see of it.
pub fn local_routes(local: LocalApi) -> Router {
    let server = format!("/apis/{API_VERSION}/namespaces/{{namespace}}/mcpservers/{{name}}");
    Router::new()
        .route(&format!("{server}/log"), get(get_log))
        .route(&format!("{server}/tools"), get(get_tools))
        .route(SCAN_PATH, post(scan))
        .route(PRUNE_EMPTY_PATH, post(prune_empty))
        .route(RELOAD_SKILLS_PATH, post(reload_skills))
        .with_state(local)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogQuery {
    follow: bool,
    tail_lines: Option<u64>,
}

async fn get_log(
    State(local): State<LocalApi>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let key = ObjectKey::new(namespace, name);
    let Some(uid) = local.store.borrow().servers.get(&key).map(|server| server.declared.meta.uid.clone())
    else {
        return server_not_found(&key);
    };
    let log =
        if query.follow { local.logs.get_or_create(&uid) } else { local.logs.get(&uid).unwrap_or_default() };
    let next = log.tail_start(query.tail_lines);
    let end = (!query.follow).then(|| log.end());
    let reader = LogReader { local, key, uid, log, next, end, removed: false, pending: VecDeque::new() };
    let lines = unfold(reader, async |mut reader| {
        let line = reader.next_line().await?;
        Some((Ok::<_, Infallible>(line), reader))
    });
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

async fn prune_empty(State(local): State<LocalApi>) -> StatusCode {
    local.source_control.map_or(StatusCode::NOT_FOUND, |control| {
        control.confirm_removal();
        StatusCode::ACCEPTED
    })
}

/// Scans all files. A cluster is watched and needs no scan.
async fn scan(State(mut local): State<LocalApi>) -> StatusCode {
    let scanned = async {
        if let Some(control) = &local.source_control {
            let number = control.rescan().await.sequence;
            // The store is closed only at shutdown, when `stop` is cancelled too.
            let _ = local.store.wait_for(|store| store.desired_number >= number).await;
        }
    };
    match local.stop.run_until_cancelled(scanned).await {
        Some(()) => StatusCode::NO_CONTENT,
        None => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Scans all skills and returns which of them changed. A cluster is watched and needs no scan; there the current
/// state is returned.
async fn reload_skills(State(local): State<LocalApi>) -> Response {
    let before = Arc::clone(&local.desired.borrow());
    let after = match &local.source_control {
        Some(control) => local.stop.run_until_cancelled(control.rescan()).await,
        None => Some(before.clone()),
    };
    let Some(after) = after else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let digest = |content: Option<&SkillContent>| Some(content?.as_ref().ok()?.digest());
    let reloaded = after.skills.iter().map(|(key, skill)| {
        let (old, new) = (before.skill_contents.get(key), after.skill_contents.get(key));
        let problem = skill.rejected.as_ref().or_else(|| new?.as_ref().err());
        SkillReload {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            changed: digest(old) != digest(new),
            problem: problem
                .map(|Problem { reason, message }| ProblemText { reason: *reason, message: message.clone() }),
        }
    });
    Json(reloaded.collect::<Vec<_>>()).into_response()
}

/// Returns the tools of a server that agents see now: the server's own names, and digests of their definitions.
async fn get_tools(
    State(local): State<LocalApi>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = ObjectKey::new(namespace, name);
    if !local.store.borrow().servers.contains_key(&key) {
        return server_not_found(&key);
    }
    let generation = local.catalog.load();
    let tools = generation.section(&key).into_iter().flat_map(|section| &section.lists.tools);
    let tools: BTreeMap<_, _> = tools.map(|tool| (tool.name(), Digest::of(tool.raw().as_bytes()))).collect();
    Json(json!({ "tools": tools })).into_response()
}

fn server_not_found(key: &ObjectKey) -> Response {
    let message = format!("there is no {} {key}", ObjectKind::McpServer.name());
    (StatusCode::NOT_FOUND, Json(json!({ "message": message }))).into_response()
}

/// Waits until an object is no longer declared. Another object may have its name then, so the uid is compared.
async fn wait_until_removed(store: &mut watch::Receiver<StatusSnapshot>, key: &ObjectKey, uid: &Arc<str>) {
    let is_removed =
        |store: &StatusSnapshot| store.servers.get(key).is_none_or(|server| server.declared.meta.uid != *uid);
    if store.wait_for(is_removed).await.is_err() {
        // The store is closed only at shutdown, which the caller handles.
        std::future::pending::<()>().await;
    }
}

/// Streams a log, only as fast as its reader receives it.
struct LogReader {
    local: LocalApi,
    key: ObjectKey,
    uid: Arc<str>,
    log: ServerLog,
    next: u64,
    /// The end of the log when it was requested, unless it is followed. Without it, a server that logs without pause
    /// would never let the response end.
    end: Option<u64>,
    /// True once the object is no longer declared. The stream ends after the lines logged until then.
    removed: bool,
    pending: VecDeque<Value>,
}

impl LogReader {
    async fn next_line(&mut self) -> Option<Bytes> {
        while self.pending.is_empty() {
            if self.end.is_some_and(|end| self.next >= end) {
                return None;
            }
            let LogPage { dropped: lost, lines, next } = self.log.read(self.next);
            if lost > 0 {
                self.pending.push_back(json!({ "lost": lost }));
            }
            self.pending.extend(lines.iter().map(|line| json!(line)));
            self.next = next;
            if self.pending.is_empty() && self.removed {
                self.local.logs.remove(&self.uid);
                self.end = Some(self.next);
                self.pending.push_back(json!({ "gone": true }));
            } else if self.pending.is_empty() {
                tokio::select! {
                    () = self.local.stop.cancelled() => return None,
                    () = self.log.wait_for_line(self.next) => {}
                    () = wait_until_removed(&mut self.local.store, &self.key, &self.uid) => self.removed = true,
                }
            }
        }
        let mut line = self.pending.pop_front()?.to_string();
        line.push('\n');
        Some(line.into())
    }
}
