use std::collections::BTreeSet;

use jiff::Timestamp;

use super::conditions::{
    ConditionMessages, ConditionStatus, ConditionValue, ConditionsBuilder, NextAttempt, find_condition,
    problem_message,
};
use crate::catalog::{NameConflict, NameHolderState};
use crate::fleet::{LiveServer, Observation, Phase};
use crate::plan::ConnectionTarget;
use crate::resource::{
    ConditionType, DeclaredObject, McpServerSpec, McpServerStatus, Problem, RECONCILE_REQUESTED_AT, Reason,
};
use crate::text;
use crate::wire::ListKind;

#[cfg(test)]
mod tests;

/// The maximum number of name conflicts that a message lists. Further ones are only counted.
const MAX_LISTED_CONFLICTS: usize = 5;

/// Returns the status of one server, and the messages of its conditions without the next attempt.
///
/// `conflicts` are the items of this server whose names needed a hash suffix.
/// Guarantees that equal arguments (except `now`) and the previous result as `previous` give the same status again, so
/// that nothing is written. Until the fleet has applied a new generation, the status describes the previous one, as its
/// `observedGeneration` shows.
pub fn server_status(
    declared: &DeclaredObject<McpServerSpec>,
    observation: Option<&Observation>,
    conflicts: &[NameConflict],
    previous: Option<&McpServerStatus>,
    now: Timestamp,
) -> (McpServerStatus, ConditionMessages) {
    let meta = &declared.meta;
    // An observation of another object of the same name, or the last one of a detached server, is not used.
    let seen = observation.filter(|seen| seen.uid == meta.uid && !matches!(seen.phase, Phase::Detached(_)));
    if let (Some(previous), Some(seen)) = (previous, seen)
        && (is_generation_pending(declared, seen, previous) || is_waking(seen, previous))
    {
        return (previous.clone(), ConditionMessages::default());
    }
    let work = ServerPhase::determine(declared, seen, &|at| display_time(at, previous, now));
    let offered = seen.filter(|seen| !matches!(seen.phase, Phase::Draining(_)));
    let listed = offered.and_then(|seen| seen.live_server.as_deref());
    let live = listed.filter(|_| !seen.is_some_and(|seen| matches!(seen.phase, Phase::Idle)));

    let mut conditions =
        ConditionsBuilder::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    conditions.set(ConditionType::Ready, ready_condition(declared, &work, listed));
    conditions.set(ConditionType::Accepted, accepted_condition(declared, &work, conflicts));
    conditions.set(ConditionType::ResolvedRefs, resolved_refs_condition(declared));
    conditions.set(ConditionType::Attached, attached_condition(declared, &work, live, previous));
    if let Some(verdict) = reconciling_condition(&work, seen) {
        conditions.set(ConditionType::Reconciling, verdict);
    }
    if let Some(verdict) = stalled_condition(&work) {
        conditions.set(ConditionType::Stalled, verdict);
    }
    if let Some(verdict) = degraded_condition(offered) {
        conditions.set(ConditionType::Degraded, verdict);
    }

    let (conditions, sentences) = conditions.finish();
    let status = McpServerStatus {
        observed_generation: Some(meta.generation),
        attached_generation: live.map(|live| live.generation),
        conditions,
        server_info: listed.map(|listed| listed.description.server_info.clone()),
        protocol_version: listed.map(|listed| listed.description.protocol_version.clone()),
        transport: declared.spec.as_ref().map(|spec| spec.transport_name().to_owned()),
        tools: listed.map(|listed| listed.tools),
        prompts: listed.map(|listed| listed.prompts),
        resources: listed.map(|listed| listed.resources),
        catalog_digest: listed.map(|listed| listed.catalog_digest.to_string()),
        spec_digest: declared.spec_digest.map(|digest| digest.to_string()),
        next_retry_time: seen.and_then(next_retry_at).map(rfc3339),
        restarts: seen.map(|seen| seen.restarts),
        last_handled_reconcile_at: last_handled_request(declared, seen).map(str::to_owned),
        last_applied_revision: Some(meta.revision.to_string()),
    };
    (status, sentences)
}

/// Returns the last reconcile request that was handled. If the fleet has nothing to do for this declaration, the request
/// is handled by computing this status.
fn last_handled_request<'a>(
    declared: &'a DeclaredObject<McpServerSpec>,
    seen: Option<&'a Observation>,
) -> Option<&'a str> {
    if ConnectionTarget::exists_for(declared) {
        return seen.and_then(|seen| seen.last_handled_request.as_deref());
    }
    declared.meta.annotations.get(RECONCILE_REQUESTED_AT).map(String::as_str)
}

/// True while the fleet has not yet reported that it applies a new generation.
fn is_generation_pending(
    declared: &DeclaredObject<McpServerSpec>,
    seen: &Observation,
    previous: &McpServerStatus,
) -> bool {
    declared.rejected.is_none()
        && seen.generation < declared.meta.generation
        && previous.observed_generation == Some(seen.generation)
        && ConnectionTarget::exists_for(declared)
}

/// True while an idle server is connecting because of a call. Its status is kept, because it is as usable as before.
fn is_waking(seen: &Observation, previous: &McpServerStatus) -> bool {
    let idle = Reason::Idle.to_string();
    matches!(seen.phase, Phase::Connecting { last_problem: None, .. })
        && previous.observed_generation == Some(seen.generation)
        && find_condition(&previous.conditions, ConditionType::Ready)
            .is_some_and(|ready| ready.reason == idle)
}

/// The state of a server that determines its conditions.
enum ServerPhase<'a> {
    /// The latest declaration is rejected. The previous one, if any, stays applied.
    Rejected(&'a Problem),
    /// Being removed or suspended; calls in flight are finishing.
    Draining(Reason),
    /// Suspended by its spec.
    Suspended,
    /// A reference is missing, and this generation has not been applied yet.
    Unresolved(&'a Problem),
    /// The fleet has not applied it yet.
    Pending,
    Connecting {
        attempt: u32,
        last: Option<&'a Problem>,
    },
    Attached,
    /// Offered to agents without a connection.
    Idle,
    Failed {
        problem: &'a Problem,
        /// The time in human-readable form.
        retry_at: Option<String>,
        attempt: u32,
    },
}

impl<'a> ServerPhase<'a> {
    fn determine(
        declared: &'a DeclaredObject<McpServerSpec>,
        seen: Option<&'a Observation>,
        clock: &dyn Fn(Timestamp) -> String,
    ) -> Self {
        if let Some(problem) = declared.rejection() {
            return Self::Rejected(problem);
        }
        if let Some(Phase::Draining(reason)) = seen.map(|seen| &seen.phase) {
            return Self::Draining(*reason);
        }
        if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
            return Self::Suspended;
        }
        let current = seen.filter(|seen| seen.generation == declared.meta.generation);
        match (current.map(|seen| &seen.phase), &declared.endpoint) {
            // A Secret that is deleted later does not end the connection, whose state then decides.
            (None, Some(Err(problem))) => Self::Unresolved(problem),
            (None | Some(Phase::Draining(_) | Phase::Detached(_)), _) => Self::Pending,
            (Some(Phase::Connecting { attempt, last_problem: last }), _) => {
                Self::Connecting { attempt: *attempt, last: last.as_ref() }
            }
            (Some(Phase::Attached), _) => Self::Attached,
            (Some(Phase::Idle), _) => Self::Idle,
            (Some(Phase::Failed { problem, retry_at, attempt }), _) => {
                Self::Failed { problem, retry_at: retry_at.map(clock), attempt: *attempt }
            }
        }
    }

    /// True if evenkeel makes no progress until an operator acts.
    fn is_stalled(&self) -> bool {
        match self {
            Self::Rejected(_) => true,
            Self::Failed { problem, retry_at, .. } => {
                problem.reason.requires_user_action() || retry_at.is_none()
            }
            _ => false,
        }
    }
}

fn ready_condition(
    declared: &DeclaredObject<McpServerSpec>,
    work: &ServerPhase<'_>,
    listed: Option<&LiveServer>,
) -> ConditionValue {
    match work {
        ServerPhase::Rejected(problem) => ConditionValue::from_problem(problem, ""),
        ServerPhase::Draining(reason) => ConditionValue::new_false(
            Reason::Draining,
            format!("{}; calls in flight are finishing", withdrawal_message(*reason)),
        ),
        ServerPhase::Suspended => ConditionValue::new_false(Reason::Suspended, "suspended by spec.suspend"),
        // These need a restart or another declaration, as their message explains.
        ServerPhase::Unresolved(problem)
            if matches!(problem.reason, Reason::VariableNotFound | Reason::NotPermitted) =>
        {
            ConditionValue::from_problem(problem, "")
        }
        ServerPhase::Unresolved(problem) => {
            ConditionValue::from_problem(problem, "will be attached once it exists")
        }
        ServerPhase::Pending => {
            ConditionValue::new_false(Reason::Connecting, "waiting for an attempt to connect")
        }
        ServerPhase::Connecting { attempt, last: None } => {
            ConditionValue::new_false(Reason::Connecting, format!("connecting, attempt {attempt}"))
        }
        // The reason is kept from one attempt to the next, so that a server that keeps failing always shows it.
        ServerPhase::Connecting { attempt, last: Some(problem) } => {
            ConditionValue::from_problem(problem, &format!("attempt {attempt} is in progress"))
        }
        ServerPhase::Attached => {
            let transport = declared.spec.as_deref().map_or("", McpServerSpec::transport_name);
            ConditionValue::new_true(
                Reason::Attached,
                format!("attached over {transport}, {}", offered_counts(listed)),
            )
        }
        ServerPhase::Idle => ConditionValue::new_true(
            Reason::Idle,
            format!("connects on the next call, {}", offered_counts(listed)),
        ),
        ServerPhase::Failed { problem, retry_at: Some(at), .. } if problem.reason.requires_user_action() => {
            ConditionValue::from_retried_problem(problem, NextAttempt::Recheck { at: at.clone() })
        }
        ServerPhase::Failed { problem, retry_at: Some(at), attempt } => ConditionValue::from_retried_problem(
            problem,
            NextAttempt::Retry { at: at.clone(), attempt: *attempt },
        ),
        ServerPhase::Failed { problem, retry_at: None, .. } => {
            ConditionValue::from_problem(problem, "not retried until the declaration or a secret changes")
        }
    }
}

fn accepted_condition(
    declared: &DeclaredObject<McpServerSpec>,
    work: &ServerPhase<'_>,
    conflicts: &[NameConflict],
) -> ConditionValue {
    if let Some(problem) = declared.rejection() {
        return ConditionValue::from_problem(problem, "");
    }
    // That the server is this evenkeel instance itself shows only when it is connected; it must not be its own server.
    if let ServerPhase::Failed { problem, .. } = work
        && problem.reason == Reason::PolicyDenied
    {
        return ConditionValue::from_problem(problem, "");
    }
    if conflicts.is_empty() {
        return ConditionValue::new_true(Reason::Accepted, "the declaration is valid");
    }
    // The same item may conflict with the same name in more than one view.
    let names: BTreeSet<_> = conflicts
        .iter()
        .map(
            |NameConflict {
                 bare_name: wanted, assigned_name: given, holder, holder_state: holding, ..
             }| {
                let why = match holding {
                    NameHolderState::Current => "has",
                    NameHolderState::Former => "had and which is kept for an hour",
                    NameHolderState::Prospective => "may have: it was created first, and is being connected",
                };
                format!("{given} and not {wanted}, which {holder} {why}")
            },
        )
        .collect();
    let mut listed: Vec<_> = names.iter().take(MAX_LISTED_CONFLICTS).map(String::as_str).collect();
    let more = format!("{} more", names.len() - listed.len());
    if names.len() > listed.len() {
        listed.push(&more);
    }
    // URIs have no prefix, so expose.prefix does not help there.
    let prefixed =
        conflicts.iter().any(|conflict| matches!(conflict.list, ListKind::Tools | ListKind::Prompts));
    let advice = if prefixed { "; expose.prefix keeps names apart" } else { "" };
    ConditionValue::new_true(Reason::NameConflict, format!("agents see {}{advice}", listed.join(", ")))
}

fn resolved_refs_condition(declared: &DeclaredObject<McpServerSpec>) -> ConditionValue {
    match (&declared.endpoint, declared.rejection()) {
        (Some(Err(denied)), Some(problem)) if denied == problem => ConditionValue::new(
            ConditionStatus::Unknown,
            problem.reason,
            "not looked up: the server is not permitted to run",
        ),
        (Some(Ok(_)), _) => ConditionValue::new_true(Reason::ResolvedRefs, "all references were found"),
        (Some(Err(problem)), _) => ConditionValue::from_problem(problem, ""),
        (None, refused) => ConditionValue::new(
            ConditionStatus::Unknown,
            refused.map_or(Reason::Progressing, |problem| problem.reason),
            "not looked up: there is no valid declaration",
        ),
    }
}

fn attached_condition(
    declared: &DeclaredObject<McpServerSpec>,
    work: &ServerPhase<'_>,
    live: Option<&LiveServer>,
    previous: Option<&McpServerStatus>,
) -> ConditionValue {
    let wanted = declared.meta.generation;
    if let Some(LiveServer { generation, .. }) = live {
        return match work {
            ServerPhase::Attached if *generation == wanted => {
                ConditionValue::new_true(Reason::Attached, format!("generation {generation} is live"))
            }
            ServerPhase::Rejected(_) => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                format!("the previously accepted generation {generation} is live"),
            ),
            // A Secret changed: a new connection is made for the same generation.
            _ if *generation == wanted => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                "the previous connection is kept until the new one is attached",
            ),
            _ => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                format!("generation {generation} is kept until generation {wanted} is attached"),
            ),
        };
    }
    match work {
        ServerPhase::Draining(reason) => {
            ConditionValue::new_false(Reason::Detached, withdrawal_message(*reason))
        }
        ServerPhase::Suspended => {
            ConditionValue::new_false(Reason::Detached, "detached: suspended by spec.suspend")
        }
        ServerPhase::Idle => ConditionValue::new_false(Reason::Detached, "not connected until the next call"),
        ServerPhase::Connecting { .. } | ServerPhase::Failed { .. } | ServerPhase::Rejected(_)
            if was_attached(previous) =>
        {
            ConditionValue::new_false(Reason::Reconnecting, "the connection was lost; reconnecting")
        }
        _ => ConditionValue::new_false(Reason::Detached, "not attached"),
    }
}

fn was_attached(previous: Option<&McpServerStatus>) -> bool {
    previous
        .and_then(|previous| find_condition(&previous.conditions, ConditionType::Attached))
        .is_some_and(|before| before.status == "True" || before.reason == Reason::Reconnecting.to_string())
}

/// Returns the Reconciling condition. It is never set together with Stalled, because kstatus would treat a stalled
/// object as in progress.
fn reconciling_condition(work: &ServerPhase<'_>, seen: Option<&Observation>) -> Option<ConditionValue> {
    if work.is_stalled() {
        return None;
    }
    if let (ServerPhase::Attached, Some(problem)) = (work, seen.and_then(|seen| seen.paused.as_ref())) {
        let next = "the previous lists are kept until the next refresh";
        return Some(ConditionValue::new_true(Reason::ProgressingWithRetry, problem_message(problem, next)));
    }
    let (reason, message) = match work {
        ServerPhase::Draining(_) => (Reason::Progressing, "calls in flight are finishing".to_owned()),
        ServerPhase::Pending => (Reason::Progressing, "waiting for an attempt to connect".to_owned()),
        ServerPhase::Unresolved(_) => {
            (Reason::ProgressingWithRetry, "waiting for a missing reference".to_owned())
        }
        ServerPhase::Connecting { attempt, last } => {
            let failed = last.is_some_and(|problem| problem.reason != Reason::Connecting);
            let reason = if failed { Reason::ProgressingWithRetry } else { Reason::Progressing };
            (reason, format!("attempt {attempt} is in progress"))
        }
        ServerPhase::Failed { retry_at, attempt, .. } => {
            let at = retry_at.as_deref().unwrap_or_default();
            (Reason::ProgressingWithRetry, format!("attempt {attempt} starts at {at}"))
        }
        ServerPhase::Rejected(_) | ServerPhase::Suspended | ServerPhase::Attached | ServerPhase::Idle => {
            return None;
        }
    };
    Some(ConditionValue::new_true(reason, message))
}

/// Returns the Degraded condition of a live server.
fn degraded_condition(seen: Option<&Observation>) -> Option<ConditionValue> {
    let problem = seen?.degraded.as_ref()?;
    let next = match problem.reason {
        Reason::ListUnavailable => "the previous list is kept until the next refresh",
        _ => "",
    };
    Some(ConditionValue::new_true(problem.reason, problem_message(problem, next)))
}

fn stalled_condition(work: &ServerPhase<'_>) -> Option<ConditionValue> {
    match work {
        ServerPhase::Rejected(problem) | ServerPhase::Failed { problem, .. } if work.is_stalled() => {
            Some(ConditionValue::new_true(problem.reason, problem_message(problem, "")))
        }
        _ => None,
    }
}

/// Returns the counts of offered items. Prompts and resources are omitted if there are none.
fn offered_counts(listed: Option<&LiveServer>) -> String {
    let Some(listed) = listed else { return "0 tools".to_owned() };
    let counted = |count, item| match count {
        1 => format!("1 {item}"),
        count => format!("{count} {item}s"),
    };
    let more = [(listed.prompts, "prompt"), (listed.resources, "resource")];
    let more = more.into_iter().filter(|(count, _)| *count > 0).map(|(count, item)| counted(count, item));
    std::iter::once(counted(listed.tools, "tool")).chain(more).collect::<Vec<_>>().join(", ")
}

fn withdrawal_message(reason: Reason) -> &'static str {
    match reason {
        Reason::Suspended => "suspended and no longer offered",
        _ => "no longer offered",
    }
}

fn next_retry_at(seen: &Observation) -> Option<Timestamp> {
    match seen.phase {
        Phase::Failed { retry_at, .. } => retry_at,
        _ => None,
    }
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%FT%TZ").to_string()
}

/// Formats a time for messages. If the previous status shows the same time, its format is kept.
fn display_time(at: Timestamp, previous: Option<&McpServerStatus>, now: Timestamp) -> String {
    let said = previous.filter(|previous| previous.next_retry_time.as_ref() == Some(&rfc3339(at)));
    match said.and_then(|said| find_condition(&said.conditions, ConditionType::Ready)) {
        Some(ready) if ready.message.contains(&text::format_date_time(at)) => text::format_date_time(at),
        Some(_) => text::format_time(at, at),
        None => text::format_time(at, now),
    }
}
