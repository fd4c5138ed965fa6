use std::collections::BTreeMap;

use jiff::Timestamp;

use super::conditions::{ConditionStatus, ConditionValue, Conditions, sentence};
use crate::resource::{ConditionType, DeclaredObject, Problem, Reason, SkillSpec, SkillStatus};
use crate::skills::{SkillState, SyncResults};

/// The status of one skill: whether it is accepted, offered, and where.
///
/// Guarantees, as for servers, that equal arguments (but for `now`) and the status they gave before give that
/// status again.
pub fn skill_status(
    declared: &DeclaredObject<SkillSpec>,
    standing: Option<&SkillState>,
    written: &SyncResults,
    previous: Option<&SkillStatus>,
    now: Timestamp,
) -> SkillStatus {
    let meta = &declared.meta;
    let work = Work::of(declared, standing, written);
    let mut conditions =
        Conditions::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    conditions.set(ConditionType::Ready, ready(&work));
    conditions.set(
        ConditionType::Accepted,
        match invalid(declared, standing) {
            Some(problem) => ConditionValue::problem(problem, ""),
            None => ConditionValue::yes(Reason::Accepted, "the declaration is valid"),
        },
    );
    conditions.set(ConditionType::ResolvedRefs, resolved_refs(declared, standing));
    if matches!(work, Work::Unseen | Work::Early(_) | Work::Unwritten) {
        let verdict = ConditionValue::yes(Reason::Progressing, ready(&work).message);
        conditions.set(ConditionType::Reconciling, verdict);
    } else if let Work::Missing(problem) | Work::Failed(problem) = work
        && !problem.reason.needs_a_person()
    {
        conditions.set(
            ConditionType::Reconciling,
            ConditionValue::yes(Reason::ProgressingWithRetry, sentence(problem, "")),
        );
    }
    if let Work::Refused(problem) | Work::Failed(problem) = work
        && problem.reason.needs_a_person()
    {
        conditions.set(ConditionType::Stalled, ConditionValue::yes(problem.reason, sentence(problem, "")));
    }
    let bundle = standing.and_then(|standing| standing.bundle.as_ref());
    SkillStatus {
        observed_generation: Some(meta.generation),
        conditions: conditions.finish().0,
        source: declared.spec.as_ref().map(|spec| spec.source().to_owned()),
        description: bundle.map(|bundle| bundle.description().to_owned()),
        files: bundle.map(|bundle| u32::try_from(bundle.files().len()).unwrap_or(u32::MAX)),
        content_digest: bundle.map(|bundle| bundle.digest().to_string()),
        spec_digest: declared.spec_digest.map(|digest| digest.to_string()),
        last_applied_revision: Some(meta.revision.to_string()),
    }
}

/// Where a skill stands: the one thing of several that decides what its conditions say.
enum Work<'a> {
    /// The newest declaration or content is not accepted; what was good before stays offered.
    Refused(&'a Problem),
    Suspended,
    /// It was not looked at yet.
    Unseen,
    /// What it refers to is not there.
    Missing(&'a Problem),
    /// The same, while the servers of the start are connecting.
    Early(&'a Problem),
    /// It was not written yet.
    Unwritten,
    /// It could not be written somewhere.
    Failed(&'a Problem),
    /// Agents have it, here.
    Available(String),
}

impl<'a> Work<'a> {
    fn of(
        declared: &'a DeclaredObject<SkillSpec>,
        standing: Option<&'a SkillState>,
        written: &'a SyncResults,
    ) -> Self {
        if let Some(problem) = invalid(declared, standing) {
            return Self::Refused(problem);
        }
        if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
            return Self::Suspended;
        }
        let Some(standing) = standing else { return Self::Unseen };
        match (&standing.server, &standing.bundle, &standing.content) {
            (Some(missing), ..) if missing.early => return Self::Early(&missing.problem),
            (Some(missing), ..) => return Self::Missing(&missing.problem),
            (None, None, Some(problem)) => return Self::Missing(problem),
            (None, None, None) => return Self::Unseen,
            (None, Some(_), _) => {}
        }
        let outcomes = written.all.get(&declared.meta.key);
        if let Some(problem) =
            outcomes.into_iter().flat_map(BTreeMap::values).find_map(|told| told.problem.as_ref())
        {
            return Self::Failed(problem);
        }
        let places = outcomes.into_iter().flat_map(BTreeMap::keys);
        let places: Vec<_> = places.map(|place| written.directory(*place).display().to_string()).collect();
        match (places.len() == written.directories.len(), &*places) {
            (false, _) => Self::Unwritten,
            (true, []) => Self::Available("offered over MCP".to_owned()),
            (true, places) => Self::Available(format!("offered over MCP, and in {}", places.join(", "))),
        }
    }
}

/// Why the newest declaration, or what it holds, is not accepted. A ConfigMap that is not there is another matter.
fn invalid<'a>(
    declared: &'a DeclaredObject<SkillSpec>,
    standing: Option<&'a SkillState>,
) -> Option<&'a Problem> {
    let content = standing.and_then(|standing| standing.content.as_ref());
    declared.refused.as_ref().or_else(|| content.filter(|problem| problem.reason == Reason::InvalidSpec))
}

fn ready(work: &Work<'_>) -> ConditionValue {
    match work {
        Work::Refused(problem) | Work::Failed(problem) => ConditionValue::problem(problem, ""),
        Work::Suspended => ConditionValue::no(Reason::Suspended, "suspended by spec.suspend"),
        Work::Unseen => ConditionValue::no(Reason::Progressing, "its files are being looked at"),
        Work::Missing(problem) => ConditionValue::problem(problem, "offered as soon as it is there"),
        Work::Early(problem) => {
            ConditionValue::no(Reason::Progressing, sentence(problem, "offered as soon as it is there"))
        }
        Work::Unwritten => ConditionValue::no(Reason::Progressing, "it is being written"),
        Work::Available(places) => ConditionValue::yes(Reason::Available, places),
    }
}

fn resolved_refs(declared: &DeclaredObject<SkillSpec>, standing: Option<&SkillState>) -> ConditionValue {
    let Some(spec) = &declared.spec else {
        let reason = declared.refused.as_ref().map_or(Reason::Progressing, |problem| problem.reason);
        return ConditionValue::new(
            ConditionStatus::Unknown,
            reason,
            "not looked up: there is no valid declaration",
        );
    };
    if spec.server_refs.is_empty() && spec.config_map_ref.is_none() {
        return ConditionValue::yes(Reason::ResolvedRefs, "it refers to nothing");
    }
    let unseen = || ConditionValue::new(ConditionStatus::Unknown, Reason::Progressing, "not looked up yet");
    let Some(standing) = standing else { return unseen() };
    let content = standing.content.as_ref().filter(|problem| problem.reason != Reason::InvalidSpec);
    match (content, &standing.server) {
        (Some(problem), _) => ConditionValue::problem(problem, ""),
        (None, Some(missing)) if missing.early => unseen(),
        (None, Some(missing)) => ConditionValue::problem(&missing.problem, ""),
        (None, None) if standing.bundle.is_none() && standing.content.is_none() => unseen(),
        (None, None) => ConditionValue::yes(Reason::ResolvedRefs, "everything it refers to was found"),
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
    fn what_is_told_of_a_skill() {
        let bundle = Arc::new(Bundle::of_text("s", "---\nname: s\ndescription: Does it.\n---\n").unwrap());
        let standing = SkillState {
            uid: "uid-s".into(),
            bundle: Some(bundle.clone()),
            content: None,
            server: None,
            suspended: false,
        };
        let problem = |reason| Some(Problem::new(reason, "what is wrong"));
        let empty = SkillState { bundle: None, ..standing.clone() };
        let malformed = SkillState { content: problem(Reason::InvalidSpec), ..standing.clone() };
        let no_map = SkillState { content: problem(Reason::ConfigMapNotFound), ..empty.clone() };
        let lost_map = SkillState { content: problem(Reason::ConfigMapNotFound), ..standing.clone() };
        let missing = |early| MissingServer { problem: problem(Reason::ServerNotFound).unwrap(), early };
        let waiting = SkillState { server: Some(missing(false)), ..standing.clone() };
        let early = SkillState { server: Some(missing(true)), ..standing.clone() };
        let written = |outcome: Option<Option<Problem>>| SyncResults {
            directories: [std::path::PathBuf::from("/home/a/.claude/skills")].into(),
            all: outcome
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
                refused: None,
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
            refused: problem(Reason::InvalidSpec),
            endpoint: None,
        };
        let status = skill_status(&declared, Some(&empty), &there, None, at(1));
        assert_eq!(status.conditions[2].status, "Unknown");
    }
}
