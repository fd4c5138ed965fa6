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
use crate::report::{ObjectKind, StatusSnapshot};
use crate::resource::{API_VERSION, Desired, Digest, ObjectKey, Problem, Reason, SkillContent};
use crate::source::SourceControl;
use crate::wire::{LogPage, ServerLog};

/// What only the commands are told, over the socket: what servers log may hold anything.
#[derive(Clone)]
pub struct LocalApi {
    /// What is told of everything.
    pub store: watch::Receiver<StatusSnapshot>,
    /// What is declared.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// What servers log.
    pub logs: ServerLogs,
    /// What they offer.
    pub catalog: Catalog,
    /// What may be asked of a directory that is watched.
    pub source_control: Option<SourceControl>,
    /// Ends what goes on.
    pub stop: CancellationToken,
}

/// Where it is said that an empty directory is meant, with POST.
pub const PRUNE_EMPTY_PATH: &str = "/prune-empty";

/// Where a look at the skills is asked for, with POST; the answer is a list of [`SkillReload`].
pub const RELOAD_SKILLS_PATH: &str = "/reload-skills";

/// Where a look at the files is asked for, with POST; the answer comes when the status API tells of what they hold.
pub const SCAN_PATH: &str = "/look";

/// What a look at a skill found.
#[derive(Debug, Serialize, Deserialize)]
pub struct SkillReload {
    /// The skill's.
    pub namespace: String,
    /// The skill's.
    pub name: String,
    /// Whether it holds something else than before.
    pub changed: bool,
    /// Why it is not accepted.
    pub problem: Option<ProblemText>,
}

/// A problem, as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProblemText {
    /// The word for it.
    pub reason: Reason,
    /// What failed and what to do.
    pub message: String,
}

/// Below a server: `log` (JSON lines; `follow=true`, `tailLines=N`; `gone` when its object is) and `tools` (what agents see of it); and
/// [`LOOK`], [`PRUNE_EMPTY`] and [`RELOAD_SKILLS`].
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
    Query(asked): Query<LogQuery>,
) -> Response {
    let key = ObjectKey::new(namespace, name);
    let Some(uid) = local.store.borrow().servers.get(&key).map(|server| server.declared.meta.uid.clone())
    else {
        return server_not_found(&key);
    };
    let log =
        if asked.follow { local.logs.get_or_create(&uid) } else { local.logs.get(&uid).unwrap_or_default() };
    let next = log.tail_start(asked.tail_lines);
    let end = (!asked.follow).then(|| log.end());
    let reader = LogReader { local, key, uid, log, next, end, removed: false, pending: VecDeque::new() };
    let lines = unfold(reader, async |mut reader| {
        let line = reader.next_line().await?;
        Some((Ok::<_, Infallible>(line), reader))
    });
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

async fn prune_empty(State(local): State<LocalApi>) -> StatusCode {
    local.source_control.map_or(StatusCode::NOT_FOUND, |wishes| {
        wishes.confirm_removal();
        StatusCode::ACCEPTED
    })
}

/// Looks at all files. An API server tells every change by itself: there nothing has to be looked at.
async fn scan(State(mut local): State<LocalApi>) -> StatusCode {
    let told = async {
        if let Some(wishes) = &local.source_control {
            let number = wishes.rescan().await.sequence;
            // It is closed at the end alone, which is what `stop` is about too.
            let _ = local.store.wait_for(|store| store.desired_number >= number).await;
        }
    };
    match local.stop.run_until_cancelled(told).await {
        Some(()) => StatusCode::NO_CONTENT,
        None => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Looks at all skills, and tells of each what is another now. An API server tells every change by itself, so there
/// this only tells how things are.
async fn reload_skills(State(local): State<LocalApi>) -> Response {
    let before = Arc::clone(&local.desired.borrow());
    let after = match &local.source_control {
        Some(wishes) => local.stop.run_until_cancelled(wishes.rescan()).await,
        None => Some(before.clone()),
    };
    let Some(after) = after else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let digest = |content: Option<&SkillContent>| Some(content?.as_ref().ok()?.digest());
    let reloaded = after.skills.iter().map(|(key, skill)| {
        let (was, is) = (before.skill_contents.get(key), after.skill_contents.get(key));
        let problem = skill.rejected.as_ref().or_else(|| is?.as_ref().err());
        SkillReload {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            changed: digest(was) != digest(is),
            problem: problem
                .map(|Problem { reason, message }| ProblemText { reason: *reason, message: message.clone() }),
        }
    });
    Json(reloaded.collect::<Vec<_>>()).into_response()
}

/// What agents see of a server's tools now: its own names of them, and digests of what it says of each.
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

/// Waits until an object is no longer declared; another one may have its name then.
async fn wait_until_removed(store: &mut watch::Receiver<StatusSnapshot>, key: &ObjectKey, uid: &Arc<str>) {
    let is_gone =
        |store: &StatusSnapshot| store.servers.get(key).is_none_or(|server| server.declared.meta.uid != *uid);
    if store.wait_for(is_gone).await.is_err() {
        // The end of evenkeel is another matter.
        std::future::pending::<()>().await;
    }
}

/// Reads a log only as fast as its reader takes it.
struct LogReader {
    local: LocalApi,
    key: ObjectKey,
    uid: Arc<str>,
    log: ServerLog,
    next: u64,
    /// What was there when it was asked for, unless what comes is wanted too: a flood has no end of its own.
    end: Option<u64>,
    /// The object is no longer declared: what was logged until then is the end.
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
