//! What is declared and in force, as digests of its parts: for `evenkeel plan`, on the socket alone.

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

/// Where it is served.
pub const DECLARED_PATH: &str = "/declared";

/// What is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeclaredState {
    /// The servers.
    pub servers: Vec<DeclaredParts>,
    /// The skills.
    pub skills: Vec<DeclaredParts>,
    /// Which stdio servers may run; everything if nothing is said.
    pub allowed: Option<AllowedStdio>,
    /// The directory that it is declared in, if in one, as it was given: what relative paths are relative to.
    pub root: Option<PathBuf>,
}

/// One object.
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
    /// Of its last good declaration; `None` if it never had one.
    pub parts: Option<DeclarationParts>,
}

impl DeclaredParts {
    /// Its namespace and name.
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

/// Answers from what is desired now. `root` is the directory that it is declared in, if in one.
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
    // Ten thousand servers take a moment.
    match tokio::task::spawn_blocking(move || DeclaredState::from_desired(&desired, &key, &policy, root))
        .await
    {
        Ok(in_force) => Json(in_force).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl DeclaredState {
    /// Gives the last good declaration of each object, as digests. `root` is the directory that they are declared in, if
    /// in one.
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
