//! A server in every state, with the conditions and the sentence that it must have.

use super::*;

/// A state, and what is told of it.
pub(super) struct Row {
    pub name: &'static str,
    pub declared: DeclaredObject<McpServerSpec>,
    pub seen: Option<Observation>,
    pub conditions: &'static str,
    pub ready: &'static str,
}

/// Every state that there is.
pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "new and unseen",
            declared: declared("a", 1),
            seen: None,
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready: "waiting for an attempt to connect",
        },
        Row {
            name: "connecting for the first time",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, connecting(1, None), None)),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready: "connecting, attempt 1",
        },
        Row {
            name: "attached",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=True/Attached Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/Attached",
            ready: "attached over stdio, 3 tools",
        },
        Row {
            name: "edited, and the new connection is being made",
            declared: declared("a", 2),
            seen: Some(seen("a", 2, connecting(1, None), Some(1))),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/Progressing",
            ready: "connecting, attempt 1",
        },
        Row {
            name: "edited, and the new connection failed",
            declared: declared("a", 2),
            seen: Some(seen("a", 2, failed(Reason::ConnectFailed, Some(60), 2), Some(1))),
            conditions: "Ready=False/ConnectFailed Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/ProgressingWithRetry",
            ready: "ConnectFailed happened; retrying at 00:01:00 UTC, attempt 2",
        },
        Row {
            name: "idle",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, Phase::Idle, Some(1))),
            conditions: "Ready=True/Idle Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready: "connected by the next call, 3 tools",
        },
        Row {
            name: "a secret was rotated: the same generation connects anew",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, connecting(1, None), Some(1))),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Reconciling=True/Progressing",
            ready: "connecting, attempt 1",
        },
        Row {
            name: "failed and retried",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, failed(Reason::Timeout, Some(43471), 4), None)),
            conditions: "Ready=False/Timeout Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready: "Timeout happened; retrying at 1970-01-01 12:04:31 UTC, attempt 4",
        },
        Row {
            name: "the next attempt after a failure",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, connecting(4, Some(Reason::Timeout)), None)),
            conditions: "Ready=False/Timeout Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready: "Timeout happened; attempt 4 is under way",
        },
        Row {
            name: "stalled: rejected credentials",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, failed(Reason::CredentialsRejected, None, 1), None)),
            conditions: "Ready=False/CredentialsRejected Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/CredentialsRejected",
            ready: "CredentialsRejected happened; not retried until its declaration or a secret changes",
        },
        Row {
            name: "stalled: no such command, and it is looked for again",
            declared: declared("a", 1),
            seen: Some(seen("a", 1, failed(Reason::CommandNotFound, Some(300), 2), None)),
            conditions: "Ready=False/CommandNotFound Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Stalled=True/CommandNotFound",
            ready: "CommandNotFound happened; looking again at 00:05:00 UTC",
        },
        Row {
            name: "draining before it is suspended",
            declared: suspended(2),
            seen: Some(seen("a", 1, Phase::Draining(Reason::Suspended), Some(1))),
            conditions: "Ready=False/Draining Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready: "suspended and no longer offered; calls in flight are finishing",
        },
        Row {
            name: "suspended",
            declared: suspended(2),
            seen: Some(seen("a", 1, Phase::Detached(Reason::Suspended), None)),
            conditions: "Ready=False/Suspended Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready: "suspended by spec.suspend",
        },
        Row {
            name: "suspended from the first",
            declared: suspended(1),
            seen: None,
            conditions: "Ready=False/Suspended Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached",
            ready: "suspended by spec.suspend",
        },
        Row {
            name: "no longer suspended, not taken up yet",
            declared: declared("a", 3),
            seen: Some(seen("a", 1, Phase::Detached(Reason::Suspended), None)),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready: "waiting for an attempt to connect",
        },
        Row {
            name: "a secret is missing from the first",
            declared: unresolved(1),
            seen: None,
            conditions: "Ready=False/SecretNotFound Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=False/Detached Reconciling=True/ProgressingWithRetry",
            ready: "SecretNotFound happened; attached as soon as it is there",
        },
        Row {
            name: "a secret is deleted under a connection",
            declared: unresolved(1),
            seen: Some(seen("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=True/Attached Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=True/Attached",
            ready: "attached over stdio, 3 tools",
        },
        Row {
            name: "edited to need a secret that is missing",
            declared: unresolved(2),
            seen: Some(seen("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=False/SecretNotFound Accepted=True/Accepted ResolvedRefs=False/SecretNotFound \
                         Attached=True/ServingPreviousGeneration Reconciling=True/ProgressingWithRetry",
            ready: "SecretNotFound happened; attached as soon as it is there",
        },
        Row {
            name: "its file does not parse, the last good is attached",
            declared: refused(1, Reason::ParseError, true),
            seen: Some(seen("a", 1, Phase::Attached, Some(1))),
            conditions: "Ready=False/ParseError Accepted=False/ParseError ResolvedRefs=True/ResolvedRefs \
                         Attached=True/ServingPreviousGeneration Stalled=True/ParseError",
            ready: "ParseError happened",
        },
        Row {
            name: "never valid",
            declared: refused(1, Reason::InvalidSpec, false),
            seen: None,
            conditions: "Ready=False/InvalidSpec Accepted=False/InvalidSpec ResolvedRefs=Unknown/InvalidSpec \
                         Attached=False/Detached Stalled=True/InvalidSpec",
            ready: "InvalidSpec happened",
        },
        Row {
            name: "deleted and created again: the old object's connection says nothing",
            declared: declared("a", 1),
            seen: Some(Observation { uid: "another".into(), ..seen("a", 1, Phase::Attached, Some(1)) }),
            conditions: "Ready=False/Connecting Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs \
                         Attached=False/Detached Reconciling=True/Progressing",
            ready: "waiting for an attempt to connect",
        },
    ]
}
