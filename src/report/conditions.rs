use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::resource::{ConditionType, Problem, Reason};
use crate::words::is_unseen;

/// The longest message, in bytes: what a server wrote to stderr may be in it.
const LONGEST_MESSAGE: usize = 4096;

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It was not looked at.
    Unknown,
}

impl fmt::Display for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What one condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub truth: Truth,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    pub fn new(truth: Truth, reason: Reason, message: impl Into<String>) -> Self {
        Self { truth, reason, message: message.into() }
    }

    pub fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Truth::True, reason, message)
    }

    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Truth::False, reason, message)
    }

    /// A problem, and what happens next.
    pub fn problem(problem: &Problem, next: &str) -> Self {
        Self::no(problem.reason, sentence(problem, next))
    }
}

/// How a message says when the next attempt is: always last.
pub(super) const RETRYING: &str = "retrying at";
/// The same of what is only looked for.
pub(super) const LOOKING: &str = "looking again at";

/// A message without when the next attempt is: what stays the same from one to the next.
pub(super) fn lasting(message: &str) -> &str {
    let next = [RETRYING, LOOKING].iter().find_map(|words| message.rfind(&format!("; {words} ")));
    next.and_then(|end| message.get(..end)).unwrap_or(message)
}

/// What failed, and after a semicolon what happens next.
pub(super) fn sentence(problem: &Problem, next: &str) -> String {
    let what = problem.message.trim_end_matches(|end: char| end == '.' || end.is_whitespace());
    if next.is_empty() { what.to_owned() } else { format!("{what}; {next}") }
}

/// Builds the conditions of one object.
///
/// `lastTransitionTime` moves only when a status value flips, so equal verdicts give equal conditions.
pub(super) struct Conditions<'a> {
    previous: &'a [Condition],
    generation: i64,
    now: Timestamp,
    list: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    pub fn new(generation: i64, previous: Option<&'a [Condition]>, now: Timestamp) -> Self {
        Self { previous: previous.unwrap_or_default(), generation, now, list: Vec::new() }
    }

    pub fn set(&mut self, kind: ConditionType, verdict: Verdict) {
        let status = verdict.truth.to_string();
        let last_transition_time = condition(self.previous, kind)
            .filter(|before| before.status == status)
            .map_or(Time(self.now), |before| before.last_transition_time.clone());
        self.list.push(Condition {
            last_transition_time,
            message: bounded(verdict.message),
            observed_generation: Some(self.generation),
            reason: verdict.reason.to_string(),
            status,
            type_: kind.to_string(),
        });
    }

    pub fn finish(self) -> Vec<Condition> {
        self.list
    }
}

/// The condition of a type, if it is present.
pub fn condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    let kind = kind.to_string();
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Without what changes how it is read, which names and URIs of a server may hold.
fn bounded(mut message: String) -> String {
    message.retain(|char| char == '\n' || !is_unseen(char));
    if message.len() > LONGEST_MESSAGE {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
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

    fn ready(previous: &[Condition], verdict: Verdict, second: i64) -> Vec<Condition> {
        let mut conditions = Conditions::new(1, Some(previous), at(second));
        conditions.set(ConditionType::Ready, verdict);
        conditions.finish()
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_flips() {
        let first = ready(&[], Verdict::no(Reason::Connecting, "a"), 1);
        let second = ready(&first, Verdict::no(Reason::ConnectFailed, "b"), 2);
        let third = ready(&second, Verdict::yes(Reason::Attached, "c"), 3);
        let times = [&first, &second, &third].map(|list| list[0].last_transition_time.0.as_second());
        assert_eq!(times, [1, 1, 3]);
    }

    #[test]
    fn a_message_is_bounded_and_stays_text() {
        let flood = "é".repeat(LONGEST_MESSAGE);
        let told = ready(&[], Verdict::no(Reason::Exited, flood), 1);
        assert!(told[0].message.len() <= LONGEST_MESSAGE + '…'.len_utf8());
        assert!(told[0].message.ends_with('…'));
        let turned = ready(&[], Verdict::yes(Reason::NameConflict, "agents see \u{202e}x\u{1b}[2J\n"), 1);
        assert_eq!(turned[0].message, "agents see x[2J\n");
    }

    #[test]
    fn a_sentence_says_what_happens_next() {
        let problem = Problem::new(Reason::Exited, "exited with code 3.\n");
        assert_eq!(sentence(&problem, "retrying"), "exited with code 3; retrying");
        assert_eq!(sentence(&problem, ""), "exited with code 3");
        let next = format!("{RETRYING} 12:04:31 UTC, attempt 4");
        assert_eq!(lasting(&sentence(&problem, &next)), "exited with code 3");
        assert_eq!(lasting("one; two"), "one; two");
    }
}
