//! The states of the declared skills, and which of them are offered. Pure.

use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::bundle::Bundle;
use crate::resource::{DeclaredObject, ObjectKey, Problem, Reason, SkillContent, SkillSpec};

/// The states of all declared skills.
#[derive(Clone, Debug, Default)]
pub struct SkillStates {
    /// True once all skills were read: until then a missing skill may still appear.
    pub complete: bool,
    /// The states by key; an unchanged state keeps its `Arc`.
    pub skills: OrdMap<ObjectKey, Arc<SkillState>>,
}

/// The state of one skill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillState {
    /// The uid of the skill's object.
    pub uid: Arc<str>,
    /// The last valid content; `None` if there was none yet.
    pub bundle: Option<Arc<Bundle>>,
    /// The problem of the newest content, if that is invalid.
    pub content_problem: Option<Problem>,
    /// A server that the skill refers to and that is not attached.
    pub missing_server: Option<MissingServer>,
    /// True if the declaration suspends the skill.
    pub suspended: bool,
}

/// A server that a skill refers to and that is not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingServer {
    /// The problem, with the server's name.
    pub problem: Problem,
    /// True while not all servers of the startup are declared or attached: the server may appear shortly.
    pub during_startup: bool,
}

/// The presence of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerPresence {
    /// The server is not declared. `during_startup` is as in [`MissingServer`].
    Undeclared {
        during_startup: bool,
    },
    Detached {
        during_startup: bool,
    },
    Attached,
}

impl SkillState {
    /// Returns the content that agents get: the last valid one, unless the skill is suspended or lacks a server.
    pub fn offered(&self) -> Option<&Arc<Bundle>> {
        self.bundle.as_ref().filter(|_| !self.suspended && self.missing_server.is_none())
    }

    /// Returns true if the skill is not offered, but may be shortly: its content was not read yet, or its server may
    /// appear during startup.
    pub(super) fn is_pending(&self) -> bool {
        let may_get_content = self.bundle.is_some() || self.content_problem.is_none();
        let may_get_server = self.missing_server.as_ref().is_none_or(|missing| missing.during_startup);
        !self.suspended && self.offered().is_none() && may_get_content && may_get_server
    }

    /// Computes the next state of a skill from its last state, its declaration and content, and its servers.
    pub(super) fn compute(
        last: Option<&Self>,
        skill: &DeclaredObject<SkillSpec>,
        content: Option<&SkillContent>,
        server: impl Fn(&ObjectKey) -> ServerPresence,
    ) -> Self {
        let uid = skill.meta.uid.clone();
        let last = last.filter(|last| last.uid == uid).and_then(|last| last.bundle.clone());
        let (bundle, content_problem) = match content {
            Some(Ok(bundle)) => (Some(bundle.clone()), None),
            Some(Err(problem)) => (last, Some(problem.clone())),
            None => (last, None),
        };
        let missing = |name: &str| {
            let (message, during_startup) =
                match server(&ObjectKey::new(skill.meta.key.namespace.clone(), name)) {
                    ServerPresence::Attached => return None,
                    ServerPresence::Undeclared { during_startup } => {
                        (format!("server {name:?} is not declared in this namespace"), during_startup)
                    }
                    ServerPresence::Detached { during_startup } => {
                        (format!("server {name:?} is declared but not attached"), during_startup)
                    }
                };
            Some(MissingServer { problem: Problem::new(Reason::ServerNotFound, message), during_startup })
        };
        let refs = skill.spec.iter().flat_map(|spec| &spec.server_refs);
        let missing_server =
            refs.filter_map(|server| missing(&server.name)).min_by_key(|missing| missing.during_startup);
        let suspended = skill.spec.as_ref().is_some_and(|spec| spec.suspend);
        Self { uid, bundle, content_problem, missing_server, suspended }
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
    fn skill_is_pending_while_its_content_or_its_server_may_follow() {
        let valid: SkillContent =
            Ok(Arc::new(Bundle::from_text("s", "---\nname: s\ndescription: x\n---\n").unwrap()));
        let invalid = Err(Problem::new(Reason::InvalidSpec, "bad"));
        let (plain, refs) = (json!({ "inline": "x" }), json!({ "serverRefs": [{ "name": "a" }] }));
        let detached = |during_startup| ServerPresence::Detached { during_startup };
        for (spec, content, server, expected) in [
            (&plain, None, detached(false), true),
            (&plain, Some(&valid), detached(false), false),
            (&plain, Some(&invalid), detached(false), false),
            (&refs, Some(&valid), detached(true), true),
            (&refs, Some(&valid), detached(false), false),
            (&refs, Some(&valid), ServerPresence::Attached, false),
            (&json!({ "suspend": true }), None, detached(true), false),
        ] {
            let state = SkillState::compute(None, &skill(spec.clone()), content, |_| server);
            assert_eq!(state.is_pending(), expected, "{spec} {content:?} {server:?}");
        }
    }

    #[test]
    fn skill_is_offered_only_with_content_and_all_its_servers() {
        let valid = Arc::new(Bundle::from_text("s", "---\nname: s\ndescription: x\n---\n").unwrap());
        let (valid, invalid): (SkillContent, SkillContent) =
            (Ok(valid), Err(Problem::new(Reason::InvalidSpec, "bad")));
        let refs = json!({ "inline": "x", "serverRefs": [{ "name": "a" }, { "name": "b" }] });
        let plain = json!({ "inline": "x" });
        let last = SkillState::compute(None, &skill(plain.clone()), Some(&valid), |_| {
            ServerPresence::Undeclared { during_startup: true }
        });
        let other = SkillState { uid: "another".into(), ..last.clone() };
        let server = |a, b| move |key: &ObjectKey| if &*key.name == "a" { a } else { b };
        let (attached, undeclared) =
            (ServerPresence::Attached, ServerPresence::Undeclared { during_startup: false });
        let (detached, starting) = (
            ServerPresence::Detached { during_startup: false },
            ServerPresence::Detached { during_startup: true },
        );
        let suspended = json!({ "inline": "x", "suspend": true });
        for (last, spec, content, servers, offered, missing) in [
            (None, &plain, Some(&valid), (undeclared, undeclared), true, ""),
            (None, &plain, None, (undeclared, undeclared), false, ""),
            (None, &plain, Some(&invalid), (undeclared, undeclared), false, ""),
            (Some(&last), &plain, Some(&invalid), (undeclared, undeclared), true, ""),
            (Some(&other), &plain, Some(&invalid), (undeclared, undeclared), false, ""),
            (None, &suspended, Some(&valid), (undeclared, undeclared), false, ""),
            (None, &refs, Some(&valid), (attached, attached), true, ""),
            (
                None,
                &refs,
                Some(&valid),
                (attached, undeclared),
                false,
                "server \"b\" is not declared in this namespace",
            ),
            (
                None,
                &refs,
                Some(&valid),
                (detached, attached),
                false,
                "server \"a\" is declared but not attached",
            ),
            (
                None,
                &refs,
                Some(&valid),
                (starting, attached),
                false,
                "starting: server \"a\" is declared but not attached",
            ),
            (
                None,
                &refs,
                Some(&valid),
                (starting, undeclared),
                false,
                "server \"b\" is not declared in this namespace",
            ),
        ] {
            let next = SkillState::compute(last, &skill(spec.clone()), content, server(servers.0, servers.1));
            let message = next.missing_server.as_ref().map(|missing| {
                format!(
                    "{}{}",
                    if missing.during_startup { "starting: " } else { "" },
                    missing.problem.message
                )
            });
            assert_eq!(
                (next.offered().is_some(), &*message.unwrap_or_default()),
                (offered, missing),
                "{spec}"
            );
        }
    }
}
