use std::collections::BTreeMap;

use jiff::Timestamp;

use super::conditions::{ConditionStatus, ConditionValue, ConditionsBuilder, problem_message};
use crate::resource::{ConditionType, DeclaredObject, Problem, Reason, SkillSpec, SkillStatus};
use crate::skills::{SkillState, SyncResults};

/// Returns the status of one skill: whether it is accepted, whether it is offered, and where.
///
/// Guarantees, as for servers, that equal arguments (except `now`) and the previous result as `previous` give the same
/// status again.
pub fn skill_status(
    declared: &DeclaredObject<SkillSpec>,
    state: Option<&SkillState>,
    sync_results: &SyncResults,
    previous: Option<&SkillStatus>,
    now: Timestamp,
) -> SkillStatus {
    let meta = &declared.meta;
    let phase = SkillPhase::determine(declared, state, sync_results);
    let mut conditions =
        ConditionsBuilder::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    conditions.set(ConditionType::Ready, ready_condition(&phase));
    conditions.set(
        ConditionType::Accepted,
        match rejection(declared, state) {
            Some(problem) => ConditionValue::from_problem(problem, ""),
            None => ConditionValue::new_true(Reason::Accepted, "the declaration is valid"),
        },
    );
    conditions.set(ConditionType::ResolvedRefs, resolved_refs_condition(declared, state));
    if matches!(phase, SkillPhase::NotScanned | SkillPhase::WaitingForStartup(_) | SkillPhase::PendingWrite) {
        let value = ConditionValue::new_true(Reason::Progressing, ready_condition(&phase).message);
        conditions.set(ConditionType::Reconciling, value);
    } else if let SkillPhase::MissingReference(problem) | SkillPhase::WriteFailed(problem) = phase
        && !problem.reason.requires_user_action()
    {
        conditions.set(
            ConditionType::Reconciling,
            ConditionValue::new_true(Reason::ProgressingWithRetry, problem_message(problem, "")),
        );
    }
    if let SkillPhase::Rejected(problem) | SkillPhase::WriteFailed(problem) = phase
        && problem.reason.requires_user_action()
    {
        conditions.set(
            ConditionType::Stalled,
            ConditionValue::new_true(problem.reason, problem_message(problem, "")),
        );
    }
    let bundle = state.and_then(|state| state.bundle.as_ref());
    if let Some(problem) = bundle.and_then(|bundle| bundle.degraded()) {
        let value = ConditionValue::new_true(problem.reason, problem_message(problem, ""));
        conditions.set(ConditionType::Degraded, value);
    }
    SkillStatus {
        observed_generation: Some(meta.generation),
        conditions: conditions.finish().0,
        source: declared.spec.as_ref().map(|spec| spec.source_kind().to_owned()),
        description: bundle.map(|bundle| bundle.description().to_owned()),
        files: bundle.map(|bundle| u32::try_from(bundle.files().len()).unwrap_or(u32::MAX)),
        content_digest: bundle.map(|bundle| bundle.digest().to_string()),
        spec_digest: declared.spec_digest.map(|digest| digest.to_string()),
        last_applied_revision: Some(meta.revision.to_string()),
    }
}

/// The state of a skill that determines its conditions.
enum SkillPhase<'a> {
    /// The latest declaration or content is rejected. The last valid one is still offered.
    Rejected(&'a Problem),
    Suspended,
    /// Its files have not been read yet.
    NotScanned,
    /// A reference does not exist.
    MissingReference(&'a Problem),
    /// A referenced server does not exist yet, while the initial servers are connecting.
    WaitingForStartup(&'a Problem),
    /// Not written to every directory yet.
    PendingWrite,
    /// Writing it to a directory failed.
    WriteFailed(&'a Problem),
    /// Offered to agents, in the named places.
    Available(String),
}

impl<'a> SkillPhase<'a> {
    fn determine(
        declared: &'a DeclaredObject<SkillSpec>,
        state: Option<&'a SkillState>,
        sync_results: &'a SyncResults,
    ) -> Self {
        if let Some(problem) = rejection(declared, state) {
            return Self::Rejected(problem);
        }
        if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
            return Self::Suspended;
        }
        let Some(state) = state else { return Self::NotScanned };
        match (&state.missing_server, &state.bundle, &state.content_problem) {
            (Some(missing), ..) if missing.during_startup => {
                return Self::WaitingForStartup(&missing.problem);
            }
            (Some(missing), ..) => return Self::MissingReference(&missing.problem),
            (None, None, Some(problem)) => return Self::MissingReference(problem),
            (None, None, None) => return Self::NotScanned,
            (None, Some(_), _) => {}
        }
        let outcomes = sync_results.by_skill.get(&declared.meta.key);
        if let Some(problem) =
            outcomes.into_iter().flat_map(BTreeMap::values).find_map(|outcome| outcome.problem.as_ref())
        {
            return Self::WriteFailed(problem);
        }
        let directories = outcomes.into_iter().flat_map(BTreeMap::keys);
        let directories: Vec<_> =
            directories.map(|directory| sync_results.directory(*directory).display().to_string()).collect();
        match (directories.len() == sync_results.directories.len(), &*directories) {
            (false, _) => Self::PendingWrite,
            (true, []) => Self::Available("offered over MCP".to_owned()),
            (true, directories) => {
                Self::Available(format!("offered over MCP and in {}", directories.join(", ")))
            }
        }
    }
}

/// Returns the problem because of which the latest declaration or content is rejected. A missing ConfigMap is no
/// rejection.
fn rejection<'a>(
    declared: &'a DeclaredObject<SkillSpec>,
    state: Option<&'a SkillState>,
) -> Option<&'a Problem> {
    let content = state.and_then(|state| state.content_problem.as_ref());
    declared.rejected.as_ref().or_else(|| content.filter(|problem| problem.reason == Reason::InvalidSpec))
}

fn ready_condition(phase: &SkillPhase<'_>) -> ConditionValue {
    match phase {
        SkillPhase::Rejected(problem) | SkillPhase::WriteFailed(problem) => {
            ConditionValue::from_problem(problem, "")
        }
        SkillPhase::Suspended => ConditionValue::new_false(Reason::Suspended, "suspended by spec.suspend"),
        SkillPhase::NotScanned => {
            ConditionValue::new_false(Reason::Progressing, "the files of the skill are being read")
        }
        SkillPhase::MissingReference(problem) => {
            ConditionValue::from_problem(problem, "the skill is offered once it exists")
        }
        SkillPhase::WaitingForStartup(problem) => ConditionValue::new_false(
            Reason::Progressing,
            problem_message(problem, "the skill is offered once it exists"),
        ),
        SkillPhase::PendingWrite => {
            ConditionValue::new_false(Reason::Progressing, "the skill is being written")
        }
        SkillPhase::Available(places) => ConditionValue::new_true(Reason::Available, places),
    }
}

fn resolved_refs_condition(
    declared: &DeclaredObject<SkillSpec>,
    state: Option<&SkillState>,
) -> ConditionValue {
    let Some(spec) = &declared.spec else {
        let reason = declared.rejected.as_ref().map_or(Reason::Progressing, |problem| problem.reason);
        return ConditionValue::new(
            ConditionStatus::Unknown,
            reason,
            "not looked up: there is no valid declaration",
        );
    };
    if spec.server_refs.is_empty() && spec.config_map_ref.is_none() {
        return ConditionValue::new_true(Reason::ResolvedRefs, "the skill has no references");
    }
    let unknown = || ConditionValue::new(ConditionStatus::Unknown, Reason::Progressing, "not looked up yet");
    let Some(state) = state else { return unknown() };
    let content = state.content_problem.as_ref().filter(|problem| problem.reason != Reason::InvalidSpec);
    match (content, &state.missing_server) {
        (Some(problem), _) => ConditionValue::from_problem(problem, ""),
        (None, Some(missing)) if missing.during_startup => unknown(),
        (None, Some(missing)) => ConditionValue::from_problem(&missing.problem, ""),
        (None, None) if state.bundle.is_none() && state.content_problem.is_none() => unknown(),
        (None, None) => ConditionValue::new_true(Reason::ResolvedRefs, "all references were found"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::resource::bundle::{Bundle, SKILL_FILE, SkillError, SkillFile, SkillLocation};
    use crate::resource::testing::{at, key, meta};
    use crate::skills::{MissingServer, SyncOutcome};

    fn bundle_of(text: &str, left_out: &[SkillError]) -> Arc<Bundle> {
        let files = BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]);
        let location = SkillLocation::Text("spec.inline".to_owned());
        Arc::new(Bundle::from_source("s", &location, files, left_out).unwrap())
    }

    #[test]
    fn skill_state_determines_the_conditions() {
        let bundle = Arc::new(Bundle::from_text("s", "---\nname: s\ndescription: Does it.\n---\n").unwrap());
        let state = SkillState {
            uid: "uid-s".into(),
            bundle: Some(bundle.clone()),
            content_problem: None,
            missing_server: None,
            suspended: false,
        };
        let problem = |reason| Some(Problem::new(reason, "problem"));
        let empty = SkillState { bundle: None, ..state.clone() };
        let tolerated = bundle_of("---\ndescription: Does it.\n---\n", &[]);
        let tolerated = SkillState { bundle: Some(tolerated), ..state.clone() };
        let left_out = [SkillError::for_file("node_modules", "is left out")];
        let left_out = bundle_of("---\nname: s\ndescription: Does it.\n---\n", &left_out);
        let left_out = SkillState { bundle: Some(left_out), ..state.clone() };
        let malformed = SkillState { content_problem: problem(Reason::InvalidSpec), ..state.clone() };
        let no_map = SkillState { content_problem: problem(Reason::ConfigMapNotFound), ..empty.clone() };
        let lost_map = SkillState { content_problem: problem(Reason::ConfigMapNotFound), ..state.clone() };
        let missing = |early| MissingServer {
            problem: problem(Reason::ServerNotFound).unwrap(),
            during_startup: early,
        };
        let waiting = SkillState { missing_server: Some(missing(false)), ..state.clone() };
        let early = SkillState { missing_server: Some(missing(true)), ..state.clone() };
        let written = |outcome: Option<Option<Problem>>| SyncResults {
            directories: [std::path::PathBuf::from("/home/a/.claude/skills")].into(),
            by_skill: outcome
                .map(|problem| {
                    let outcome = SyncOutcome { digest: bundle.digest(), problem };
                    (key("s"), BTreeMap::from([(0, outcome)]))
                })
                .into_iter()
                .collect(),
        };
        let synced = written(Some(None));
        let no_directories = SyncResults::default();
        let [pending, failed, shadowed] =
            [None, Some(problem(Reason::WriteFailed)), Some(problem(Reason::Shadowed))].map(written);
        let (map, refs) = (
            json!({ "configMapRef": { "name": "m" } }),
            json!({ "inline": "x", "serverRefs": [{ "name": "a" }] }),
        );
        let (text, suspended) = (json!({ "inline": "x" }), json!({ "inline": "x", "suspend": true }));
        let accepted = "Accepted=True/Accepted";
        let resolved = "ResolvedRefs=True/ResolvedRefs";
        let table: Vec<(&Value, Option<&SkillState>, &SyncResults, String)> = vec![
            (&text, Some(&state), &synced, format!("Ready=True/Available {accepted} {resolved}")),
            (
                &text,
                None,
                &synced,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (
                &text,
                Some(&empty),
                &synced,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (
                &text,
                Some(&tolerated),
                &no_directories,
                format!("Ready=True/Available {accepted} {resolved} Degraded=True/NonCompliant"),
            ),
            (
                &text,
                Some(&left_out),
                &no_directories,
                format!("Ready=True/Available {accepted} {resolved} Degraded=True/ItemsLeftOut"),
            ),
            (&suspended, Some(&state), &synced, format!("Ready=False/Suspended {accepted} {resolved}")),
            (
                &text,
                Some(&malformed),
                &synced,
                format!(
                    "Ready=False/InvalidSpec Accepted=False/InvalidSpec {resolved} Stalled=True/InvalidSpec"
                ),
            ),
            (
                &map,
                Some(&no_map),
                &synced,
                format!(
                    "Ready=False/ConfigMapNotFound {accepted} ResolvedRefs=False/ConfigMapNotFound \
                     Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &map,
                Some(&lost_map),
                &synced,
                format!("Ready=True/Available {accepted} ResolvedRefs=False/ConfigMapNotFound"),
            ),
            (
                &refs,
                Some(&waiting),
                &synced,
                format!(
                    "Ready=False/ServerNotFound {accepted} ResolvedRefs=False/ServerNotFound \
                     Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &refs,
                Some(&early),
                &synced,
                format!(
                    "Ready=False/Progressing {accepted} ResolvedRefs=Unknown/Progressing Reconciling=True/Progressing"
                ),
            ),
            (&refs, Some(&state), &synced, format!("Ready=True/Available {accepted} {resolved}")),
            (&text, Some(&state), &no_directories, format!("Ready=True/Available {accepted} {resolved}")),
            (
                &text,
                Some(&state),
                &pending,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (
                &text,
                Some(&state),
                &failed,
                format!(
                    "Ready=False/WriteFailed {accepted} {resolved} Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &text,
                Some(&state),
                &shadowed,
                format!("Ready=False/Shadowed {accepted} {resolved} Stalled=True/Shadowed"),
            ),
        ];
        for (spec, state, written, expected) in table {
            let declared = DeclaredObject {
                meta: meta("s", 1),
                spec: Some(serde_json::from_value(spec.clone()).unwrap()),
                spec_digest: None,
                rejected: None,
                endpoint: None,
            };
            let status = skill_status(&declared, state, written, None, at(1));
            let line: Vec<_> = status
                .conditions
                .iter()
                .map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
                .collect();
            assert_eq!(line.join(" "), expected, "{spec} {state:?}");
            assert_eq!(skill_status(&declared, state, written, Some(&status), at(2)), status);
        }
        let declared = DeclaredObject {
            meta: meta("s", 1),
            spec: None,
            spec_digest: None,
            rejected: problem(Reason::InvalidSpec),
            endpoint: None,
        };
        let status = skill_status(&declared, Some(&empty), &synced, None, at(1));
        assert_eq!(status.conditions[2].status, "Unknown");
    }
}
