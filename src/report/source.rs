use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::{ConditionStatus, ConditionValue, ConditionsBuilder, problem_message};
use crate::resource::{ConditionType, Origin, Problem, Reason, SourceProblem, SourceState, WatchMethod};

/// The spec of the read-only kind `Source`: the directory or cluster that this instance reads.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "evenkeel.dev",
    version = "v1alpha1",
    kind = "Source",
    root = "SourceResource",
    plural = "sources",
    shortname = "src",
    status = "SourceStatus",
    derive = "PartialEq",
    doc = "The source that this evenkeel instance reads: a directory or a cluster. \
        It is read-only and cannot be declared.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.servers"),
    printcolumn(name = "Attached", type_ = "integer", json_path = ".status.attached"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.tools"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.revision"),
    printcolumn(name = "Directory", type_ = "string", json_path = ".spec.directory", priority = 1),
    printcolumn(name = "Watching", type_ = "string", json_path = ".status.watching", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SourceSpec {
    /// The directory as given on the command line, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The API server, and the namespaces that are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// The status of the read-only kind `Source`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Always 1: the spec of a source does not change while evenkeel runs.
    pub observed_generation: i64,
    /// Ready, Stalled.
    pub conditions: Vec<Condition>,
    /// The git commit, with `-dirty` if the tree has changes, or a digest without git; empty before the first scan.
    pub revision: String,
    /// `Events` or `Polling`.
    pub watching: String,
    /// The declarations and files that could not be read.
    pub faults: Vec<SourceFault>,
    /// The declarations that were read and have no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<SourceFault>,
    /// Documents of other API groups, which were ignored.
    pub foreign_documents: usize,
    /// The counts of its servers.
    #[serde(flatten)]
    pub counts: ServerCounts,
}

/// Counts over all servers.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCounts {
    /// The number of declared servers.
    pub servers: usize,
    /// The number of ready servers: attached, or idle until the next call.
    pub attached: usize,
    /// The number of tools that they offer to agents, after filters.
    pub tools: usize,
}

/// A part of the source that could not be read.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFault {
    /// The file, relative to the directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The column in the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// The reason.
    pub reason: Reason,
    /// The problem and how to fix it, followed by the surrounding lines if there are any.
    pub message: String,
}

/// Returns the status of the source. The counts are copied from the previous status.
pub fn source_status(state: &SourceState, previous: Option<&SourceStatus>, now: Timestamp) -> SourceStatus {
    let mut conditions =
        ConditionsBuilder::new(1, previous.map(|previous| previous.conditions.as_slice()), now);
    let first = state.problems.first();
    conditions.set(
        ConditionType::Ready,
        match first {
            Some(fault) => ConditionValue::from_problem(
                &located_problem(fault),
                &more_faults_message(state.problems.len()),
            ),
            None if !state.synced => ConditionValue::new(
                ConditionStatus::Unknown,
                Reason::Progressing,
                "the source has not been read completely yet",
            ),
            // A cluster has no revision.
            None if state.revision.is_empty() => {
                let suffix = state.empty_scope.as_ref();
                let suffix =
                    suffix.map_or_else(String::new, |scope| format!("; {}", nothing_declared_message(scope)));
                ConditionValue::new_true(Reason::Available, format!("everything was read{suffix}"))
            }
            None => {
                ConditionValue::new_true(Reason::Available, format!("read at revision {}", state.revision))
            }
        },
    );
    if let Some(fault) = state.problems.iter().find(|fault| fault.problem.reason.requires_user_action()) {
        conditions.set(
            ConditionType::Stalled,
            ConditionValue::new_true(fault.problem.reason, problem_message(&located_problem(fault), "")),
        );
    }
    SourceStatus {
        observed_generation: 1,
        conditions: conditions.finish().0,
        revision: state.revision.to_string(),
        watching: match state.watch_method {
            WatchMethod::Events => "Events".to_owned(),
            WatchMethod::Polling => "Polling".to_owned(),
        },
        faults: state.problems.iter().map(SourceFault::from_problem).collect(),
        warnings: state.warnings.iter().map(SourceFault::from_problem).collect(),
        foreign_documents: state.foreign_documents,
        counts: previous.map(|previous| previous.counts).unwrap_or_default(),
    }
}

/// Returns the message for a place without any declaration.
pub(super) fn nothing_declared_message(scope: &str) -> String {
    format!("nothing is declared in {scope}")
}

impl SourceFault {
    fn from_problem(fault: &SourceProblem) -> Self {
        let file = fault.origin.as_ref().and_then(Origin::file);
        let (file, line) = file.map(|(path, line)| (path.display().to_string(), line)).unzip();
        let mut message = fault.problem.message.clone();
        if let Some(excerpt) = &fault.excerpt {
            message = format!("{message}\n{excerpt}");
        }
        Self { file, line, column: fault.column, reason: fault.problem.reason, message }
    }
}

/// Returns the problem of a fault, with file and position before the message.
pub(super) fn located_problem(fault: &SourceProblem) -> Problem {
    let Problem { reason, message } = fault.problem.clone();
    match fault.location() {
        Some(location) => Problem::new(reason, format!("{location}: {message}")),
        None => Problem::new(reason, message),
    }
}

fn more_faults_message(faults: usize) -> String {
    match faults {
        0 | 1 => String::new(),
        2 => "one more fault is in status.faults".to_owned(),
        more => format!("{} more faults are in status.faults", more - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::report::conditions::find_condition;
    use crate::resource::testing::at;

    fn fault(line: u32) -> SourceProblem {
        SourceProblem {
            origin: Some(Origin::File { path: Arc::new(PathBuf::from("a.yaml")), line }),
            column: Some(5),
            problem: Problem::new(Reason::ParseError, "expected a map"),
            excerpt: Some("   3 | [\n     | ^".to_owned()),
        }
    }

    fn state(synced: bool, faults: Vec<SourceProblem>) -> SourceState {
        SourceState { synced, revision: "r1".into(), problems: faults, ..SourceState::default() }
    }

    #[test]
    fn source_is_ready_when_everything_was_read() {
        for (state, ready, stalled) in [
            (state(false, vec![]), "Unknown/Progressing the source has not been read completely yet", false),
            (state(true, vec![]), "True/Available read at revision r1", false),
            (state(true, vec![fault(3)]), "False/ParseError a.yaml:3:5: expected a map", true),
            (
                state(true, vec![fault(3), fault(4), fault(5)]),
                "False/ParseError a.yaml:3:5: expected a map; 2 more faults are in status.faults",
                true,
            ),
        ] {
            let status = source_status(&state, None, at(1));
            let condition = find_condition(&status.conditions, ConditionType::Ready).unwrap();
            assert_eq!(format!("{}/{} {}", condition.status, condition.reason, condition.message), ready);
            let is_stalled = find_condition(&status.conditions, ConditionType::Stalled).is_some();
            assert_eq!(is_stalled, stalled, "{ready}");
            assert!(status.faults.iter().all(|fault| fault.message.contains("3 | [")));
            assert_eq!(source_status(&state, Some(&status), at(2)), status);
        }
    }
}
