use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

/// Why something is as it is: the one vocabulary of conditions, events, logs, audit records and exit messages.
///
/// The words are part of the API: scripts and alerts match on them.
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
    NonCompliant,
    // Of a source itself
    SourceUnavailable,
    RemovalHeld,
    // What happened to a declaration
    Created,
    Updated,
    // The same, and what a caller is told about a server that was taken away
    Removed,
}

impl Reason {
    /// True if retrying on a timer is no use: a person must change the spec, the secret or the machine.
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
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Reads what is displayed.
impl FromStr for Reason {
    type Err = serde::de::value::Error;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::deserialize(word.into_deserializer())
    }
}

/// The condition types of the kinds; a map by type in `status.conditions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// This generation is usable now.
    Ready,
    /// The declaration is valid and permitted.
    Accepted,
    /// Secrets, ConfigMaps and servers it names were found.
    ResolvedRefs,
    /// Some generation is live now.
    Attached,
    /// Present while working or retrying.
    Reconciling,
    /// Present when a person must act.
    Stalled,
    /// Present while a server that is usable falls short of what it should offer.
    Degraded,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Something that failed, told to the person who must act: a reason and one sentence, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Problem {
    /// The word for it.
    pub reason: Reason,
    /// What failed, with what, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem from its parts.
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
        // The words in the first cells of the tables.
        let explained: BTreeSet<&str> = reasons
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('|').next())
            .flat_map(|cell| cell.split('`').filter(|word| word.starts_with(char::is_alphabetic)))
            .collect();
        let known: BTreeSet<String> = all_reasons().iter().map(ToString::to_string).collect();
        assert_eq!(explained, known.iter().map(String::as_str).collect());
    }
}
