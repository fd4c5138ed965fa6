//! What is declared and in force, as digests of its parts: for `evenkeel plan`, on the socket alone.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::plan::Parts;
use crate::resource::{Desired, DigestKey, Meta, ObjectKey, Origin};
use crate::source::{AllowedStdio, Policy};

/// Where it is served.
pub const DECLARED: &str = "/declared";

/// What is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InForce {
    /// The servers.
    pub servers: Vec<Object>,
    /// The skills.
    pub skills: Vec<Object>,
    /// Which stdio servers may run; everything if nothing is said.
    pub allowed: Option<AllowedStdio>,
}

/// One object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
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
    pub parts: Option<Parts>,
}

impl Object {
    /// Its namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }

    fn new(meta: &Meta, parts: Option<Parts>) -> Self {
        let file = match &meta.origin {
            Origin::File { path, .. } => Some(path.display().to_string()),
            Origin::Cluster { .. } => None,
        };
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

/// Answers from what is desired now.
pub fn declared(desired: watch::Receiver<Arc<Desired>>, key: DigestKey, policy: Policy) -> Router {
    Router::new().route(DECLARED, get(answer)).with_state((desired, key, policy))
}

type Known = (watch::Receiver<Arc<Desired>>, DigestKey, Policy);

async fn answer(State((desired, key, policy)): State<Known>) -> Response {
    let desired = Arc::clone(&desired.borrow());
    // Ten thousand servers take a moment.
    match tokio::task::spawn_blocking(move || in_force(&desired, &key, &policy)).await {
        Ok(in_force) => Json(in_force).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn in_force(desired: &Desired, key: &DigestKey, policy: &Policy) -> InForce {
    let servers = desired.servers.values();
    let skills = desired.skills.iter();
    InForce {
        servers: servers.map(|server| Object::new(&server.meta, Parts::of_server(server, key))).collect(),
        skills: skills
            .map(|(name, skill)| {
                Object::new(&skill.meta, Parts::of_skill(skill, desired.contents.get(name), key))
            })
            .collect(),
        allowed: policy.written().cloned(),
    }
}
