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
    let current =
        observation.filter(|current| current.uid == meta.uid && !matches!(current.phase, Phase::Detached(_)));
    if let (Some(previous), Some(current)) = (previous, current)
        && (is_generation_pending(declared, current, previous) || is_waking(current, previous))
    {
        return (previous.clone(), ConditionMessages::default());
    }
    let phase = ServerPhase::determine(declared, current, &|at| display_time(at, previous, now));
    let offering = current.filter(|current| !matches!(current.phase, Phase::Draining(_)));
    let offered_server = offering.and_then(|current| current.live_server.as_deref());
    let live =
        offered_server.filter(|_| !current.is_some_and(|current| matches!(current.phase, Phase::Idle)));

    let mut conditions =
        ConditionsBuilder::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    conditions.set(ConditionType::Ready, ready_condition(declared, &phase, offered_server));
    conditions.set(ConditionType::Accepted, accepted_condition(declared, &phase, conflicts));
    conditions.set(ConditionType::ResolvedRefs, resolved_refs_condition(declared));
    let is_reconnecting = phase.is_reconnecting(current) && was_attached(previous);
    conditions.set(ConditionType::Attached, attached_condition(declared, &phase, live, is_reconnecting));
    if let Some(value) = reconciling_condition(&phase, current) {
        conditions.set(ConditionType::Reconciling, value);
    }
    if let Some(value) = stalled_condition(&phase) {
        conditions.set(ConditionType::Stalled, value);
    }
    if let Some(value) = degraded_condition(offering) {
        conditions.set(ConditionType::Degraded, value);
    }

    let (conditions, short_messages) = conditions.finish();
    let status = McpServerStatus {
        observed_generation: Some(meta.generation),
        attached_generation: live.map(|live| live.generation),
        conditions,
        server_info: offered_server.map(|offered_server| offered_server.description.server_info.clone()),
        protocol_version: offered_server
            .map(|offered_server| offered_server.description.protocol_version.clone()),
        transport: declared.spec.as_ref().map(|spec| spec.transport_name().to_owned()),
        tools: offered_server.map(|offered_server| offered_server.tools),
        prompts: offered_server.map(|offered_server| offered_server.prompts),
        resources: offered_server.map(|offered_server| offered_server.resources),
        catalog_digest: offered_server.map(|offered_server| offered_server.catalog_digest.to_string()),
        spec_digest: declared.spec_digest.map(|digest| digest.to_string()),
        next_retry_time: current.and_then(next_retry_at).map(rfc3339),
        restarts: current.map(|current| current.restarts),
        // The reporter adds both.
        sessions: None,
        auth: None,
        last_handled_reconcile_at: last_handled_request(declared, current).map(str::to_owned),
        last_applied_revision: Some(meta.revision.to_string()),
    };
    (status, short_messages)
}

/// Returns the last reconcile request that was handled. If the fleet has nothing to do for this declaration, the
/// request is handled by computing this status.
fn last_handled_request<'a>(
    declared: &'a DeclaredObject<McpServerSpec>,
    observation: Option<&'a Observation>,
) -> Option<&'a str> {
    if ConnectionTarget::exists_for(declared) {
        return observation.and_then(|observation| observation.last_handled_request.as_deref());
    }
    declared.meta.annotations.get(RECONCILE_REQUESTED_AT).map(String::as_str)
}

/// True while the fleet has not yet reported that it applies a new generation.
fn is_generation_pending(
    declared: &DeclaredObject<McpServerSpec>,
    observation: &Observation,
    previous: &McpServerStatus,
) -> bool {
    declared.rejected.is_none()
        && observation.generation < declared.meta.generation
        && previous.observed_generation == Some(observation.generation)
        && ConnectionTarget::exists_for(declared)
}

/// True while an idle server is connecting because of a call. Its status is kept, because it is as usable as before.
fn is_waking(observation: &Observation, previous: &McpServerStatus) -> bool {
    let idle = Reason::Idle.to_string();
    matches!(observation.phase, Phase::Connecting { last_problem: None, .. })
        && previous.observed_generation == Some(observation.generation)
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
        /// The problem of the previous attempt.
        last_problem: Option<&'a Problem>,
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
        observation: Option<&'a Observation>,
        format_time: &dyn Fn(Timestamp) -> String,
    ) -> Self {
        if let Some(problem) = declared.rejection() {
            return Self::Rejected(problem);
        }
        if let Some(Phase::Draining(reason)) = observation.map(|observation| &observation.phase) {
            return Self::Draining(*reason);
        }
        if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
            return Self::Suspended;
        }
        let current = observation.filter(|observation| observation.generation == declared.meta.generation);
        match (current.map(|observation| &observation.phase), &declared.endpoint) {
            // A Secret that is deleted later does not end the connection, whose state then decides.
            (None, Some(Err(problem))) => Self::Unresolved(problem),
            (None | Some(Phase::Draining(_) | Phase::Detached(_)), _) => Self::Pending,
            (Some(Phase::Connecting { attempt, last_problem }), _) => {
                Self::Connecting { attempt: *attempt, last_problem: last_problem.as_ref() }
            }
            (Some(Phase::Attached), _) => Self::Attached,
            (Some(Phase::Idle), _) => Self::Idle,
            (Some(Phase::Failed { problem, retry_at, attempt }), _) => {
                Self::Failed { problem, retry_at: retry_at.map(format_time), attempt: *attempt }
            }
        }
    }

    /// True if evenkeel makes no progress until an operator acts. That includes the further attempts at a server that
    /// refuses evenkeel, but not the first one after a request or a loss.
    fn is_stalled(&self) -> bool {
        match self {
            Self::Rejected(_) => true,
            Self::Connecting { attempt, last_problem: Some(problem) } => {
                *attempt > 1 && problem.reason.requires_user_action()
            }
            Self::Failed { problem, retry_at, .. } => {
                problem.reason.requires_user_action() || retry_at.is_none()
            }
            _ => false,
        }
    }

    /// True if a lost connection is being made again by itself. While the latest declaration is rejected, it is that of
    /// the previous one.
    fn is_reconnecting(&self, observation: Option<&Observation>) -> bool {
        match (self, observation.map(|observation| &observation.phase)) {
            (Self::Connecting { .. } | Self::Failed { .. }, _) => !self.is_stalled(),
            (Self::Rejected(_), Some(Phase::Connecting { .. })) => true,
            (Self::Rejected(_), Some(Phase::Failed { problem, retry_at, .. })) => {
                retry_at.is_some() && !problem.reason.requires_user_action()
            }
            _ => false,
        }
    }
}

fn ready_condition(
    declared: &DeclaredObject<McpServerSpec>,
    phase: &ServerPhase<'_>,
    offered_server: Option<&LiveServer>,
) -> ConditionValue {
    match phase {
        ServerPhase::Rejected(problem) => ConditionValue::from_problem(problem, ""),
        ServerPhase::Draining(reason) => ConditionValue::new_false(
            Reason::Draining,
            format!("{}; calls in flight are finishing", withdrawal_message(*reason)),
        ),
        ServerPhase::Suspended => ConditionValue::new_false(Reason::Suspended, "suspended by spec.suspend"),
        // These need a restart or another declaration, as their message explains.
        ServerPhase::Unresolved(problem)
            if matches!(
                problem.reason,
                Reason::VariableNotFound | Reason::NotPermitted | Reason::InvalidSpec
            ) =>
        {
            ConditionValue::from_problem(problem, "")
        }
        ServerPhase::Unresolved(problem) => {
            ConditionValue::from_problem(problem, "the server connects once it exists")
        }
        ServerPhase::Pending => {
            ConditionValue::new_false(Reason::Connecting, "waiting for an attempt to connect")
        }
        ServerPhase::Connecting { attempt, last_problem: None } => {
            ConditionValue::new_false(Reason::Connecting, format!("connecting, attempt {attempt}"))
        }
        // The reason is kept from one attempt to the next, so that a server that keeps failing always shows it.
        ServerPhase::Connecting { attempt, last_problem: Some(problem) } => {
            ConditionValue::from_problem(problem, &format!("attempt {attempt} is in progress"))
        }
        ServerPhase::Attached => {
            let transport = declared.spec.as_deref().map_or("", McpServerSpec::transport_name);
            ConditionValue::new_true(
                Reason::Attached,
                format!("attached over {transport}, {}", offered_counts(offered_server)),
            )
        }
        ServerPhase::Idle => ConditionValue::new_true(
            Reason::Idle,
            format!("connects on the next call, {}", offered_counts(offered_server)),
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
    phase: &ServerPhase<'_>,
    conflicts: &[NameConflict],
) -> ConditionValue {
    if let Some(problem) = declared.rejection() {
        return ConditionValue::from_problem(problem, "");
    }
    // Only an attempt to connect detects that the server is this evenkeel instance itself, which is not permitted.
    if let ServerPhase::Failed { problem, .. } | ServerPhase::Connecting { last_problem: Some(problem), .. } =
        phase
        && problem.reason == Reason::PolicyDenied
    {
        return ConditionValue::from_problem(problem, "");
    }
    if conflicts.is_empty() {
        return ConditionValue::new_true(Reason::Accepted, "the declaration is valid");
    }
    // The same item may conflict with the same name in more than one view.
    let descriptions: BTreeSet<_> = conflicts.iter().map(describe_conflict).collect();
    let mut listed: Vec<_> = descriptions.iter().take(MAX_LISTED_CONFLICTS).map(String::as_str).collect();
    let more = format!("{} more", descriptions.len() - listed.len());
    if descriptions.len() > listed.len() {
        listed.push(&more);
    }
    // URIs have no prefix, so expose.prefix does not help there.
    let has_prefix =
        conflicts.iter().any(|conflict| matches!(conflict.list, ListKind::Tools | ListKind::Prompts));
    let advice = if has_prefix { "; set expose.prefix to keep names apart" } else { "" };
    ConditionValue::new_true(Reason::NameConflict, format!("{}{advice}", listed.join(", ")))
}

/// Describes the name under which an item is exposed, and the server because of which it is not the bare name.
fn describe_conflict(conflict: &NameConflict) -> String {
    let NameConflict { list, bare_name, assigned_name, holder, holder_state, .. } = conflict;
    let cause = match holder_state {
        NameHolderState::Current => format!("belongs to {holder}"),
        NameHolderState::Former => format!("belonged to {holder} and is reserved for an hour"),
        NameHolderState::Prospective => {
            format!("may belong to {holder}, which was created first and is still connecting")
        }
    };
    format!("{} {bare_name} is exposed as {assigned_name} because the name {cause}", list.item_noun())
}

fn resolved_refs_condition(declared: &DeclaredObject<McpServerSpec>) -> ConditionValue {
    match (&declared.endpoint, declared.rejection()) {
        (Some(Err(endpoint_problem)), Some(problem)) if endpoint_problem == problem => ConditionValue::new(
            ConditionStatus::Unknown,
            problem.reason,
            "not looked up: the server is not permitted to run",
        ),
        (Some(Ok(_)), _) => ConditionValue::new_true(Reason::ResolvedRefs, "all references were found"),
        (Some(Err(problem)), _) => ConditionValue::from_problem(problem, ""),
        (None, rejection) => ConditionValue::new(
            ConditionStatus::Unknown,
            rejection.map_or(Reason::Progressing, |problem| problem.reason),
            "not looked up: there is no valid declaration",
        ),
    }
}

fn attached_condition(
    declared: &DeclaredObject<McpServerSpec>,
    phase: &ServerPhase<'_>,
    live: Option<&LiveServer>,
    is_reconnecting: bool,
) -> ConditionValue {
    let desired_generation = declared.meta.generation;
    if let Some(LiveServer { generation, .. }) = live {
        return match phase {
            ServerPhase::Attached if *generation == desired_generation => {
                ConditionValue::new_true(Reason::Attached, format!("generation {generation} is live"))
            }
            ServerPhase::Rejected(_) => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                format!("the previously accepted generation {generation} is live"),
            ),
            // A Secret changed: a new connection is made for the same generation.
            _ if *generation == desired_generation => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                "the previous connection is kept until the new one is attached",
            ),
            _ => ConditionValue::new_true(
                Reason::ServingPreviousGeneration,
                format!("generation {generation} is kept until generation {desired_generation} is attached"),
            ),
        };
    }
    match phase {
        ServerPhase::Draining(reason) => {
            ConditionValue::new_false(Reason::Detached, withdrawal_message(*reason))
        }
        ServerPhase::Suspended => {
            ConditionValue::new_false(Reason::Detached, "detached: suspended by spec.suspend")
        }
        ServerPhase::Idle => ConditionValue::new_false(Reason::Detached, "not connected until the next call"),
        _ if is_reconnecting => {
            ConditionValue::new_false(Reason::Reconnecting, "the connection was lost; reconnecting")
        }
        _ => ConditionValue::new_false(Reason::Detached, "not attached"),
    }
}

fn was_attached(previous: Option<&McpServerStatus>) -> bool {
    previous.and_then(|previous| find_condition(&previous.conditions, ConditionType::Attached)).is_some_and(
        |attached| attached.status == "True" || attached.reason == Reason::Reconnecting.to_string(),
    )
}

/// Returns the Reconciling condition. It is never set together with Stalled, because kstatus would treat a stalled
/// object as in progress.
fn reconciling_condition(
    phase: &ServerPhase<'_>,
    observation: Option<&Observation>,
) -> Option<ConditionValue> {
    if phase.is_stalled() {
        return None;
    }
    if let (ServerPhase::Attached, Some(problem)) =
        (phase, observation.and_then(|observation| observation.paused.as_ref()))
    {
        let next = "the previous lists are kept until the next refresh";
        return Some(ConditionValue::new_true(Reason::ProgressingWithRetry, problem_message(problem, next)));
    }
    let (reason, message) = match phase {
        ServerPhase::Draining(_) => (Reason::Progressing, "calls in flight are finishing".to_owned()),
        ServerPhase::Pending => (Reason::Progressing, "waiting for an attempt to connect".to_owned()),
        ServerPhase::Unresolved(_) => {
            (Reason::ProgressingWithRetry, "waiting for a missing reference".to_owned())
        }
        ServerPhase::Connecting { attempt, last_problem } => {
            let has_failed = last_problem.is_some_and(|problem| problem.reason != Reason::Connecting);
            let reason = if has_failed { Reason::ProgressingWithRetry } else { Reason::Progressing };
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
fn degraded_condition(observation: Option<&Observation>) -> Option<ConditionValue> {
    let problem = observation?.degraded.as_ref()?;
    let next = match problem.reason {
        Reason::ListUnavailable => "the previous list is kept until the next refresh",
        _ => "",
    };
    Some(ConditionValue::new_true(problem.reason, problem_message(problem, next)))
}

fn stalled_condition(phase: &ServerPhase<'_>) -> Option<ConditionValue> {
    match phase {
        ServerPhase::Rejected(problem)
        | ServerPhase::Failed { problem, .. }
        | ServerPhase::Connecting { last_problem: Some(problem), .. }
            if phase.is_stalled() =>
        {
            Some(ConditionValue::new_true(problem.reason, problem_message(problem, "")))
        }
        _ => None,
    }
}

/// Returns the counts of offered items. Prompts and resources are omitted if there are none.
fn offered_counts(server: Option<&LiveServer>) -> String {
    let Some(server) = server else { return "0 tools".to_owned() };
    let count_text = |count, item| match count {
        1 => format!("1 {item}"),
        count => format!("{count} {item}s"),
    };
    let tools = count_text(server.tools, "tool");
    let tools = if server.declares_no_tools {
        format!("{tools} (the server declares none; if it has some, set spec.capabilities.tools)")
    } else {
        tools
    };
    let more = [(server.prompts, "prompt"), (server.resources, "resource")];
    let more = more.into_iter().filter(|(count, _)| *count > 0).map(|(count, item)| count_text(count, item));
    std::iter::once(tools).chain(more).collect::<Vec<_>>().join(", ")
}

fn withdrawal_message(reason: Reason) -> &'static str {
    match reason {
        Reason::Suspended => "suspended and no longer offered",
        _ => "no longer offered",
    }
}

fn next_retry_at(observation: &Observation) -> Option<Timestamp> {
    match observation.phase {
        Phase::Failed { retry_at, .. } => retry_at,
        _ => None,
    }
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%FT%TZ").to_string()
}

/// Formats a time for messages. If the previous status shows the same time, its format is kept.
fn display_time(at: Timestamp, previous: Option<&McpServerStatus>, now: Timestamp) -> String {
    let unchanged = previous.filter(|previous| previous.next_retry_time.as_ref() == Some(&rfc3339(at)));
    match unchanged.and_then(|unchanged| find_condition(&unchanged.conditions, ConditionType::Ready)) {
        Some(ready) if ready.message.contains(&text::format_date_time(at)) => text::format_date_time(at),
        Some(_) => text::format_time(at, at),
        None => text::format_time(at, now),
    }
}
