use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

/// A reason, as used in conditions, events, logs, audit records and exit messages.
///
/// The names are part of the API: scripts and alerts match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names are the documentation; docs/status.md explains each")]
pub enum Reason {
    // Ready=True
    Attached,
    Idle,
    Available,
    // Ready=False
    Suspended,
    Connecting,
    ConnectFailed,
    LocalLimit,
    HandshakeFailed,
    ListFailed,
    Exited,
    CrashLoop,
    Unhealthy,
    CommandNotFound,
    AuthRequired,
    CredentialsRejected,
    Timeout,
    Draining,
    WriteFailed,
    // Accepted
    Accepted,
    NameConflict,
    InvalidSpec,
    DuplicateName,
    Shadowed,
    PolicyDenied,
    ParseError,
    UnsupportedTransport,
    // ResolvedRefs
    ResolvedRefs,
    SecretNotFound,
    VariableNotFound,
    EnvFileNotFound,
    ConfigMapNotFound,
    ServerNotFound,
    NotPermitted,
    // Attached
    ServingPreviousGeneration,
    Detached,
    Reconnecting,
    // Reconciling
    Progressing,
    ProgressingWithRetry,
    // Degraded
    ListUnavailable,
    ItemsLeftOut,
    NoticesNotHeard,
    NonCompliant,
    // Conditions of a source
    SourceUnavailable,
    RemovalHeld,
    // Events of an authorization
    LoggedIn,
    LoggedOut,
    TokenNotRenewed,
    // Events of a declaration
    Created,
    Updated,
    // Event of a declaration, and the error of calls to a server that was removed
    Removed,
}

impl Reason {
    /// Returns true if a person must change the spec, the secret, the machine or the server.
    pub fn requires_user_action(self) -> bool {
        matches!(
            self,
            Self::InvalidSpec
                | Self::DuplicateName
                | Self::Shadowed
                | Self::PolicyDenied
                | Self::ParseError
                | Self::UnsupportedTransport
                | Self::CommandNotFound
                | Self::AuthRequired
                | Self::CredentialsRejected
                | Self::RemovalHeld
        )
    }

    /// Returns true if the server refused the requests of evenkeel. It may accept them later without a change here, so
    /// it is tried again, but slowly.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::AuthRequired | Self::CredentialsRejected)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Parses the `Display` text.
impl FromStr for Reason {
    type Err = serde::de::value::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::deserialize(text.into_deserializer())
    }
}

/// The condition types of all kinds. `status.conditions` has at most one condition of each type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// True if the current generation is usable.
    Ready,
    /// True if the newest declaration is valid and permitted.
    Accepted,
    /// True if all referenced secrets, variables, ConfigMaps and servers were found.
    ResolvedRefs,
    /// True if any generation is connected.
    Attached,
    /// Present while evenkeel is working on the object or will retry.
    Reconciling,
    /// Present while a person must act before anything changes.
    Stalled,
    /// Present while a server or skill is usable but not completely, or breaks a rule that evenkeel tolerates.
    Degraded,
}

impl ConditionType {
    /// All condition types: evenkeel owns these in a status, and leaves conditions of other types unchanged.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Accepted,
        Self::ResolvedRefs,
        Self::Attached,
        Self::Reconciling,
        Self::Stalled,
        Self::Degraded,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A failure, reported to the person who must act: a reason and one sentence, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Problem {
    /// The reason.
    pub reason: Reason,
    /// A message that says what failed, why, and what to do.
    pub message: String,
}

impl Problem {
    /// Creates a problem from its parts.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const STATUS_DOC: &str = include_str!("../../docs/status.md");

    fn all_reasons() -> Vec<Reason> {
        let schema = serde_json::to_value(schemars::schema_for!(Reason)).unwrap();
        serde_json::from_value(schema["enum"].clone()).unwrap()
    }

    #[test]
    fn every_reason_parses_from_its_display_text() {
        for reason in all_reasons() {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        assert!("Nonsense".parse::<Reason>().is_err());
    }

    #[test]
    fn status_doc_lists_exactly_the_reasons() {
        let (_, reasons) = STATUS_DOC.split_once("\n## Reasons\n").unwrap();
        let (reasons, _) = reasons.split_once("\n## ").unwrap();
        // The reasons in the first cells of the tables.
        let explained: BTreeSet<&str> = reasons
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('|').next())
            .flat_map(|cell| cell.split('`').filter(|name| name.starts_with(char::is_alphabetic)))
            .collect();
        let expected: BTreeSet<String> = all_reasons().iter().map(ToString::to_string).collect();
        assert_eq!(explained, expected.iter().map(String::as_str).collect());
    }
}
