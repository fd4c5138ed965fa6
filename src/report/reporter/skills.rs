//! What is told of skills.

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
    /// Takes up which skills are offered, and where: costs what changed.
    pub(super) fn offer(&mut self, standings: SkillStates, written: SyncResults, now: Timestamp) {
        let before = std::mem::replace(&mut self.standings, standings).all;
        let last = std::mem::replace(&mut self.written, written).all;
        let mut keys = BTreeSet::new();
        for change in before.diff(&self.standings.all) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            keys.insert(key.clone());
        }
        for change in last.diff(&self.written.all) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            keys.insert(key.clone());
        }
        for key in keys {
            if let Some(declared) = self.desired.skills.get(&key).cloned() {
                self.skill(&declared, now);
            }
        }
    }

    pub(super) fn skill(&mut self, declared: &Arc<DeclaredObject<SkillSpec>>, now: Timestamp) {
        let key = &declared.meta.key;
        let before = self.store.skills.get(key).cloned();
        let known = before.as_ref().filter(|before| before.declared.meta.uid == declared.meta.uid);
        let earlier = self.shown.as_ref().and_then(|shown| shown.borrow().skills.get(key).cloned());
        let earlier = earlier.as_ref().filter(|shown| shown.uid == declared.meta.uid);
        let earlier = earlier.and_then(|shown| shown.status.as_ref());
        let standing = self.standings.all.get(key).filter(|standing| standing.uid == declared.meta.uid);
        let status = skill_status(
            declared,
            standing.map(|standing| &**standing),
            &self.written,
            known.map(|before| &before.status).or(earlier),
            now,
        );
        if known.is_some_and(|before| Arc::ptr_eq(&before.declared, declared) && before.status == status) {
            return;
        }
        self.tell_content(declared, known.map(|before| &before.status), &status, now);
        let last = before.as_ref().map(|before| before.declared.clone());
        let last = last.or_else(|| self.remembered.skills.get(key).cloned());
        self.tell_declared(ObjectKind::Skill, last.as_deref(), declared, now);
        let told = known.map_or(&[][..], |before| &before.status.conditions);
        self.tell_state(
            ObjectKind::Skill,
            declared,
            told,
            (&status.conditions, &ConditionMessages::default()),
            now,
        );
        let resource_version = self.store.next_version();
        let object = StatusObject { declared: declared.clone(), status, resource_version };
        self.store.skills.insert(key.clone(), Arc::new(object));
    }

    /// Tells that a skill has another content, which changes no condition.
    fn tell_content(
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
            let message = format!("another content, {digest}");
            let news = StateChange::new(EventAction::Update, Reason::Updated, Level::INFO, message);
            let cause = Cause::at(&self.desired.source);
            let digests = (declared.spec_digest, declared.spec_digest);
            self.tell(Regarding::of(ObjectKind::Skill, &declared.meta), &news, cause, digests, now);
        }
    }

    pub(super) fn skill_removed(&mut self, declared: &DeclaredObject<SkillSpec>, now: Timestamp) {
        self.store.skills.remove(&declared.meta.key);
        self.store.next_version();
        self.tell_removed(ObjectKind::Skill, declared, now);
    }
}
