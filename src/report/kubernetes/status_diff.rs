//! Decides whether a status has to be written, and how soon. Pure functions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::report::{ConditionStatus, find_condition};
use crate::resource::{ConditionType, McpServerStatus, Reason, SkillStatus};

/// The condition types that evenkeel owns. Those of other field managers are left unchanged.
const OWNED_CONDITIONS: [ConditionType; 6] = [
    ConditionType::Ready,
    ConditionType::Accepted,
    ConditionType::ResolvedRefs,
    ConditionType::Attached,
    ConditionType::Reconciling,
    ConditionType::Stalled,
];

/// The delay for a status whose work has only begun, because it will change soon.
const PROGRESSING_WRITE_DELAY: Duration = Duration::from_secs(1);
/// The delay for such a status if the stored one is ready: after a restart the object usually becomes ready again.
const RESTART_WRITE_DELAY: Duration = Duration::from_secs(10);
/// The delay for a status that differs only in numbers and messages.
const MINOR_CHANGE_WRITE_DELAY: Duration = Duration::from_secs(1);

/// A status with conditions.
pub(super) trait StatusFields: Clone + PartialEq {
    fn conditions(&self) -> &[Condition];
    fn conditions_mut(&mut self) -> &mut Vec<Condition>;
    fn generation(&self) -> Option<i64>;
    /// Creates a status with only a generation and conditions.
    fn from_conditions(generation: i64, conditions: Vec<Condition>) -> Self;
}

macro_rules! impl_status_fields {
    ($($status:ty),+) => {$(
        impl StatusFields for $status {
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }

            fn conditions_mut(&mut self) -> &mut Vec<Condition> {
                &mut self.conditions
            }

            fn generation(&self) -> Option<i64> {
                self.observed_generation
            }

            fn from_conditions(generation: i64, conditions: Vec<Condition>) -> Self {
                Self { observed_generation: Some(generation), conditions, ..Self::default() }
            }
        }
    )+};
}

impl_status_fields!(McpServerStatus, SkillStatus);

/// Returns the status to write if `stored` differs from `desired`, else `None`.
///
/// A condition whose status value is already stored keeps its transition time.
pub(super) fn status_to_write<T: StatusFields>(mut desired: T, stored: Option<&T>) -> Option<T> {
    let Some(stored) = stored else { return Some(desired) };
    for condition in desired.conditions_mut() {
        let previous = stored.conditions().iter().find(|previous| previous.type_ == condition.type_);
        if let Some(previous) = previous.filter(|previous| previous.status == condition.status) {
            condition.last_transition_time = previous.last_transition_time.clone();
        }
    }
    (owned_fields(&desired) != owned_fields(stored)).then_some(desired)
}

/// Returns the status of an object that is being deleted.
pub(super) fn removed_status<T: StatusFields>(generation: i64, now: Timestamp) -> T {
    let ready = Condition {
        type_: ConditionType::Ready.to_string(),
        status: ConditionStatus::False.to_string(),
        reason: Reason::Removed.to_string(),
        message:
            "being deleted and no longer offered to agents; the object is removed with its last finalizer"
                .into(),
        observed_generation: Some(generation),
        last_transition_time: Time(now),
    };
    T::from_conditions(generation, vec![ready])
}

/// True if two statuses are equal in everything that evenkeel owns.
pub(super) fn same_owned_fields<T: StatusFields>(one: Option<&T>, other: Option<&T>) -> bool {
    one.map(owned_fields) == other.map(owned_fields)
}

/// Returns how long a write may be delayed to include further changes.
pub(super) fn write_delay<T: StatusFields>(desired: &T, stored: Option<&T>) -> Duration {
    let stored = stored.filter(|stored| stored.generation() == desired.generation());
    let has_status = |status: &T, kind, expected: &str| {
        find_condition(status.conditions(), kind).is_some_and(|condition| condition.status == expected)
    };
    let is_progressing = find_condition(desired.conditions(), ConditionType::Reconciling)
        .is_some_and(|condition| condition.reason == Reason::Progressing.to_string());
    match stored {
        Some(stored) if is_progressing && has_status(stored, ConditionType::Ready, "True") => {
            RESTART_WRITE_DELAY
        }
        _ if is_progressing => PROGRESSING_WRITE_DELAY,
        Some(stored) if condition_states(desired) == condition_states(stored) => MINOR_CHANGE_WRITE_DELAY,
        _ => Duration::ZERO,
    }
}

/// Returns the status with sorted conditions and without those of other field managers.
fn owned_fields<T: StatusFields>(status: &T) -> T {
    let mut status = status.clone();
    let conditions = status.conditions_mut();
    conditions.retain(|condition| OWNED_CONDITIONS.iter().any(|kind| kind.to_string() == condition.type_));
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    status
}

fn condition_states<T: StatusFields>(status: &T) -> Vec<(String, String, String)> {
    let state =
        |condition: &Condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone());
    owned_fields(status).conditions().iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses one word for each condition: `Ready=True/Attached@3` has been true since second 3.
    fn status(generation: i64, tools: u32, conditions: &str) -> McpServerStatus {
        let condition = |text: &str| {
            let (type_, rest) = text.split_once('=').unwrap();
            let (status, rest) = rest.split_once('/').unwrap();
            let (reason, at) = rest.split_once('@').unwrap();
            Condition {
                type_: type_.into(),
                status: status.into(),
                reason: reason.into(),
                message: format!("{tools} tools"),
                observed_generation: Some(generation),
                last_transition_time: Time(Timestamp::from_second(at.parse().unwrap()).unwrap()),
            }
        };
        McpServerStatus {
            observed_generation: Some(generation),
            tools: Some(tools),
            conditions: conditions.split_whitespace().map(condition).collect(),
            ..McpServerStatus::default()
        }
    }

    #[test]
    fn only_differences_are_written_and_transition_times_kept() {
        let stored = status(1, 2, "Other=True/Theirs@1 Accepted=True/Accepted@1 Ready=True/Attached@5");
        // Equal except for the order, the times and the condition of another field manager.
        let equal = status(1, 2, "Ready=True/Attached@9 Accepted=True/Accepted@9");
        assert_eq!(status_to_write(equal, Some(&stored)), None);
        let lost = status(1, 2, "Ready=False/Exited@9 Accepted=True/Accepted@9");
        let written = status_to_write(lost.clone(), Some(&stored)).unwrap();
        let times: Vec<_> =
            written.conditions.iter().map(|condition| condition.last_transition_time.0.as_second()).collect();
        assert_eq!(times, [9, 1]);
        assert_eq!(status_to_write(lost.clone(), None), Some(lost));
        let without_accepted = status(1, 2, "Ready=True/Attached@9");
        assert!(
            status_to_write(without_accepted, Some(&stored)).is_some(),
            "an owned condition that no longer applies is removed"
        );
        let at = |second| Timestamp::from_second(second).unwrap();
        let removed = status_to_write(removed_status::<McpServerStatus>(2, at(7)), Some(&stored)).unwrap();
        assert_eq!((removed.conditions[0].reason.as_str(), removed.tools), ("Removed", None));
        assert_eq!(status_to_write(removed_status(2, at(9)), Some(&removed)), None, "it is written once");
    }

    #[test]
    fn progressing_status_is_written_with_a_delay() {
        let connecting = status(1, 0, "Ready=False/Connecting@1 Reconciling=True/Progressing@1");
        let ready = status(1, 2, "Ready=True/Attached@1");
        let failed = status(1, 0, "Ready=False/Exited@1 Reconciling=True/ProgressingWithRetry@1");
        for (desired, stored, expected) in [
            (&connecting, None, PROGRESSING_WRITE_DELAY),
            (&connecting, Some(&status(2, 2, "Ready=True/Attached@1")), PROGRESSING_WRITE_DELAY),
            (&connecting, Some(&ready), RESTART_WRITE_DELAY),
            (&failed, Some(&ready), Duration::ZERO),
            (&ready, Some(&connecting), Duration::ZERO),
            (&ready, None, Duration::ZERO),
            (&status(1, 3, "Ready=True/Attached@1"), Some(&ready), MINOR_CHANGE_WRITE_DELAY),
        ] {
            assert_eq!(write_delay(desired, stored), expected, "{desired:?} {stored:?}");
        }
    }
}
