use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, http::StatusCode};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::fleet::Logs;
use crate::report::{Kind, Snapshot};
use crate::resource::{API_VERSION, Digest, ObjectKey};
use crate::source::directory::Prune;
use crate::wire::{Log, LogPage};

/// What only the commands are told, over the socket: what servers log may hold anything.
#[derive(Clone)]
pub struct Local {
    /// What is declared.
    pub store: watch::Receiver<Snapshot>,
    /// What servers log.
    pub logs: Logs,
    /// What they offer.
    pub catalog: Catalog,
    /// Where it is said that an empty directory is meant.
    pub prune: Option<Prune>,
    /// Ends what goes on.
    pub stop: CancellationToken,
}

/// Where [`Prune`] is asked for, with POST.
pub const PRUNE_EMPTY: &str = "/prune-empty";

/// Below a server: `log` (JSON lines; `follow=true`, `tailLines=N`) and `tools` (what agents see of it); and
/// [`PRUNE_EMPTY`].
pub fn local_routes(local: Local) -> Router {
    let server = format!("/apis/{API_VERSION}/namespaces/{{namespace}}/mcpservers/{{name}}");
    Router::new()
        .route(&format!("{server}/log"), get(log))
        .route(&format!("{server}/tools"), get(tools))
        .route(PRUNE_EMPTY, post(prune_empty))
        .with_state(local)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Asked {
    follow: bool,
    tail_lines: Option<u64>,
}

async fn log(
    State(local): State<Local>,
    Path((namespace, name)): Path<(String, String)>,
    Query(asked): Query<Asked>,
) -> Response {
    let key = ObjectKey::new(namespace, name);
    if !local.store.borrow().servers.contains_key(&key) {
        return no_server(&key);
    }
    let log = local.logs.get(&key).unwrap_or_default();
    let next = log.tail(asked.tail_lines);
    let reader = Reader { log, next, follow: asked.follow, stop: local.stop, ready: VecDeque::new() };
    let lines = unfold(reader, async |mut reader| {
        let line = reader.line().await?;
        Some((Ok::<_, Infallible>(line), reader))
    });
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

async fn prune_empty(State(local): State<Local>) -> StatusCode {
    local.prune.map_or(StatusCode::NOT_FOUND, |prune| {
        prune.confirm();
        StatusCode::ACCEPTED
    })
}

/// What agents see of a server's tools now: its own names of them, and digests of what it says of each.
async fn tools(State(local): State<Local>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let key = ObjectKey::new(namespace, name);
    if !local.store.borrow().servers.contains_key(&key) {
        return no_server(&key);
    }
    let generation = local.catalog.load();
    let tools = generation.section(&key).into_iter().flat_map(|section| &section.lists.tools);
    let tools: BTreeMap<_, _> = tools.map(|tool| (tool.name.clone(), Digest::of(&tool.raw))).collect();
    Json(json!({ "tools": tools })).into_response()
}

fn no_server(key: &ObjectKey) -> Response {
    let message = format!("there is no {} {key}", Kind::McpServer.name());
    (StatusCode::NOT_FOUND, Json(json!({ "message": message }))).into_response()
}

/// Reads a log only as fast as its reader takes it.
struct Reader {
    log: Log,
    next: u64,
    follow: bool,
    stop: CancellationToken,
    ready: VecDeque<Value>,
}

impl Reader {
    async fn line(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() {
            let LogPage { lost, lines, next } = self.log.read(self.next);
            if lost > 0 {
                self.ready.push_back(json!({ "lost": lost }));
            }
            self.ready.extend(lines.iter().map(|line| json!(line)));
            self.next = next;
            if self.ready.is_empty() {
                if !self.follow {
                    return None;
                }
                self.stop.run_until_cancelled(self.log.grown(self.next)).await?;
            }
        }
        let mut line = self.ready.pop_front()?.to_string();
        line.push('\n');
        Some(line.into())
    }
}
