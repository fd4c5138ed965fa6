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
    pub(super) fn apply_skills(
        &mut self,
        skill_states: SkillStates,
        sync_results: SyncResults,
        now: Timestamp,
    ) {
        let old_states = std::mem::replace(&mut self.skill_states, skill_states).skills;
        let old_results = std::mem::replace(&mut self.sync_results, sync_results).by_skill;
        let mut keys = BTreeSet::new();
        for change in old_states.diff(&self.skill_states.skills) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            keys.insert(key.clone());
        }
        for change in old_results.diff(&self.sync_results.by_skill) {
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
        let before = self.snapshot.skills.get(key).cloned();
        let same_object = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let stored_status =
            self.stored_statuses.as_ref().and_then(|stored| stored.borrow().skills.get(key).cloned());
        let stored_status = stored_status.as_ref().filter(|stored| stored.uid == declared.meta.uid);
        let stored_status = stored_status.and_then(|stored| stored.status.as_ref());
        let state = self.skill_states.skills.get(key).filter(|state| state.uid == declared.meta.uid);
        let status = skill_status(
            declared,
            state.map(|state| &**state),
            &self.sync_results,
            same_object.map(|before| &before.status).or(stored_status),
            now,
        );
        if same_object
            .is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status)
        {
            return;
        }
        self.report_content(declared, same_object.map(|before| &before.status), &status, now);
        let previous_declaration = before.as_ref().map(|before| before.declared.clone());
        let previous_declaration =
            previous_declaration.or_else(|| self.previous_run.skills.get(key).cloned());
        self.report_declaration(ObjectKind::Skill, previous_declaration.as_deref(), declared, now);
        let old_conditions = same_object.map_or(&[][..], |before| &before.status.conditions);
        self.report_conditions(
            ObjectKind::Skill,
            declared,
            old_conditions,
            (&status.conditions, &ConditionMessages::default()),
            now,
        );
        let resource_version = self.snapshot.next_resource_version();
        let object = StatusObject { declared: declared.clone(), status, resource_version };
        self.snapshot.skills.insert(key.clone(), Arc::new(object));
    }

    /// Reports a changed content of a skill, which changes no condition.
    fn report_content(
        &mut self,
        declared: &DeclaredObject<SkillSpec>,
        before: Option<&SkillStatus>,
        after: &SkillStatus,
        now: Timestamp,
    ) {
        let is_changed = before.is_some_and(|before| {
            before.content_digest.is_some() && before.content_digest != after.content_digest
        });
        if let Some(digest) = after.content_digest.as_ref().filter(|_| is_changed) {
            let message = format!("content changed to {digest}");
            let change = StateChange::new(EventAction::Update, Reason::Updated, Level::INFO, message);
            let cause = Cause::current(&self.desired.source);
            let digests = (declared.spec_digest, declared.spec_digest);
            self.report(
                Regarding::for_object(ObjectKind::Skill, &declared.meta),
                &change,
                cause,
                digests,
                now,
            );
        }
    }

    pub(super) fn remove_skill(&mut self, declared: &DeclaredObject<SkillSpec>, now: Timestamp) {
        self.snapshot.skills.remove(&declared.meta.key);
        self.snapshot.next_resource_version();
        self.report_removal(ObjectKind::Skill, declared, now);
    }
}
