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

/// Names that a message lists before it only counts them.
const MAX_LISTED_CONFLICTS: usize = 5;

/// The status of one server, and what its conditions say without the next attempt.
///
/// `conflicts` are the tools of this server that had to take a hash tail.
/// Guarantees that equal arguments (but for `now`) and the status they gave before give that status again,
/// so that nothing is written. While the fleet has not taken up a new generation, the status goes on
/// speaking of the one before, and says so by its `observedGeneration`.
pub fn server_status(
    declared: &DeclaredObject<McpServerSpec>,
    observation: Option<&Observation>,
    conflicts: &[NameConflict],
    previous: Option<&McpServerStatus>,
    now: Timestamp,
) -> (McpServerStatus, ConditionMessages) {
    let meta = &declared.meta;
    // Of another object of the same name, or the last word on one that was detached: nothing is known.
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

/// The last request for a look that was obeyed. Where there is nothing for the fleet to do, that was this look.
fn last_handled_request<'a>(
    declared: &'a DeclaredObject<McpServerSpec>,
    seen: Option<&'a Observation>,
) -> Option<&'a str> {
    if ConnectionTarget::exists_for(declared) {
        return seen.and_then(|seen| seen.last_handled_request.as_deref());
    }
    declared.meta.annotations.get(RECONCILE_REQUESTED_AT).map(String::as_str)
}

/// True while there is a new generation for the fleet to act on and it has not said that it does.
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

/// True while a call has an idle server connected: it is as usable as it was, so nothing flaps.
fn is_waking(seen: &Observation, previous: &McpServerStatus) -> bool {
    let idle = Reason::Idle.to_string();
    matches!(seen.phase, Phase::Connecting { last_problem: None, .. })
        && previous.observed_generation == Some(seen.generation)
        && find_condition(&previous.conditions, ConditionType::Ready)
            .is_some_and(|ready| ready.reason == idle)
}

/// Where an object stands: the one thing of several that decides what its conditions say.
enum ServerPhase<'a> {
    /// The newest declaration is not accepted; the one before, if any, stays in force.
    Rejected(&'a Problem),
    /// Going away; calls in flight are finishing.
    Draining(Reason),
    /// Not wanted.
    Suspended,
    /// A reference is missing, and nothing was made from this generation yet.
    Unresolved(&'a Problem),
    /// The fleet has not taken it up yet.
    Pending,
    Connecting {
        attempt: u32,
        last: Option<&'a Problem>,
    },
    Attached,
    /// Offered without a connection.
    Idle,
    Failed {
        problem: &'a Problem,
        /// For people.
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
            // A secret deleted under a connection keeps the connection, and its state is what counts.
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

    /// True if nothing happens until a person acts.
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
        // Of these the message says all: what is missing comes with a new start or another declaration.
        ServerPhase::Unresolved(problem)
            if matches!(problem.reason, Reason::VariableNotFound | Reason::NotPermitted) =>
        {
            ConditionValue::from_problem(problem, "")
        }
        ServerPhase::Unresolved(problem) => {
            ConditionValue::from_problem(problem, "attached as soon as it is there")
        }
        ServerPhase::Pending => {
            ConditionValue::new_false(Reason::Connecting, "waiting for an attempt to connect")
        }
        ServerPhase::Connecting { attempt, last: None } => {
            ConditionValue::new_false(Reason::Connecting, format!("connecting, attempt {attempt}"))
        }
        // The reason stays from one attempt to the next, so that a server that keeps failing says why.
        ServerPhase::Connecting { attempt, last: Some(problem) } => {
            ConditionValue::from_problem(problem, &format!("attempt {attempt} is under way"))
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
            format!("connected by the next call, {}", offered_counts(listed)),
        ),
        ServerPhase::Failed { problem, retry_at: Some(at), .. } if problem.reason.requires_user_action() => {
            ConditionValue::from_retried_problem(problem, NextAttempt::Recheck { at: at.clone() })
        }
        ServerPhase::Failed { problem, retry_at: Some(at), attempt } => ConditionValue::from_retried_problem(
            problem,
            NextAttempt::Retry { at: at.clone(), attempt: *attempt },
        ),
        ServerPhase::Failed { problem, retry_at: None, .. } => {
            ConditionValue::from_problem(problem, "not retried until its declaration or a secret changes")
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
    // What it is shows only when it is asked: evenkeel itself, which may not be its own server.
    if let ServerPhase::Failed { problem, .. } = work
        && problem.reason == Reason::PolicyDenied
    {
        return ConditionValue::from_problem(problem, "");
    }
    if conflicts.is_empty() {
        return ConditionValue::new_true(Reason::Accepted, "the declaration is valid");
    }
    // The same tool may have met the same name in more than one view.
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
    // URIs carry no prefix: nothing keeps them apart but other URIs, and nothing needs to.
    let prefixed =
        conflicts.iter().any(|conflict| matches!(conflict.list, ListKind::Tools | ListKind::Prompts));
    let advice = if prefixed { "; expose.prefix keeps names apart" } else { "" };
    ConditionValue::new_true(Reason::NameConflict, format!("agents see {}{advice}", listed.join(", ")))
}

fn resolved_refs_condition(declared: &DeclaredObject<McpServerSpec>) -> ConditionValue {
    match (&declared.endpoint, declared.rejection()) {
        (Some(Err(denied)), Some(problem)) if denied == problem => {
            ConditionValue::new(ConditionStatus::Unknown, problem.reason, "not looked up: it may not run")
        }
        (Some(Ok(_)), _) => {
            ConditionValue::new_true(Reason::ResolvedRefs, "everything it refers to was found")
        }
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
                format!("the declaration accepted before, generation {generation}, is live"),
            ),
            // A changed secret: another connection for the same generation.
            _ if *generation == wanted => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                "the connection made before stays until the new one is attached",
            ),
            _ => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                format!("generation {generation} stays until generation {wanted} is attached"),
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
        ServerPhase::Idle => ConditionValue::new_false(Reason::Detached, "not connected until it is called"),
        ServerPhase::Connecting { .. } | ServerPhase::Failed { .. } | ServerPhase::Rejected(_)
            if was_attached(previous) =>
        {
            ConditionValue::new_false(Reason::Reconnecting, "the connection is gone; a new one is being made")
        }
        _ => ConditionValue::new_false(Reason::Detached, "nothing is attached"),
    }
}

fn was_attached(previous: Option<&McpServerStatus>) -> bool {
    previous
        .and_then(|previous| find_condition(&previous.conditions, ConditionType::Attached))
        .is_some_and(|before| before.status == "True" || before.reason == Reason::Reconnecting.to_string())
}

/// Never together with Stalled: kstatus would take a stalled object for one in progress.
fn reconciling_condition(work: &ServerPhase<'_>, seen: Option<&Observation>) -> Option<ConditionValue> {
    if work.is_stalled() {
        return None;
    }
    if let (ServerPhase::Attached, Some(problem)) = (work, seen.and_then(|seen| seen.paused.as_ref())) {
        let next = "what it listed before stays, and it is asked again";
        return Some(ConditionValue::new_true(Reason::ProgressingWithRetry, problem_message(problem, next)));
    }
    let (reason, message) = match work {
        ServerPhase::Draining(_) => (Reason::Progressing, "calls in flight are finishing".to_owned()),
        ServerPhase::Pending => (Reason::Progressing, "waiting for an attempt to connect".to_owned()),
        ServerPhase::Unresolved(_) => {
            (Reason::ProgressingWithRetry, "waiting for what it refers to".to_owned())
        }
        ServerPhase::Connecting { attempt, last } => {
            let failed = last.is_some_and(|problem| problem.reason != Reason::Connecting);
            let reason = if failed { Reason::ProgressingWithRetry } else { Reason::Progressing };
            (reason, format!("attempt {attempt} is under way"))
        }
        ServerPhase::Failed { retry_at, attempt, .. } => {
            let at = retry_at.as_deref().unwrap_or_default();
            (Reason::ProgressingWithRetry, format!("attempt {attempt} follows at {at}"))
        }
        ServerPhase::Rejected(_) | ServerPhase::Suspended | ServerPhase::Attached | ServerPhase::Idle => {
            return None;
        }
    };
    Some(ConditionValue::new_true(reason, message))
}

/// In what a live server falls short.
fn degraded_condition(seen: Option<&Observation>) -> Option<ConditionValue> {
    let problem = seen?.degraded.as_ref()?;
    let next = match problem.reason {
        Reason::ListUnavailable => "what was read of it before stays, and it is asked again",
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

/// What is offered; of what there is nothing of, only tools are named.
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

/// A time for people. What was said of the same time before stays as it was said.
fn display_time(at: Timestamp, previous: Option<&McpServerStatus>, now: Timestamp) -> String {
    let said = previous.filter(|previous| previous.next_retry_time.as_ref() == Some(&rfc3339(at)));
    match said.and_then(|said| find_condition(&said.conditions, ConditionType::Ready)) {
        Some(ready) if ready.message.contains(&text::format_date_time(at)) => text::format_date_time(at),
        Some(_) => text::format_time(at, at),
        None => text::format_time(at, now),
    }
}
