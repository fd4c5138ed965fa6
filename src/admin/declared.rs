//! Serves the declarations in force as digests of their parts, for `evenkeel plan`. Served on the Unix socket only.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::plan::DeclarationParts;
use crate::resource::{DeclaredMeta, Desired, DigestKey, ObjectKey, WorkingDirectory};
use crate::source::{AllowedStdio, StdioPolicy};

/// The path of the endpoint.
pub const DECLARED_PATH: &str = "/declared";

/// The declarations in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeclaredState {
    /// The servers.
    pub servers: Vec<DeclaredParts>,
    /// The skills.
    pub skills: Vec<DeclaredParts>,
    /// The stdio servers that may run; all of them if absent.
    pub allowed: Option<AllowedStdio>,
    /// The directory of the declarations, if they are in one, as it was given. Relative paths are relative to it.
    pub root: Option<PathBuf>,
}

/// The parts of one declared object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeclaredParts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The generation in force.
    pub generation: i64,
    /// The file that declares it.
    pub file: Option<String>,
    /// The parts of its last good declaration; `None` if it never had one.
    pub parts: Option<DeclarationParts>,
}

impl DeclaredParts {
    /// Returns its namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }

    fn new(meta: &DeclaredMeta, parts: Option<DeclarationParts>) -> Self {
        let file = meta.file().map(|file| file.display().to_string());
        Self {
            namespace: meta.key.namespace.to_string(),
            name: meta.key.name.to_string(),
            uid: meta.uid.to_string(),
            generation: meta.generation,
            file,
            parts,
        }
    }
}

/// Returns the route that serves the current declarations. `root` is their directory, if they are in one.
pub fn declared_routes(
    desired: watch::Receiver<Arc<Desired>>,
    key: DigestKey,
    policy: StdioPolicy,
    root: Option<PathBuf>,
) -> Router {
    Router::new().route(DECLARED_PATH, get(get_declared)).with_state((desired, key, policy, root))
}

type DeclaredRouteState = (watch::Receiver<Arc<Desired>>, DigestKey, StdioPolicy, Option<PathBuf>);

async fn get_declared(State((desired, key, policy, root)): State<DeclaredRouteState>) -> Response {
    let desired = Arc::clone(&desired.borrow());
    // Digests of ten thousand servers take too long for a worker thread.
    match tokio::task::spawn_blocking(move || DeclaredState::from_desired(&desired, &key, &policy, root))
        .await
    {
        Ok(in_force) => Json(in_force).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl DeclaredState {
    /// Returns the last good declaration of each object as digests. `root` is the directory of the declarations, if
    /// they are in one.
    pub fn from_desired(
        desired: &Desired,
        key: &DigestKey,
        policy: &StdioPolicy,
        root: Option<PathBuf>,
    ) -> Self {
        let base = root
            .map(|root| WorkingDirectory { root, default_cwd: policy.working_directory().map(Into::into) });
        let servers = desired.servers.values().map(|server| {
            let parts = DeclarationParts::declared(server, base.as_ref());
            DeclaredParts::new(&server.meta, parts.map(|parts| parts.into_digests(key)))
        });
        let skills = desired.skills.iter().map(|(name, skill)| {
            let parts = DeclarationParts::declared_skill(skill, desired.skill_contents.get(name));
            DeclaredParts::new(&skill.meta, parts.map(|parts| parts.into_digests(key)))
        });
        Self {
            servers: servers.collect(),
            skills: skills.collect(),
            allowed: policy.configured().cloned(),
            root: base.map(|base| base.root),
        }
    }
}
