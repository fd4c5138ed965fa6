use jiff::Timestamp;

use super::conditions::{Conditions, Truth, Verdict, sentence};
use crate::resource::{ConditionType, Reason, SkillSpec, SkillStatus};
use crate::source::Declared;

/// The status of one skill: whether it is accepted. Skills are not offered to agents yet, and it says so.
pub fn skill_status(
    declared: &Declared<SkillSpec>,
    previous: Option<&SkillStatus>,
    now: Timestamp,
) -> SkillStatus {
    let meta = &declared.meta;
    let mut conditions =
        Conditions::new(meta.generation, previous.map(|previous| previous.conditions.as_slice()), now);
    let spec = declared.spec.as_ref();
    let refused = declared.refused.as_ref();
    let not_offered = || {
        Verdict::no(
            Reason::Detached,
            "accepted, but this version of evenkeel does not offer skills to agents yet",
        )
    };
    let ready = match refused {
        Some(problem) => Verdict::problem(problem, ""),
        None if spec.is_some_and(|spec| spec.suspend) => {
            Verdict::no(Reason::Suspended, "suspended by spec.suspend")
        }
        None => not_offered(),
    };
    conditions.set(ConditionType::Ready, ready);
    conditions.set(
        ConditionType::Accepted,
        match refused {
            Some(problem) => Verdict::problem(problem, ""),
            None => Verdict::yes(Reason::Accepted, "the declaration is valid"),
        },
    );
    conditions.set(
        ConditionType::ResolvedRefs,
        match (spec, refused) {
            (Some(spec), _) if spec.server_refs.is_empty() && spec.config_map_ref.is_none() => {
                Verdict::yes(Reason::ResolvedRefs, "it refers to nothing")
            }
            (_, Some(problem)) => Verdict::new(Truth::Unknown, problem.reason, "not looked up"),
            (_, None) => Verdict::new(Truth::Unknown, Reason::Detached, "not looked up yet"),
        },
    );
    if let Some(problem) = refused {
        conditions.set(ConditionType::Stalled, Verdict::yes(problem.reason, sentence(problem, "")));
    }
    SkillStatus {
        observed_generation: Some(meta.generation),
        conditions: conditions.finish(),
        spec_digest: declared.spec_digest.map(|digest| digest.to_string()),
        last_applied_revision: Some(meta.revision.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::testing::{at, meta};
    use crate::resource::Problem;

    #[test]
    fn a_skill_is_accepted_or_refused_and_never_ready() {
        let text = json!({ "inline": "x" });
        let refused = Problem::new(Reason::InvalidSpec, "no frontmatter");
        for (spec, refused, expected) in [
            (
                Some(text.clone()),
                None,
                "Ready=False/Detached Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs",
            ),
            (
                Some(json!({ "inline": "x", "serverRefs": [{ "name": "a" }] })),
                None,
                "Ready=False/Detached Accepted=True/Accepted ResolvedRefs=Unknown/Detached",
            ),
            (
                Some(json!({ "inline": "x", "suspend": true })),
                None,
                "Ready=False/Suspended Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs",
            ),
            (
                None,
                Some(refused),
                "Ready=False/InvalidSpec Accepted=False/InvalidSpec ResolvedRefs=Unknown/InvalidSpec \
                 Stalled=True/InvalidSpec",
            ),
        ] {
            let declared = Declared {
                meta: meta("s", 1),
                spec: spec.map(|spec| serde_json::from_value(spec).unwrap()),
                spec_digest: None,
                refused,
                endpoint: None,
            };
            let status = skill_status(&declared, None, at(1));
            let line: Vec<_> = status
                .conditions
                .iter()
                .map(|told| format!("{}={}/{}", told.type_, told.status, told.reason))
                .collect();
            assert_eq!(line.join(" "), expected);
            assert_eq!(skill_status(&declared, Some(&status), at(2)), status);
        }
    }
}
