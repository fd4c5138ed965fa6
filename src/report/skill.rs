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
    standing: Option<&SkillState>,
    written: &SyncResults,
    previous: Option<&SkillStatus>,
    now: Timestamp,
) -> SkillStatus {
    let meta = &declared.meta;
    let work = SkillPhase::determine(declared, standing, written);
    let mut conditions =
        ConditionsBuilder::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    conditions.set(ConditionType::Ready, ready_condition(&work));
    conditions.set(
        ConditionType::Accepted,
        match rejection(declared, standing) {
            Some(problem) => ConditionValue::from_problem(problem, ""),
            None => ConditionValue::new_true(Reason::Accepted, "the declaration is valid"),
        },
    );
    conditions.set(ConditionType::ResolvedRefs, resolved_refs_condition(declared, standing));
    if matches!(work, SkillPhase::NotScanned | SkillPhase::WaitingForStartup(_) | SkillPhase::PendingWrite) {
        let verdict = ConditionValue::new_true(Reason::Progressing, ready_condition(&work).message);
        conditions.set(ConditionType::Reconciling, verdict);
    } else if let SkillPhase::MissingReference(problem) | SkillPhase::WriteFailed(problem) = work
        && !problem.reason.requires_user_action()
    {
        conditions.set(
            ConditionType::Reconciling,
            ConditionValue::new_true(Reason::ProgressingWithRetry, problem_message(problem, "")),
        );
    }
    if let SkillPhase::Rejected(problem) | SkillPhase::WriteFailed(problem) = work
        && problem.reason.requires_user_action()
    {
        conditions.set(
            ConditionType::Stalled,
            ConditionValue::new_true(problem.reason, problem_message(problem, "")),
        );
    }
    let bundle = standing.and_then(|standing| standing.bundle.as_ref());
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
    /// It has not been written to every directory yet.
    PendingWrite,
    /// It could not be written to a directory.
    WriteFailed(&'a Problem),
    /// It is offered to agents, in the named places.
    Available(String),
}

impl<'a> SkillPhase<'a> {
    fn determine(
        declared: &'a DeclaredObject<SkillSpec>,
        standing: Option<&'a SkillState>,
        written: &'a SyncResults,
    ) -> Self {
        if let Some(problem) = rejection(declared, standing) {
            return Self::Rejected(problem);
        }
        if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
            return Self::Suspended;
        }
        let Some(standing) = standing else { return Self::NotScanned };
        match (&standing.missing_server, &standing.bundle, &standing.content_problem) {
            (Some(missing), ..) if missing.during_startup => {
                return Self::WaitingForStartup(&missing.problem);
            }
            (Some(missing), ..) => return Self::MissingReference(&missing.problem),
            (None, None, Some(problem)) => return Self::MissingReference(problem),
            (None, None, None) => return Self::NotScanned,
            (None, Some(_), _) => {}
        }
        let outcomes = written.by_skill.get(&declared.meta.key);
        if let Some(problem) =
            outcomes.into_iter().flat_map(BTreeMap::values).find_map(|told| told.problem.as_ref())
        {
            return Self::WriteFailed(problem);
        }
        let places = outcomes.into_iter().flat_map(BTreeMap::keys);
        let places: Vec<_> = places.map(|place| written.directory(*place).display().to_string()).collect();
        match (places.len() == written.directories.len(), &*places) {
            (false, _) => Self::PendingWrite,
            (true, []) => Self::Available("offered over MCP".to_owned()),
            (true, places) => Self::Available(format!("offered over MCP and in {}", places.join(", "))),
        }
    }
}

/// Returns the problem because of which the latest declaration or content is rejected. A missing ConfigMap is no
/// rejection.
fn rejection<'a>(
    declared: &'a DeclaredObject<SkillSpec>,
    standing: Option<&'a SkillState>,
) -> Option<&'a Problem> {
    let content = standing.and_then(|standing| standing.content_problem.as_ref());
    declared.rejected.as_ref().or_else(|| content.filter(|problem| problem.reason == Reason::InvalidSpec))
}

fn ready_condition(work: &SkillPhase<'_>) -> ConditionValue {
    match work {
        SkillPhase::Rejected(problem) | SkillPhase::WriteFailed(problem) => {
            ConditionValue::from_problem(problem, "")
        }
        SkillPhase::Suspended => ConditionValue::new_false(Reason::Suspended, "suspended by spec.suspend"),
        SkillPhase::NotScanned => {
            ConditionValue::new_false(Reason::Progressing, "the files of the skill are being read")
        }
        SkillPhase::MissingReference(problem) => {
            ConditionValue::from_problem(problem, "will be offered once it exists")
        }
        SkillPhase::WaitingForStartup(problem) => ConditionValue::new_false(
            Reason::Progressing,
            problem_message(problem, "will be offered once it exists"),
        ),
        SkillPhase::PendingWrite => {
            ConditionValue::new_false(Reason::Progressing, "the skill is being written")
        }
        SkillPhase::Available(places) => ConditionValue::new_true(Reason::Available, places),
    }
}

fn resolved_refs_condition(
    declared: &DeclaredObject<SkillSpec>,
    standing: Option<&SkillState>,
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
    let unseen = || ConditionValue::new(ConditionStatus::Unknown, Reason::Progressing, "not looked up yet");
    let Some(standing) = standing else { return unseen() };
    let content = standing.content_problem.as_ref().filter(|problem| problem.reason != Reason::InvalidSpec);
    match (content, &standing.missing_server) {
        (Some(problem), _) => ConditionValue::from_problem(problem, ""),
        (None, Some(missing)) if missing.during_startup => unseen(),
        (None, Some(missing)) => ConditionValue::from_problem(&missing.problem, ""),
        (None, None) if standing.bundle.is_none() && standing.content_problem.is_none() => unseen(),
        (None, None) => ConditionValue::new_true(Reason::ResolvedRefs, "all references were found"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::resource::bundle::Bundle;
    use crate::resource::testing::{at, key, meta};
    use crate::skills::{MissingServer, SyncOutcome};

    #[test]
    fn skill_state_determines_the_conditions() {
        let bundle = Arc::new(Bundle::from_text("s", "---\nname: s\ndescription: Does it.\n---\n").unwrap());
        let standing = SkillState {
            uid: "uid-s".into(),
            bundle: Some(bundle.clone()),
            content_problem: None,
            missing_server: None,
            suspended: false,
        };
        let problem = |reason| Some(Problem::new(reason, "problem"));
        let empty = SkillState { bundle: None, ..standing.clone() };
        let malformed = SkillState { content_problem: problem(Reason::InvalidSpec), ..standing.clone() };
        let no_map = SkillState { content_problem: problem(Reason::ConfigMapNotFound), ..empty.clone() };
        let lost_map = SkillState { content_problem: problem(Reason::ConfigMapNotFound), ..standing.clone() };
        let missing = |early| MissingServer {
            problem: problem(Reason::ServerNotFound).unwrap(),
            during_startup: early,
        };
        let waiting = SkillState { missing_server: Some(missing(false)), ..standing.clone() };
        let early = SkillState { missing_server: Some(missing(true)), ..standing.clone() };
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
        let there = written(Some(None));
        let nowhere = SyncResults::default();
        let [pending, failed, taken] =
            [None, Some(problem(Reason::WriteFailed)), Some(problem(Reason::Shadowed))].map(written);
        let (map, refs) = (
            json!({ "configMapRef": { "name": "m" } }),
            json!({ "inline": "x", "serverRefs": [{ "name": "a" }] }),
        );
        let (text, suspended) = (json!({ "inline": "x" }), json!({ "inline": "x", "suspend": true }));
        let accepted = "Accepted=True/Accepted";
        let resolved = "ResolvedRefs=True/ResolvedRefs";
        let table: Vec<(&Value, Option<&SkillState>, &SyncResults, String)> = vec![
            (&text, Some(&standing), &there, format!("Ready=True/Available {accepted} {resolved}")),
            (
                &text,
                None,
                &there,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (
                &text,
                Some(&empty),
                &there,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (&suspended, Some(&standing), &there, format!("Ready=False/Suspended {accepted} {resolved}")),
            (
                &text,
                Some(&malformed),
                &there,
                format!(
                    "Ready=False/InvalidSpec Accepted=False/InvalidSpec {resolved} Stalled=True/InvalidSpec"
                ),
            ),
            (
                &map,
                Some(&no_map),
                &there,
                format!(
                    "Ready=False/ConfigMapNotFound {accepted} ResolvedRefs=False/ConfigMapNotFound Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &map,
                Some(&lost_map),
                &there,
                format!("Ready=True/Available {accepted} ResolvedRefs=False/ConfigMapNotFound"),
            ),
            (
                &refs,
                Some(&waiting),
                &there,
                format!(
                    "Ready=False/ServerNotFound {accepted} ResolvedRefs=False/ServerNotFound Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &refs,
                Some(&early),
                &there,
                format!(
                    "Ready=False/Progressing {accepted} ResolvedRefs=Unknown/Progressing Reconciling=True/Progressing"
                ),
            ),
            (&refs, Some(&standing), &there, format!("Ready=True/Available {accepted} {resolved}")),
            (&text, Some(&standing), &nowhere, format!("Ready=True/Available {accepted} {resolved}")),
            (
                &text,
                Some(&standing),
                &pending,
                format!("Ready=False/Progressing {accepted} {resolved} Reconciling=True/Progressing"),
            ),
            (
                &text,
                Some(&standing),
                &failed,
                format!(
                    "Ready=False/WriteFailed {accepted} {resolved} Reconciling=True/ProgressingWithRetry"
                ),
            ),
            (
                &text,
                Some(&standing),
                &taken,
                format!("Ready=False/Shadowed {accepted} {resolved} Stalled=True/Shadowed"),
            ),
        ];
        for (spec, standing, written, expected) in table {
            let declared = DeclaredObject {
                meta: meta("s", 1),
                spec: Some(serde_json::from_value(spec.clone()).unwrap()),
                spec_digest: None,
                rejected: None,
                endpoint: None,
            };
            let status = skill_status(&declared, standing, written, None, at(1));
            let line: Vec<_> = status
                .conditions
                .iter()
                .map(|told| format!("{}={}/{}", told.type_, told.status, told.reason))
                .collect();
            assert_eq!(line.join(" "), expected, "{spec} {standing:?}");
            assert_eq!(skill_status(&declared, standing, written, Some(&status), at(2)), status);
        }
        let declared = DeclaredObject {
            meta: meta("s", 1),
            spec: None,
            spec_digest: None,
            rejected: problem(Reason::InvalidSpec),
            endpoint: None,
        };
        let status = skill_status(&declared, Some(&empty), &there, None, at(1));
        assert_eq!(status.conditions[2].status, "Unknown");
    }
}
