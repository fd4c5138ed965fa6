//! A server in every state, with its expected conditions and Ready message.

use super::*;

/// A state and its expected conditions.
pub(super) struct StateCase {
    pub name: &'static str,
    pub declared: DeclaredObject<McpServerSpec>,
    pub observation: Option<Observation>,
    pub conditions: &'static str,
    pub ready_message: &'static str,
}

/// Returns all states.
pub(super) fn state_cases() -> Vec<StateCase> {
    vec![
        StateCase {
            name: "new and not applied yet",
            declared: declared_server("a", 1),
            observation: None,
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready_message: "waiting for an attempt to connect",
        },
        StateCase {
            name: "connecting for the first time",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, connecting(1, None), None)),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready_message: "connecting, attempt 1",
        },
        StateCase {
            name: "attached",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=True/Attached Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/Attached",
            ready_message: "attached over stdio, 3 tools",
        },
        StateCase {
            name: "edited, and the new connection is being made",
            declared: declared_server("a", 2),
            observation: Some(observation("a", 2, connecting(1, None), Some(1))),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/Progressing",
            ready_message: "connecting, attempt 1",
        },
        StateCase {
            name: "edited, and the new connection failed",
            declared: declared_server("a", 2),
            observation: Some(observation("a", 2, failed(Reason::ConnectFailed, Some(60), 2), Some(1))),
            conditions: "Ready=False/ConnectFailed Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/ProgressingWithRetry",
            ready_message: "ConnectFailed happened; retrying at 00:01:00 UTC, attempt 2",
        },
        StateCase {
            name: "idle",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, Phase::Idle, Some(1))),
            conditions: "Ready=True/Idle Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready_message: "connects on the next call, 3 tools",
        },
        StateCase {
            name: "a Secret was rotated: the same generation reconnects",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, connecting(1, None), Some(1))),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/Progressing",
            ready_message: "connecting, attempt 1",
        },
        StateCase {
            name: "failed and retried",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, failed(Reason::Timeout, Some(43471), 4), None)),
            conditions: "Ready=False/Timeout Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready_message: "Timeout happened; retrying at 1970-01-01 12:04:31 UTC, attempt 4",
        },
        StateCase {
            name: "the next attempt after a failure",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, connecting(4, Some(Reason::Timeout)), None)),
            conditions: "Ready=False/Timeout Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready_message: "Timeout happened; attempt 4 is in progress",
        },
        StateCase {
            name: "stalled: rejected credentials, checked again later",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, failed(Reason::CredentialsRejected, Some(300), 2), None)),
            conditions: "Ready=False/CredentialsRejected Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/CredentialsRejected",
            ready_message: "CredentialsRejected happened; next check at 00:05:00 UTC, or at once when the declaration \
                            or a secret changes or after `evenkeel mcp reload`",
        },
        StateCase {
            name: "stalled: rejected credentials, being checked",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, connecting(2, Some(Reason::CredentialsRejected)), None)),
            conditions: "Ready=False/CredentialsRejected Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/CredentialsRejected",
            ready_message: "CredentialsRejected happened; attempt 2 is in progress",
        },
        StateCase {
            name: "rejected credentials, and a new attempt was requested",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, connecting(1, Some(Reason::CredentialsRejected)), None)),
            conditions: "Ready=False/CredentialsRejected Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready_message: "CredentialsRejected happened; attempt 1 is in progress",
        },
        StateCase {
            name: "stalled: evenkeel is its own server",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, failed(Reason::PolicyDenied, None, 2), None)),
            conditions: "Ready=False/PolicyDenied Accepted=False/PolicyDenied ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/PolicyDenied",
            ready_message: "PolicyDenied happened; not retried until the declaration or a secret changes",
        },
        StateCase {
            name: "stalled: no such command, checked again later",
            declared: declared_server("a", 1),
            observation: Some(observation("a", 1, failed(Reason::CommandNotFound, Some(300), 2), None)),
            conditions: "Ready=False/CommandNotFound Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/CommandNotFound",
            ready_message: "CommandNotFound happened; next check at 00:05:00 UTC, or at once when the declaration or a \
                            secret changes or after `evenkeel mcp reload`",
        },
        StateCase {
            name: "draining before suspension",
            declared: suspended(2),
            observation: Some(observation("a", 1, Phase::Draining(Reason::Suspended), Some(1))),
            conditions: "Ready=False/Draining Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready_message: "suspended and no longer offered; calls in flight are finishing",
        },
        StateCase {
            name: "suspended",
            declared: suspended(2),
            observation: Some(observation("a", 1, Phase::Detached(Reason::Suspended), None)),
            conditions: "Ready=False/Suspended Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready_message: "suspended by spec.suspend",
        },
        StateCase {
            name: "suspended from the start",
            declared: suspended(1),
            observation: None,
            conditions: "Ready=False/Suspended Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready_message: "suspended by spec.suspend",
        },
        StateCase {
            name: "no longer suspended, not applied yet",
            declared: declared_server("a", 3),
            observation: Some(observation("a", 1, Phase::Detached(Reason::Suspended), None)),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready_message: "waiting for an attempt to connect",
        },
        StateCase {
            name: "a Secret is missing from the start",
            declared: unresolved(1),
            observation: None,
            conditions: "Ready=False/SecretNotFound Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready_message: "SecretNotFound happened; the server connects once it exists",
        },
        StateCase {
            name: "a Secret is deleted while connected",
            declared: unresolved(1),
            observation: Some(observation("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=True/Attached Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=True/Attached",
            ready_message: "attached over stdio, 3 tools",
        },
        StateCase {
            name: "edited to refer to a missing Secret",
            declared: unresolved(2),
            observation: Some(observation("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=False/SecretNotFound Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=True/ServingPreviousGeneration Reconciling=True/ProgressingWithRetry",
            ready_message: "SecretNotFound happened; the server connects once it exists",
        },
        StateCase {
            name: "its file does not parse, the last valid declaration is attached",
            declared: rejected(1, Reason::ParseError, true),
            observation: Some(observation("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=False/ParseError Accepted=False/ParseError ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Stalled=True/ParseError",
            ready_message: "ParseError happened",
        },
        StateCase {
            name: "never valid",
            declared: rejected(1, Reason::InvalidSpec, false),
            observation: None,
            conditions: "Ready=False/InvalidSpec Accepted=False/InvalidSpec ResolvedRefs=Unknown/InvalidSpec \
                         Attached=False/Detached Stalled=True/InvalidSpec",
            ready_message: "InvalidSpec happened",
        },
        StateCase {
            name: "deleted and created again: the old object's connection is ignored",
            declared: declared_server("a", 1),
            observation: Some(Observation {
                uid: "another".into(),
                ..observation("a", 1, Phase::Attached, Some(1))
            }),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready_message: "waiting for an attempt to connect",
        },
    ]
}
