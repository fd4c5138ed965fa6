mod state_cases;

use std::sync::Arc;

use serde_json::json;

use self::state_cases::state_cases;
use super::*;
use crate::report::testing::{live_server, name_conflict, observation};
use crate::resource::Digest;
use crate::resource::testing::{at, declared_server, server_spec};

fn server_status(
    declared: &DeclaredObject<McpServerSpec>,
    observation: Option<&Observation>,
    conflicts: &[NameConflict],
    previous: Option<&McpServerStatus>,
    now: Timestamp,
) -> McpServerStatus {
    super::server_status(declared, observation, conflicts, previous, now).0
}

/// Returns the conditions as one line: `Ready=True/Attached Accepted=…`.
fn condition_line(status: &McpServerStatus) -> String {
    let parts: Vec<_> = status
        .conditions
        .iter()
        .map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
        .collect();
    parts.join(" ")
}

fn message(status: &McpServerStatus, kind: ConditionType) -> &str {
    find_condition(&status.conditions, kind).map_or("", |condition| condition.message.as_str())
}

fn problem(reason: Reason) -> Problem {
    Problem::new(reason, format!("{reason} happened"))
}

fn failed(reason: Reason, retry: Option<i64>, attempt: u32) -> Phase {
    Phase::Failed { problem: problem(reason), retry_at: retry.map(at), attempt }
}

fn connecting(attempt: u32, last: Option<Reason>) -> Phase {
    Phase::Connecting { attempt, last_problem: last.map(problem) }
}

fn rejected(generation: i64, reason: Reason, with_last_valid: bool) -> DeclaredObject<McpServerSpec> {
    let mut object = declared_server("a", generation);
    object.rejected = Some(problem(reason));
    if !with_last_valid {
        object.spec = None;
        object.endpoint = None;
        object.spec_digest = None;
    }
    object
}

fn unresolved(generation: i64) -> DeclaredObject<McpServerSpec> {
    let mut object = declared_server("a", generation);
    object.endpoint = Some(Err(problem(Reason::SecretNotFound)));
    object
}

fn suspended(generation: i64) -> DeclaredObject<McpServerSpec> {
    let mut object = declared_server("a", generation);
    object.spec = Some(server_spec(json!({ "stdio": { "command": "c" }, "suspend": true })));
    object
}

#[test]
fn state_determines_the_conditions() {
    for case in state_cases() {
        let status = server_status(&case.declared, case.observation.as_ref(), &[], None, at(1));
        assert_eq!(condition_line(&status), case.conditions, "{}", case.name);
        assert_eq!(message(&status, ConditionType::Ready), case.ready_message, "{}", case.name);
    }
}

#[test]
fn status_invariants_hold_for_every_state() {
    for case in state_cases() {
        let name = case.name;
        let status = server_status(&case.declared, case.observation.as_ref(), &[], None, at(1));
        let generation = Some(case.declared.meta.generation);
        assert_eq!(status.observed_generation, generation, "{name}");
        for condition in &status.conditions {
            assert_eq!(condition.observed_generation, generation, "{name}: {}", condition.type_);
            assert!(!condition.message.is_empty(), "{name}: {}", condition.type_);
        }
        let has = |kind| find_condition(&status.conditions, kind).is_some();
        for kind in [
            ConditionType::Ready,
            ConditionType::Accepted,
            ConditionType::ResolvedRefs,
            ConditionType::Attached,
        ] {
            assert!(has(kind), "{name}: {kind} is always set");
        }
        // kstatus evaluates Reconciling before Stalled.
        assert!(!(has(ConditionType::Reconciling) && has(ConditionType::Stalled)), "{name}");
        let unchanged = server_status(&case.declared, case.observation.as_ref(), &[], Some(&status), at(9));
        assert_eq!(unchanged, status, "{name}: an unchanged state must give an equal status");
    }
}

/// Combines every declaration with every state of the connection and every earlier state.
#[test]
fn conditions_never_contradict_each_other() {
    let reasons = [
        Reason::ConnectFailed,
        Reason::CommandNotFound,
        Reason::AuthRequired,
        Reason::CredentialsRejected,
        Reason::PolicyDenied,
        Reason::Exited,
    ];
    let mut phases = vec![Phase::Attached, Phase::Idle];
    phases.extend([Reason::Removed, Reason::Suspended].map(Phase::Draining));
    phases.extend([Reason::Removed, Reason::Suspended].map(Phase::Detached));
    for attempt in [1, 2] {
        phases.push(connecting(attempt, None));
        for reason in reasons {
            phases.push(connecting(attempt, Some(reason)));
            phases.push(failed(reason, None, attempt));
            phases.push(failed(reason, Some(300), attempt));
        }
    }
    let declarations = [
        declared_server("a", 2),
        suspended(2),
        unresolved(2),
        rejected(2, Reason::ParseError, true),
        rejected(2, Reason::PolicyDenied, false),
    ];
    let was_attached = server_status(
        &declared_server("a", 2),
        Some(&observation("a", 2, Phase::Attached, Some(2))),
        &[],
        None,
        at(1),
    );
    let lost = observation("a", 2, connecting(1, Some(Reason::Exited)), None);
    let was_lost = server_status(&declared_server("a", 2), Some(&lost), &[], Some(&was_attached), at(1));
    assert_eq!(condition_line(&was_lost).matches("Reconnecting").count(), 1);
    for (declared, phase) in
        declarations.iter().flat_map(|declared| phases.iter().map(move |phase| (declared, phase)))
    {
        for (generation, live) in [(2, None), (2, Some(2)), (1, None), (1, Some(1))] {
            for previous in [None, Some(&was_attached), Some(&was_lost)] {
                let current = observation("a", generation, phase.clone(), live);
                let status = server_status(declared, Some(&current), &[], previous, at(2));
                let (line, found) =
                    (condition_line(&status), |kind| find_condition(&status.conditions, kind));
                let is_true = |kind| found(kind).is_some_and(|condition| condition.status == "True");
                let has_reason = |kind, reason: Reason| {
                    found(kind).is_some_and(|condition| condition.reason == reason.to_string())
                };
                let (stalled, reconciling) =
                    (is_true(ConditionType::Stalled), is_true(ConditionType::Reconciling));
                let is_rejected = declared.rejected.is_some();
                let reconnecting = has_reason(ConditionType::Attached, Reason::Reconnecting);
                for (claim, holds) in [
                    ("Stalled and Reconciling", !(stalled && reconciling)),
                    ("Stalled and Ready", !(stalled && is_true(ConditionType::Ready))),
                    ("Stalled and reconnecting", !(stalled && reconnecting) || is_rejected),
                    ("reconnecting and nothing is done", !reconnecting || reconciling || is_rejected),
                    (
                        "not permitted and accepted",
                        !(has_reason(ConditionType::Ready, Reason::PolicyDenied)
                            && is_true(ConditionType::Accepted)),
                    ),
                    (
                        "attached and reconnecting",
                        status.attached_generation.is_some() == is_true(ConditionType::Attached),
                    ),
                ] {
                    assert!(holds, "{claim}: {phase:?} {generation} {live:?}: {line}");
                }
                let again = server_status(declared, Some(&current), &[], Some(&status), at(3));
                assert_eq!(again, status, "an unchanged state gives an equal status");
            }
        }
    }
}

#[test]
fn transition_times_are_correct_between_all_states() {
    for before in state_cases() {
        let first = server_status(&before.declared, before.observation.as_ref(), &[], None, at(1));
        for after in state_cases() {
            let second = server_status(&after.declared, after.observation.as_ref(), &[], Some(&first), at(2));
            if second == first {
                continue;
            }
            for condition in &second.conditions {
                let previous = first.conditions.iter().find(|other| other.type_ == condition.type_);
                let is_transition = previous.is_none_or(|previous| previous.status != condition.status);
                let expected = if is_transition { 2 } else { 1 };
                let names = (before.name, after.name, &condition.type_);
                assert_eq!(condition.last_transition_time.0, at(expected), "{names:?}");
            }
        }
    }
}

#[test]
fn status_keeps_the_old_generation_until_the_fleet_applies_the_new() {
    let old = observation("a", 1, Phase::Attached, Some(1));
    let attached = server_status(&declared_server("a", 1), Some(&old), &[], None, at(1));
    let edited = server_status(&declared_server("a", 2), Some(&old), &[], Some(&attached), at(2));
    assert_eq!(edited, attached, "the status does not flap while the fleet applies a change");
    let new = observation("a", 2, Phase::Attached, Some(2));
    let applied = server_status(&declared_server("a", 2), Some(&new), &[], Some(&edited), at(3));
    assert_eq!(applied.observed_generation, Some(2));
    assert_eq!(applied.attached_generation, Some(2));
    assert_eq!(applied.conditions[0].last_transition_time.0, at(1), "Ready did not change");
}

#[test]
fn lost_connection_is_reconnecting_until_attached() {
    let object = declared_server("a", 1);
    let status = |phase, live, before: &McpServerStatus, second| {
        server_status(&object, Some(&observation("a", 1, phase, live)), &[], Some(before), at(second))
    };
    let never = server_status(&object, None, &[], None, at(0));
    let attached = status(Phase::Attached, Some(1), &never, 1);
    let lost = status(failed(Reason::Exited, Some(60), 2), None, &attached, 2);
    let retrying = status(connecting(2, Some(Reason::Exited)), None, &lost, 3);
    let failing = status(failed(Reason::ConnectFailed, Some(90), 3), None, &retrying, 4);
    for status in [&lost, &retrying, &failing] {
        let condition = find_condition(&status.conditions, ConditionType::Attached).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Reconnecting"));
        assert_eq!(condition.last_transition_time.0, at(2));
        assert_eq!((status.tools, status.attached_generation), (None, None));
    }
    assert_eq!(lost.next_retry_time.as_deref(), Some("1970-01-01T00:01:00Z"));
    assert_eq!(retrying.next_retry_time, None);
    let reattached = status(Phase::Attached, Some(1), &failing, 5);
    assert_eq!(reattached.conditions[0].last_transition_time.0, at(5));
}

#[test]
fn waking_idle_server_stays_ready_until_attached_or_failed() {
    let object = declared_server("a", 1);
    let idle = server_status(&object, Some(&observation("a", 1, Phase::Idle, Some(1))), &[], None, at(1));
    assert_eq!((idle.attached_generation, idle.tools), (None, Some(3)));
    let waking = observation("a", 1, connecting(1, None), None);
    assert_eq!(server_status(&object, Some(&waking), &[], Some(&idle), at(2)), idle);
    for (phase, live, expected) in [
        (Phase::Attached, Some(1), "True/Attached"),
        (failed(Reason::ConnectFailed, Some(9), 2), None, "False/ConnectFailed"),
    ] {
        let status = server_status(&object, Some(&observation("a", 1, phase, live)), &[], Some(&idle), at(3));
        let ready = &status.conditions[0];
        assert_eq!(format!("{}/{}", ready.status, ready.reason), expected);
    }
}

type Edit<'a> = &'a dyn Fn(&mut DeclaredObject<McpServerSpec>);

#[test]
fn reconcile_request_is_acknowledged() {
    let mut attached = observation("a", 1, Phase::Attached, Some(1));
    attached.last_handled_request = Some("now".into());
    let status = server_status(&declared_server("a", 1), Some(&attached), &[], None, at(1));
    assert_eq!(status.last_handled_reconcile_at.as_deref(), Some("now"));

    // If there is nothing to connect, computing the status handles the request.
    let denied = Problem::new(Reason::PolicyDenied, "may not run");
    let missing = Problem::new(Reason::SecretNotFound, "no secret");
    let edits: [(Edit<'_>, Option<&str>); 5] = [
        (&|_| (), None),
        (&|object| object.endpoint = Some(Err(missing.clone())), Some("again")),
        (&|object| object.endpoint = Some(Err(denied.clone())), Some("again")),
        (&|object| Arc::make_mut(object.spec.as_mut().unwrap()).suspend = true, Some("again")),
        (
            &|object| {
                object.spec = None;
                object.endpoint = None;
                object.rejected = Some(Problem::new(Reason::InvalidSpec, "no transport"));
            },
            Some("again"),
        ),
    ];
    for (edit, expected) in edits {
        let mut object = declared_server("a", 1);
        object.meta.annotations.insert(RECONCILE_REQUESTED_AT.into(), "again".into());
        edit(&mut object);
        let status = server_status(&object, None, &[], None, at(1));
        assert_eq!(status.last_handled_reconcile_at.as_deref(), expected, "{}", condition_line(&status));
    }
}

#[test]
fn name_conflicts_are_listed_and_stay_accepted() {
    let attached = observation("a", 1, Phase::Attached, Some(1));
    let conflicts: Vec<_> = (1..=7).flat_map(|n| [name_conflict(n), name_conflict(n)]).collect();
    let status = server_status(&declared_server("a", 1), Some(&attached), &conflicts, None, at(1));
    assert_eq!(
        condition_line(&status),
        "Ready=True/Attached Accepted=True/NameConflict ResolvedRefs=True/ResolvedRefs Attached=True/Attached"
    );
    let text = message(&status, ConditionType::Accepted);
    let first_two =
        "tool a_1 is exposed as a_1_x9 because the name belongs to default/b, tool a_2 is exposed as a_2_x9 ";
    assert!(text.starts_with(first_two), "{text}");
    assert!(text.ends_with(", 2 more; set expose.prefix to keep names apart"), "{text}");

    for (holder_state, expected) in [
        (
            NameHolderState::Former,
            "the name belonged to default/b and is reserved for an hour; set expose.prefix",
        ),
        (
            NameHolderState::Prospective,
            "the name may belong to default/b, which was created first and is still connecting; set expose.prefix",
        ),
    ] {
        let conflicts = [NameConflict { holder_state, ..name_conflict(1) }];
        let status = server_status(&declared_server("a", 1), Some(&attached), &conflicts, None, at(1));
        let text = message(&status, ConditionType::Accepted);
        assert!(text.contains(&format!("tool a_1 is exposed as a_1_x9 because {expected}")), "{text}");
    }
}

#[test]
fn status_fields_describe_the_live_connection() {
    let mut object = declared_server("a", 2);
    object.meta.revision = "3f1c".into();
    let status =
        server_status(&object, Some(&observation("a", 2, connecting(1, None), Some(1))), &[], None, at(1));
    let live = live_server(1);
    assert_eq!(status.attached_generation, Some(1));
    assert_eq!(status.server_info.as_ref(), Some(&live.description.server_info));
    assert_eq!(status.protocol_version.as_deref(), Some("2025-11-25"));
    assert_eq!(status.transport.as_deref(), Some("stdio"));
    assert_eq!(status.tools, Some(3));
    assert_eq!(status.catalog_digest, Some(live.catalog_digest.to_string()));
    assert_eq!(status.spec_digest, Some(Digest::of(b"spec").to_string()));
    assert_eq!(status.restarts, Some(0));
    assert_eq!(status.last_applied_revision.as_deref(), Some("3f1c"));
}

/// Every reason of a failed attempt is either retried or needs an operator, never both and never neither.
#[test]
fn failure_is_either_retried_or_stalled() {
    for reason in [
        Reason::ConnectFailed,
        Reason::HandshakeFailed,
        Reason::ListFailed,
        Reason::Exited,
        Reason::CrashLoop,
        Reason::Unhealthy,
        Reason::CommandNotFound,
        Reason::AuthRequired,
        Reason::CredentialsRejected,
        Reason::Timeout,
    ] {
        for retry in [Some(9), None] {
            let status = server_status(
                &declared_server("a", 1),
                Some(&observation("a", 1, failed(reason, retry, 2), None)),
                &[],
                None,
                at(1),
            );
            let reconciling = find_condition(&status.conditions, ConditionType::Reconciling).is_some();
            let stalled = find_condition(&status.conditions, ConditionType::Stalled).is_some();
            assert_ne!(reconciling, stalled, "{reason} {retry:?}");
            assert_eq!(stalled, reason.requires_user_action() || retry.is_none(), "{reason} {retry:?}");
            assert_eq!(status.conditions[0].reason, reason.to_string());
        }
    }
}

#[test]
fn ready_message_counts_prompts_and_resources_if_any() {
    let message = |prompts, resources| {
        let mut attached = observation("a", 1, Phase::Attached, Some(1));
        attached.live_server = Some(LiveServer { tools: 1, prompts, resources, ..live_server(1) }.into());
        let status = server_status(&declared_server("a", 1), Some(&attached), &[], None, at(1));
        (status.conditions[0].message.clone(), status.prompts, status.resources)
    };
    assert_eq!(message(0, 0), ("attached over stdio, 1 tool".into(), Some(0), Some(0)));
    assert_eq!(
        message(2, 1),
        ("attached over stdio, 1 tool, 2 prompts, 1 resource".into(), Some(2), Some(1))
    );
}

#[test]
fn distant_retry_time_keeps_its_date() {
    let declared = declared_server("a", 1);
    let problem = Problem::new(Reason::Exited, "exited");
    let far = at(13 * 3600);
    let failed = Phase::Failed { problem, retry_at: Some(far), attempt: 2 };
    let observed = observation("a", 1, failed, None);
    let status_at = |previous, now| server_status(&declared, Some(&observed), &[], previous, at(now));
    let first = status_at(None, 1);
    let ready = |status: &McpServerStatus| status.conditions[0].message.clone();
    assert_eq!(ready(&first), "exited; retrying at 1970-01-01 13:00:00 UTC, attempt 2");
    assert_eq!(status_at(Some(&first), 2 * 3600), first, "the status does not change as the time approaches");
    let near = status_at(None, 2 * 3600);
    assert_eq!(ready(&near), "exited; retrying at 13:00:00 UTC, attempt 2");
    assert_eq!(status_at(Some(&near), 1), near);
}
