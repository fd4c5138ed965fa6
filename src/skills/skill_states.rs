use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::skill_state::{ServerPresence, SkillState, SkillStates};
use crate::catalog::Catalog;
use crate::net::restart_on_panic;
use crate::resource::{Desired, ObjectKey};

/// Returns a channel with the states of all skills, and the task that updates it; the caller spawns the task.
///
/// A server counts as attached while the catalog has it: through its grace period, and while it is idle.
pub fn track_skill_states(
    desired: watch::Receiver<Arc<Desired>>,
    catalog: Catalog,
    stop: CancellationToken,
) -> (watch::Receiver<SkillStates>, impl Future<Output = ()>) {
    let (sender, states) = watch::channel(SkillStates::default());
    (states, async move {
        let tracking = restart_on_panic("the task that tracks the states of skills", || {
            let tracker = SkillStateTracker::resume(sender.borrow().clone());
            tracker.run(desired.clone(), catalog.clone(), sender.clone())
        });
        stop.run_until_cancelled(tracking).await;
    })
}

#[derive(Default)]
struct SkillStateTracker {
    desired: Arc<Desired>,
    states: SkillStates,
    /// Each server that skills refer to: its presence, and the skills.
    servers: BTreeMap<ObjectKey, (Option<ServerPresence>, BTreeSet<ObjectKey>)>,
}

impl SkillStateTracker {
    /// Creates a tracker that computes all states again. A skill keeps its last valid content.
    fn resume(states: SkillStates) -> Self {
        Self { states, ..Self::default() }
    }

    async fn run(
        mut self,
        mut desired: watch::Receiver<Arc<Desired>>,
        catalog: Catalog,
        sender: watch::Sender<SkillStates>,
    ) {
        let mut generations = catalog.changes();
        let mut settled = catalog.settled();
        loop {
            let current = desired.borrow_and_update().clone();
            let during_startup = !*settled.borrow_and_update();
            let attached = catalog.load();
            self.update(current, |server| attached.section(server).is_some(), during_startup);
            drop(attached);
            sender.send_if_modified(|sent| {
                let differs =
                    sent.complete != self.states.complete || !sent.skills.ptr_eq(&self.states.skills);
                sent.clone_from(&self.states);
                differs
            });
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                Ok(()) = generations.changed() => {}
                Ok(()) = settled.changed() => {}
            }
        }
    }

    /// Applies the desired state and the attached servers. The cost is proportional to the change and to the number of
    /// servers that skills refer to.
    fn update(&mut self, desired: Arc<Desired>, attached: impl Fn(&ObjectKey) -> bool, during_startup: bool) {
        let previous = std::mem::replace(&mut self.desired, desired);
        let after = self.desired.clone();
        // Those of an earlier tracker that are not declared any more are not in the difference.
        let is_resumed = previous.skills.is_empty();
        let mut stale: BTreeSet<_> = self.states.skills.keys().filter(|_| is_resumed).cloned().collect();
        for change in previous.skills.diff(&after.skills) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            stale.insert(key.clone());
            self.update_references(key);
        }
        for change in previous.skill_contents.diff(&after.skill_contents) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            stale.insert(key.clone());
        }
        for (server, (presence, users)) in &mut self.servers {
            let current = if attached(server) {
                ServerPresence::Attached
            } else if after.servers.contains_key(server) {
                ServerPresence::Detached { during_startup }
            } else {
                ServerPresence::Undeclared { during_startup: !after.source.synced }
            };
            if *presence != Some(current) {
                *presence = Some(current);
                stale.extend(users.iter().cloned());
            }
        }
        for key in stale {
            self.update_skill(&key);
        }
        self.states.complete |= after.source.skills_synced;
    }

    /// Updates the servers that a skill refers to.
    fn update_references(&mut self, key: &ObjectKey) {
        self.servers.retain(|_, (_, users)| {
            users.remove(key);
            !users.is_empty()
        });
        let spec = self.desired.skills.get(key).and_then(|skill| skill.spec.as_ref());
        for server in spec.iter().flat_map(|spec| &spec.server_refs) {
            let server = ObjectKey::new(key.namespace.clone(), server.name.as_str());
            self.servers.entry(server).or_default().1.insert(key.clone());
        }
    }

    fn update_skill(&mut self, key: &ObjectKey) {
        let Some(skill) = self.desired.skills.get(key) else {
            self.states.skills.remove(key);
            return;
        };
        let last = self.states.skills.get(key);
        let servers = &self.servers;
        let presence = |server: &ObjectKey| servers.get(server).and_then(|(presence, _)| *presence);
        let next = SkillState::compute(
            last.map(|last| &**last),
            skill,
            self.desired.skill_contents.get(key),
            |server| presence(server).unwrap_or(ServerPresence::Undeclared { during_startup: true }),
        );
        if last.is_none_or(|last| **last != next) {
            self.states.skills.insert(key.clone(), Arc::new(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::bundle::Bundle;
    use crate::resource::testing::{declared_server, key, meta};
    use crate::resource::{DeclaredObject, Problem, Reason, SourceState};

    fn bundle(name: &str, description: &str) -> Bundle {
        Bundle::from_text(name, &format!("---\nname: {name}\ndescription: {description}\n---\n")).unwrap()
    }

    fn with_skill(desired: &Desired, name: &str, server: Option<&str>, content: Bundle) -> Desired {
        let refs: Vec<_> = server.iter().map(|name| json!({ "name": name })).collect();
        let skill = DeclaredObject {
            meta: meta(name, 1),
            spec: Some(serde_json::from_value(json!({ "inline": "x", "serverRefs": refs })).unwrap()),
            spec_digest: None,
            rejected: None,
            endpoint: None,
        };
        let mut next = desired.clone();
        next.skills.insert(key(name), Arc::new(skill));
        next.skill_contents.insert(key(name), Ok(Arc::new(content)));
        next
    }

    #[test]
    fn tracker_that_is_started_again_keeps_last_valid_content_and_drops_removed_skills() {
        let source = Arc::new(SourceState { skills_synced: true, ..SourceState::default() });
        let first = Desired { source, ..Desired::default() };
        let first = with_skill(&first, "a", None, bundle("a", "A."));
        let mut first = with_skill(&first, "removed", None, bundle("removed", "R."));
        let mut tracker = SkillStateTracker::default();
        tracker.update(Arc::new(first.clone()), |_| false, false);
        assert_eq!(tracker.states.skills.len(), 2);

        // Both changes happen before the tracker runs again.
        first.skills.remove(&key("removed"));
        first.skill_contents.remove(&key("removed"));
        first.skill_contents.insert(key("a"), Err(Problem::new(Reason::InvalidSpec, "bad")));
        let mut resumed = SkillStateTracker::resume(tracker.states.clone());
        resumed.update(Arc::new(first), |_| false, false);
        let states: Vec<_> = resumed.states.skills.iter().collect();
        let [(name, state)] = states[..] else { panic!("{states:?}") };
        assert_eq!((&*name.name, state.offered().is_some()), ("a", true), "the last valid content");
        assert!(state.content_problem.is_some());
    }

    #[test]
    fn change_affects_only_the_skills_that_depend_on_it() {
        let source = Arc::new(SourceState { skills_synced: true, ..SourceState::default() });
        let first = Desired { source, ..Desired::default() };
        let first =
            with_skill(&with_skill(&first, "a", None, bundle("a", "A.")), "b", Some("s"), bundle("b", "B."));
        let first = with_skill(&first, "c", Some("s"), bundle("c", "C."));
        let mut tracker = SkillStateTracker::default();
        let offered = |tracker: &SkillStateTracker| {
            let all = tracker.states.skills.iter().filter(|(_, state)| state.offered().is_some());
            all.map(|(key, _)| key.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        let changed = |before: &SkillStates, after: &SkillStates| {
            let diff = before.skills.diff(&after.skills).map(|change| match change {
                DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => {
                    key.name.to_string()
                }
            });
            diff.collect::<Vec<_>>().join(" ")
        };
        tracker.update(Arc::new(first.clone()), |_| false, true);
        assert!(tracker.states.complete);
        assert_eq!(offered(&tracker), "a");

        // The server is declared, then attached; then another server is attached.
        let mut second = first.clone();
        second.servers.insert(key("s"), Arc::new(declared_server("s", 1)));
        tracker.update(Arc::new(second.clone()), |_| false, true);
        let before = tracker.states.clone();
        tracker.update(Arc::new(second.clone()), |server| &*server.name == "s", true);
        assert_eq!((&*offered(&tracker), &*changed(&before, &tracker.states)), ("a b c", "b c"));
        let before = tracker.states.clone();
        tracker.update(Arc::new(second.clone()), |_| true, false);
        assert!(before.skills.ptr_eq(&tracker.states.skills), "changes of other servers change no skill");

        // One skill is edited; another no longer refers to a server.
        let third = with_skill(&second, "a", None, bundle("a", "Other."));
        tracker.update(Arc::new(third.clone()), |_| true, false);
        assert_eq!(changed(&before, &tracker.states), "a");
        let fourth = with_skill(&third, "b", None, bundle("b", "B."));
        tracker.update(Arc::new(fourth.clone()), |_| false, false);
        assert_eq!(offered(&tracker), "a b");
        let mut last = fourth;
        last.skills.remove(&key("a"));
        last.skill_contents.remove(&key("a"));
        tracker.update(Arc::new(last), |_| true, false);
        assert_eq!(offered(&tracker), "b c");
        assert_eq!(tracker.servers.len(), 1);
    }
}
