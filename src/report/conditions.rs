use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::resource::{ConditionType, Problem, Reason};
use crate::text::is_invisible;

/// The maximum length of a message in bytes. It may contain stderr output of a server.
const MAX_MESSAGE_BYTES: usize = 4096;

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition is met.
    True,
    /// The condition is not met.
    False,
    /// The condition was not evaluated.
    Unknown,
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The value of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConditionValue {
    pub status: ConditionStatus,
    pub reason: Reason,
    /// The message without the next attempt.
    pub message: String,
    /// The next attempt. It is kept apart because it differs each time.
    pub next_attempt: Option<NextAttempt>,
}

/// The next attempt after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NextAttempt {
    /// The operation is retried.
    Retry {
        /// The time in human-readable form.
        at: String,
        attempt: u32,
    },
    /// The operation needs a fix by an operator first; it is only checked from time to time.
    Recheck {
        /// The time in human-readable form.
        at: String,
    },
}

/// Formats the end of a message.
impl fmt::Display for NextAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { at, attempt } => write!(f, "retrying at {at}, attempt {attempt}"),
            Self::Recheck { at } => write!(
                f,
                "next check at {at}, or at once when the declaration or a secret changes or after `evenkeel mcp reload`"
            ),
        }
    }
}

impl ConditionValue {
    pub fn new(status: ConditionStatus, reason: Reason, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), next_attempt: None }
    }

    pub fn new_true(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(ConditionStatus::True, reason, message)
    }

    pub fn new_false(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(ConditionStatus::False, reason, message)
    }

    /// Creates a false condition from a problem, with a description of what happens next.
    pub fn from_problem(problem: &Problem, next: &str) -> Self {
        Self::new_false(problem.reason, problem_message(problem, next))
    }

    /// Creates a false condition from a problem, with the next attempt.
    pub fn from_retried_problem(problem: &Problem, next: NextAttempt) -> Self {
        Self { next_attempt: Some(next), ..Self::from_problem(problem, "") }
    }

    /// Returns the message with the next attempt.
    fn full_message(&self) -> String {
        match &self.next_attempt {
            Some(next) => format!("{}; {next}", self.message),
            None => self.message.clone(),
        }
    }
}

/// The messages without the next attempt, of those conditions whose messages contain one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditionMessages(Vec<(ConditionType, String)>);

impl ConditionMessages {
    /// Returns the message of a condition without the next attempt, if its full message contains one.
    pub(super) fn get(&self, kind: ConditionType) -> Option<&str> {
        self.0.iter().find(|(entry_kind, _)| *entry_kind == kind).map(|(_, message)| message.as_str())
    }
}

/// Returns the message of a problem and, after a semicolon, what happens next.
pub(super) fn problem_message(problem: &Problem, next: &str) -> String {
    let message = problem.message.trim_end_matches(|end: char| end == '.' || end.is_whitespace());
    if next.is_empty() { message.to_owned() } else { format!("{message}; {next}") }
}

/// Builds the conditions of one object.
///
/// `lastTransitionTime` changes only with the status value, so equal values give equal conditions.
pub(super) struct ConditionsBuilder<'a> {
    previous: &'a [Condition],
    generation: i64,
    now: Timestamp,
    list: Vec<Condition>,
    short_messages: ConditionMessages,
}

impl<'a> ConditionsBuilder<'a> {
    pub fn new(generation: i64, previous: Option<&'a [Condition]>, now: Timestamp) -> Self {
        let (previous, short_messages) = (previous.unwrap_or_default(), ConditionMessages::default());
        Self { previous, generation, now, list: Vec::new(), short_messages }
    }

    pub fn set(&mut self, kind: ConditionType, value: ConditionValue) {
        let status = value.status.to_string();
        let last_transition_time = find_condition(self.previous, kind)
            .filter(|previous| previous.status == status)
            .map_or(Time(self.now), |previous| previous.last_transition_time.clone());
        self.list.push(Condition {
            last_transition_time,
            message: sanitize_message(value.full_message()),
            observed_generation: Some(self.generation),
            reason: value.reason.to_string(),
            status,
            type_: kind.to_string(),
        });
        if value.next_attempt.is_some() {
            self.short_messages.0.push((kind, sanitize_message(value.message)));
        }
    }

    pub fn finish(self) -> (Vec<Condition>, ConditionMessages) {
        (self.list, self.short_messages)
    }
}

/// Returns the condition of a type, if it is present.
pub fn find_condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let kind = kind.to_string();
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Removes control and invisible characters, which names and URIs of a server may contain, and limits the length.
fn sanitize_message(mut message: String) -> String {
    message.retain(|char| char == '\n' || !is_invisible(char));
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(previous: &[Condition], value: ConditionValue, second: i64) -> Vec<Condition> {
        let mut conditions = ConditionsBuilder::new(1, Some(previous), at(second));
        conditions.set(ConditionType::Ready, value);
        conditions.finish().0
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let first = ready(&[], ConditionValue::new_false(Reason::Connecting, "a"), 1);
        let second = ready(&first, ConditionValue::new_false(Reason::ConnectFailed, "b"), 2);
        let third = ready(&second, ConditionValue::new_true(Reason::Attached, "c"), 3);
        let times = [&first, &second, &third].map(|list| list[0].last_transition_time.0.as_second());
        assert_eq!(times, [1, 1, 3]);
    }

    #[test]
    fn message_is_bounded_and_sanitized() {
        let long = "é".repeat(MAX_MESSAGE_BYTES);
        let bounded = ready(&[], ConditionValue::new_false(Reason::Exited, long), 1);
        assert!(bounded[0].message.len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        assert!(bounded[0].message.ends_with('…'));
        let sanitized =
            ready(&[], ConditionValue::new_true(Reason::NameConflict, "tool \u{202e}x\u{1b}[2J\n"), 1);
        assert_eq!(sanitized[0].message, "tool x[2J\n");
    }

    #[test]
    fn message_ends_with_the_next_attempt() {
        let problem = Problem::new(Reason::Exited, "exited with code 3.\n");
        assert_eq!(problem_message(&problem, "retrying"), "exited with code 3; retrying");
        assert_eq!(problem_message(&problem, ""), "exited with code 3");
        for (next, expected) in [
            (
                NextAttempt::Retry { at: "12:04:31 UTC".into(), attempt: 4 },
                "exited with code 3; retrying at 12:04:31 UTC, attempt 4",
            ),
            (
                NextAttempt::Recheck { at: "12:04:31 UTC".into() },
                "exited with code 3; next check at 12:04:31 UTC, or at once when the declaration or a secret changes or \
                 after `evenkeel mcp reload`",
            ),
        ] {
            let mut conditions = ConditionsBuilder::new(1, None, at(1));
            conditions.set(ConditionType::Ready, ConditionValue::from_retried_problem(&problem, next));
            conditions.set(ConditionType::Stalled, ConditionValue::from_problem(&problem, "one; two"));
            let (list, short_messages) = conditions.finish();
            assert_eq!(list[0].message, expected);
            assert_eq!(short_messages.get(ConditionType::Ready), Some("exited with code 3"));
            assert_eq!(short_messages.get(ConditionType::Stalled), None);
        }
    }
}
