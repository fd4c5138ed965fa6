//! Reporting of skills.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use tracing::Level;

use super::{Cause, Reporter};
use crate::report::conditions::ConditionMessages;
use crate::report::state_change::StateChange;
use crate::report::{EventAction, ObjectKind, Regarding, StatusObject, skill_status};
use crate::resource::{DeclaredObject, Reason, SkillSpec, SkillStatus};
use crate::skills::{SkillStates, SyncResults};

impl Reporter {
    /// Applies skill states and write results. The cost depends on the number of changes.
    pub(super) fn apply_skills(&mut self, standings: SkillStates, written: SyncResults, now: Timestamp) {
        let before = std::mem::replace(&mut self.skill_states, standings).skills;
        let last = std::mem::replace(&mut self.sync_results, written).by_skill;
        let mut keys = BTreeSet::new();
        for change in before.diff(&self.skill_states.skills) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            keys.insert(key.clone());
        }
        for change in last.diff(&self.sync_results.by_skill) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            keys.insert(key.clone());
        }
        for key in keys {
            if let Some(declared) = self.desired.skills.get(&key).cloned() {
                self.update_skill(&declared, now);
            }
        }
    }

    pub(super) fn update_skill(&mut self, declared: &Arc<DeclaredObject<SkillSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let before = self.store.skills.get(key).cloned();
        let known = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let earlier = self.stored_statuses.as_ref().and_then(|shown| shown.borrow().skills.get(key).cloned());
        let earlier = earlier.as_ref().filter(|shown| shown.uid == declared.meta.uid);
        let earlier = earlier.and_then(|shown| shown.status.as_ref());
        let standing = self.skill_states.skills.get(key).filter(|standing| standing.uid == declared.meta.uid);
        let status = skill_status(
            declared,
            standing.map(|standing| &**standing),
            &self.sync_results,
            known.map(|before| &before.status).or(earlier),
            now,
        );
        if known.is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status) {
            return;
        }
        self.report_content(declared, known.map(|before| &before.status), &status, now);
        let last = before.as_ref().map(|before| before.declared.clone());
        let last = last.or_else(|| self.previous_run.skills.get(key).cloned());
        self.report_declaration(ObjectKind::Skill, last.as_deref(), declared, now);
        let told = known.map_or(&[][..], |before| &before.status.conditions);
        self.report_conditions(
            ObjectKind::Skill,
            declared,
            told,
            (&status.conditions, &ConditionMessages::default()),
            now,
        );
        let resource_version = self.store.next_resource_version();
        let object = StatusObject { declared: declared.clone(), status, resource_version };
        self.store.skills.insert(key.clone(), Arc::new(object));
    }

    /// Reports a changed content of a skill, which changes no condition.
    fn report_content(
        &mut self,
        declared: &DeclaredObject<SkillSpec>,
        before: Option<&SkillStatus>,
        after: &SkillStatus,
        now: Timestamp,
    ) {
        let differs = before.is_some_and(|before| {
            before.content_digest.is_some() && before.content_digest != after.content_digest
        });
        if let Some(digest) = after.content_digest.as_ref().filter(|_| differs) {
            let message = format!("content changed to {digest}");
            let news = StateChange::new(EventAction::Update, Reason::Updated, Level::INFO, message);
            let cause = Cause::current(&self.desired.source);
            let digests = (declared.spec_digest, declared.spec_digest);
            self.report(Regarding::for_object(ObjectKind::Skill, &declared.meta), &news, cause, digests, now);
        }
    }

    pub(super) fn remove_skill(&mut self, declared: &DeclaredObject<SkillSpec>, now: Timestamp) {
        self.store.skills.remove(&declared.meta.key);
        self.store.next_resource_version();
        self.report_removal(ObjectKind::Skill, declared, now);
    }
}
