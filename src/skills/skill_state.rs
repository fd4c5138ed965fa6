//! Which of the declared skills are offered. Pure.

use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::bundle::Bundle;
use crate::resource::{DeclaredObject, ObjectKey, Problem, Reason, SkillContent, SkillSpec};

/// Where every declared skill stands.
#[derive(Clone, Debug, Default)]
pub struct SkillStates {
    /// True once all skills are known: before, one that is not here may be yet to come.
    pub complete: bool,
    /// By their keys; a skill that stands where it stood keeps its `Arc`.
    pub skills: OrdMap<ObjectKey, Arc<SkillState>>,
}

/// Where one skill stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillState {
    /// The object's.
    pub uid: Arc<str>,
    /// Its last good content; `None` before there is one.
    pub bundle: Option<Arc<Bundle>>,
    /// Why its newest content is not that.
    pub content_problem: Option<Problem>,
    /// The server that it waits for.
    pub missing_server: Option<MissingServer>,
    /// Withdrawn by its declaration.
    pub suspended: bool,
}

/// A server that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingServer {
    /// Which, and why.
    pub problem: Problem,
    /// The servers of the start are not all known, or still connecting: it may be there in a moment.
    pub during_startup: bool,
}

/// What is known of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerPresence {
    /// `early` as in [`MissingServer`].
    Undeclared {
        during_startup: bool,
    },
    Detached {
        during_startup: bool,
    },
    Attached,
}

impl SkillState {
    /// What agents get: its last good content, if nothing stands in the way.
    pub fn offered(&self) -> Option<&Arc<Bundle>> {
        self.bundle.as_ref().filter(|_| !self.suspended && self.missing_server.is_none())
    }

    /// The next standing of a skill, from its last and from what is known of it and of its servers.
    pub(super) fn compute(
        last: Option<&Self>,
        skill: &DeclaredObject<SkillSpec>,
        content: Option<&SkillContent>,
        server: impl Fn(&ObjectKey) -> ServerPresence,
    ) -> Self {
        let uid = skill.meta.uid.clone();
        let last = last.filter(|last| last.uid == uid).and_then(|last| last.bundle.clone());
        let (bundle, problem) = match content {
            Some(Ok(bundle)) => (Some(bundle.clone()), None),
            Some(Err(problem)) => (last, Some(problem.clone())),
            None => (last, None),
        };
        let missing = |name: &str| {
            let (why, early) = match server(&ObjectKey::new(skill.meta.key.namespace.clone(), name)) {
                ServerPresence::Attached => return None,
                ServerPresence::Undeclared { during_startup: early } => {
                    (format!("server {name:?} is not declared in this namespace"), early)
                }
                ServerPresence::Detached { during_startup: early } => {
                    (format!("server {name:?} is declared and not attached"), early)
                }
            };
            Some(MissingServer { problem: Problem::new(Reason::ServerNotFound, why), during_startup: early })
        };
        let refs = skill.spec.iter().flat_map(|spec| &spec.server_refs);
        let server =
            refs.filter_map(|wanted| missing(&wanted.name)).min_by_key(|missing| missing.during_startup);
        let suspended = skill.spec.as_ref().is_some_and(|spec| spec.suspend);
        Self { uid, bundle, content_problem: problem, missing_server: server, suspended }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::testing::meta;

    fn skill(spec: Value) -> DeclaredObject<SkillSpec> {
        DeclaredObject {
            meta: meta("s", 1),
            spec: Some(serde_json::from_value(spec).unwrap()),
            spec_digest: None,
            rejected: None,
            endpoint: None,
        }
    }

    #[test]
    fn skill_is_offered_only_with_content_and_all_its_servers() {
        let good = Arc::new(Bundle::from_text("s", "---\nname: s\ndescription: x\n---\n").unwrap());
        let (good, bad): (SkillContent, SkillContent) =
            (Ok(good), Err(Problem::new(Reason::InvalidSpec, "bad")));
        let refs = json!({ "inline": "x", "serverRefs": [{ "name": "a" }, { "name": "b" }] });
        let plain = json!({ "inline": "x" });
        let last = SkillState::compute(None, &skill(plain.clone()), Some(&good), |_| {
            ServerPresence::Undeclared { during_startup: true }
        });
        let other = SkillState { uid: "another".into(), ..last.clone() };
        let server = |a, b| move |key: &ObjectKey| if &*key.name == "a" { a } else { b };
        let (up, gone) = (ServerPresence::Attached, ServerPresence::Undeclared { during_startup: false });
        let (down, soon) = (
            ServerPresence::Detached { during_startup: false },
            ServerPresence::Detached { during_startup: true },
        );
        let suspended = json!({ "inline": "x", "suspend": true });
        for (last, spec, content, servers, offered, missing) in [
            (None, &plain, Some(&good), (gone, gone), true, ""),
            (None, &plain, None, (gone, gone), false, ""),
            (None, &plain, Some(&bad), (gone, gone), false, ""),
            (Some(&last), &plain, Some(&bad), (gone, gone), true, ""),
            (Some(&other), &plain, Some(&bad), (gone, gone), false, ""),
            (None, &suspended, Some(&good), (gone, gone), false, ""),
            (None, &refs, Some(&good), (up, up), true, ""),
            (None, &refs, Some(&good), (up, gone), false, "server \"b\" is not declared in this namespace"),
            (None, &refs, Some(&good), (down, up), false, "server \"a\" is declared and not attached"),
            (None, &refs, Some(&good), (soon, up), false, "early server \"a\" is declared and not attached"),
            (None, &refs, Some(&good), (soon, gone), false, "server \"b\" is not declared in this namespace"),
        ] {
            let next = SkillState::compute(last, &skill(spec.clone()), content, server(servers.0, servers.1));
            let told = next.missing_server.as_ref().map(|missing| {
                format!("{}{}", if missing.during_startup { "early " } else { "" }, missing.problem.message)
            });
            assert_eq!((next.offered().is_some(), &*told.unwrap_or_default()), (offered, missing), "{spec}");
        }
    }
}
