use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tracing::Level;

use super::conditions::{ConditionMessages, find_condition};
use super::event::bounded_note;
use super::{EventAction, Regarding};
use crate::oauth::AuthState;
use crate::resource::{
    ConditionType, DeclaredMeta, DeclaredObject, RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT, Reason,
};
use crate::text;

/// The maximum length of an issuer in a message, in characters.
const MAX_ISSUER_CHARS: usize = 200;
/// The length of an abbreviated commit id.
const SHORT_COMMIT_ID_CHARS: usize = 10;

/// A change of an object's state. It becomes a log line and, unless it is an intermediate step, an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StateChange {
    pub action: EventAction,
    pub reason: Reason,
    pub level: Level,
    pub message: String,
    /// The message without the next attempt, where the message contains one.
    pub short_message: Option<String>,
    /// The note of the event, where the message differs each time and would prevent aggregation.
    pub fixed_note: Option<&'static str>,
}

/// The event note for a ready server or skill whose message changed.
const OFFER_CHANGED_NOTE: &str = "the offered items changed";
/// The event note for a changed declaration in a cluster. It is fixed, because the API server does not accept a changed
/// note for an existing event.
const DECLARATION_CHANGED_NOTE: &str = "the declaration changed";

impl StateChange {
    /// Creates the change for an object that is no longer declared.
    pub fn removed() -> Self {
        Self::new(EventAction::Delete, Reason::Removed, Level::INFO, "no longer declared")
    }

    /// Creates the change for a removed server whose last connection has ended.
    pub fn detached() -> Self {
        Self::new(EventAction::Reconcile, Reason::Detached, Level::DEBUG, "detached")
    }

    /// Creates the change for a new object.
    pub fn created(meta: &DeclaredMeta) -> Self {
        let message = format!("declared{}", location_suffix(meta));
        Self::new(EventAction::Create, Reason::Created, Level::DEBUG, message)
    }

    /// Returns the change between two versions of a declaration. A rejected declaration is reported by its conditions
    /// instead.
    pub fn updated<S>(before: &DeclaredObject<S>, after: &DeclaredObject<S>) -> Option<Self> {
        let DeclaredMeta { generation, origin, labels, annotations, .. } = &after.meta;
        let was_requested = |name| {
            let [before, after] = [&before.meta, &after.meta].map(|meta| meta.annotations.get(name));
            after.is_some() && before != after
        };
        let value = |declared: &DeclaredObject<S>| Some(declared.endpoint.as_ref()?.as_ref().ok()?.digest());
        let change = |message| Self::new(EventAction::Update, Reason::Updated, Level::DEBUG, message);
        if before.meta.generation != *generation {
            let location = location_suffix(&after.meta);
            let comma = if location.is_empty() { "" } else { ", declared" };
            let fixed_note = origin.file().is_none().then_some(DECLARATION_CHANGED_NOTE);
            return Some(Self { fixed_note, ..change(format!("generation {generation}{comma}{location}")) });
        }
        let note = if value(before).is_some_and(|before| value(after).is_some_and(|after| after != before)) {
            "a referenced value changed"
        } else if was_requested(RECONNECT_REQUESTED_AT) {
            "a new connection was requested"
        } else if was_requested(RECONCILE_REQUESTED_AT) {
            "a reconcile was requested"
        } else if before.meta.labels != *labels || before.meta.annotations != *annotations {
            "labels or annotations changed"
        } else {
            return None;
        };
        Some(Self { fixed_note: Some(note), ..change(note.to_owned()) })
    }

    /// Returns the change between two states of a server's authorization: a login, a logout, or a renewal that failed.
    pub fn from_auth_states(before: Option<&AuthState>, after: Option<&AuthState>) -> Option<Self> {
        let change = |reason, level, message| Some(Self::new(EventAction::Reconcile, reason, level, message));
        let Some(after) = after else {
            return change(Reason::LoggedOut, Level::INFO, "the token was removed".to_owned());
        };
        if before.is_none_or(|before| before.login != after.login) && after.problem.is_none() {
            let issuer = text::sanitize(&after.issuer, MAX_ISSUER_CHARS);
            return change(Reason::LoggedIn, Level::INFO, format!("has a token of {issuer}"));
        }
        let had_problem = before.is_some_and(|before| before.problem == after.problem);
        let problem = after.problem.as_ref().filter(|_| !had_problem)?;
        let note = "the token could not be renewed";
        let mut change = Self::new(
            EventAction::Reconcile,
            Reason::TokenNotRenewed,
            Level::WARN,
            format!("{note}: {}", problem.message),
        );
        change.fixed_note = Some(note);
        Some(change)
    }

    /// Returns the change between two sets of conditions: that of the most important condition that changed.
    pub fn from_conditions(
        before: &[Condition],
        after: &[Condition],
        short_messages: &ConditionMessages,
    ) -> Option<Self> {
        let (kind, condition, is_transition) = first_changed_condition(before, after)?;
        let reason = condition.reason.parse().ok()?;
        let level = match reason {
            // The fleet logs the step that caused this.
            Reason::Connecting | Reason::Progressing => Level::DEBUG,
            reason if is_problem(reason) => Level::WARN,
            _ => Level::INFO,
        };
        let change = Self::new(EventAction::Reconcile, reason, level, &condition.message);
        let short_message = short_messages.get(kind).map(str::to_owned);
        Some(Self { short_message, fixed_note: (!is_transition).then_some(OFFER_CHANGED_NOTE), ..change })
    }

    pub fn new(action: EventAction, reason: Reason, level: Level, message: impl Into<String>) -> Self {
        Self { action, reason, level, message: message.into(), short_message: None, fixed_note: None }
    }

    /// True for an intermediate step, which is logged and not reported as an event.
    pub fn is_intermediate(&self) -> bool {
        matches!(self.reason, Reason::Connecting | Reason::Progressing)
    }

    pub fn is_warning(&self) -> bool {
        self.level == Level::WARN
    }

    /// Returns the message without the next attempt, shortened to a note.
    pub fn note(&self) -> String {
        bounded_note(self.short_message.as_ref().unwrap_or(&self.message))
    }

    pub fn log(&self, resource: &Regarding) {
        let Self { reason, message, level, .. } = self;
        match *level {
            Level::WARN => tracing::warn!(%resource, %reason, "{message}"),
            Level::INFO => tracing::info!(%resource, %reason, "{message}"),
            _ => tracing::debug!(%resource, %reason, "{message}"),
        }
    }
}

/// Returns the location of a declaration and its commit, as the end of a message.
fn location_suffix(meta: &DeclaredMeta) -> String {
    // An object in a cluster is identified by its name.
    meta.origin.file().map(|_| format!(" in {}{}", meta.origin, commit_suffix(meta))).unwrap_or_default()
}

/// Returns the commit of the last change, its author and subject, where they are known.
fn commit_suffix(meta: &DeclaredMeta) -> String {
    meta.last_commit.as_ref().map_or_else(String::new, |commit| {
        let id: String = commit.id.chars().take(SHORT_COMMIT_ID_CHARS).collect();
        format!(", commit {id} by {}: {}", commit.author, commit.subject)
    })
}

/// Returns the most important condition that changed, and true if its status or reason changed and not only its
/// message.
fn first_changed_condition<'a>(
    before: &[Condition],
    after: &'a [Condition],
) -> Option<(ConditionType, &'a Condition, bool)> {
    use ConditionType::{Accepted, Attached, Ready, Reconciling, ResolvedRefs};
    [Ready, Accepted, ResolvedRefs, Attached, Reconciling]
        .into_iter()
        .filter_map(|kind| Some((kind, find_condition(after, kind)?)))
        .find_map(|(kind, condition)| {
            let Some(previous) = find_condition(before, kind) else { return Some((kind, condition, true)) };
            let is_ready = kind == Ready && condition.status == "True";
            let is_transition = (&previous.status, &previous.reason)
                != (&condition.status, &condition.reason)
                || is_ready && previous.observed_generation != condition.observed_generation;
            // A changed message of a ready server means changed items.
            (is_transition || is_ready && previous.message != condition.message).then_some((
                kind,
                condition,
                is_transition,
            ))
        })
}

/// True if an operator should know about this reason: it is neither a declared state nor work that has only begun.
fn is_problem(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Suspended
            | Reason::Draining
            | Reason::Detached
            | Reason::Attached
            | Reason::ServingPreviousGeneration
            | Reason::Accepted
            | Reason::ResolvedRefs
            | Reason::Available
            | Reason::Idle
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::resource::Commit;
    use crate::resource::Origin;
    use crate::resource::testing::declared_server;

    #[test]
    fn changed_tool_count_has_a_fixed_event_note() {
        let ready = |message: &str| -> Vec<Condition> {
            let condition = serde_json::json!({
                "type": "Ready", "status": "True", "reason": "Attached", "message": message,
                "lastTransitionTime": "2026-11-21T12:00:00Z", "observedGeneration": 1,
            });
            vec![serde_json::from_value(condition).unwrap()]
        };
        let [two, three] = ["attached over http, 2 tools", "attached over http, 3 tools"].map(ready);
        let change = StateChange::from_conditions(&two, &three, &ConditionMessages::default()).unwrap();
        assert_eq!(
            (&*change.note(), change.fixed_note),
            ("attached over http, 3 tools", Some(OFFER_CHANGED_NOTE))
        );
        assert_eq!(
            StateChange::from_conditions(&[], &three, &ConditionMessages::default()).unwrap().fixed_note,
            None
        );
        assert_eq!(StateChange::from_conditions(&three, &three, &ConditionMessages::default()), None);
    }

    #[test]
    fn declaration_change_message_names_the_commit() {
        let before = declared_server("a", 1);
        let with = |change: fn(&mut DeclaredMeta)| {
            let mut after = before.clone();
            change(&mut after.meta);
            StateChange::updated(&before, &after).map(|change| change.message)
        };
        let commit = |meta: &mut DeclaredMeta| {
            meta.generation = 2;
            let [id, author, subject] =
                ["0123456789abcdef", "Ada <ada@example.com>", "Faster"].map(Into::into);
            meta.last_commit = Some(Arc::new(Commit { id, author, subject }));
        };
        assert_eq!(with(|_| ()), None);
        assert_eq!(
            with(commit).as_deref(),
            Some("generation 2, declared in a.yaml:1, commit 0123456789 by Ada <ada@example.com>: Faster")
        );
        for (message, expected) in [
            (with(|meta| drop(meta.labels.insert("l".into(), "v".into()))), "labels or annotations changed"),
            (
                with(|meta| drop(meta.annotations.insert(RECONCILE_REQUESTED_AT.into(), "1".into()))),
                "a reconcile was requested",
            ),
            (
                with(|meta| drop(meta.annotations.insert(RECONNECT_REQUESTED_AT.into(), "1".into()))),
                "a new connection was requested",
            ),
        ] {
            assert_eq!(message.as_deref(), Some(expected));
        }

        let mut after = before.clone();
        after.meta.generation = 48;
        after.meta.origin = Origin::Cluster { resource_version: "476".into() };
        let change = StateChange::updated(&before, &after).unwrap();
        assert_eq!((&*change.message, change.fixed_note), ("generation 48", Some(DECLARATION_CHANGED_NOTE)));
        assert_eq!(StateChange::created(&after.meta).message, "declared");
    }
}
