use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::skill_state::{ServerPresence, SkillState, SkillStates};
use crate::catalog::Catalog;
use crate::resource::{Desired, ObjectKey};

/// Where every skill stands, as a channel, and the task that keeps it true; the task is to be spawned.
///
/// A server counts as attached while the catalog has it: through its grace period, and while it is idle.
pub fn track_skill_states(
    desired: watch::Receiver<Arc<Desired>>,
    catalog: Catalog,
    stop: CancellationToken,
) -> (watch::Receiver<SkillStates>, impl Future<Output = ()>) {
    let (sender, standings) = watch::channel(SkillStates::default());
    let stage = SkillStateTracker::default();
    (standings, async move {
        stop.run_until_cancelled(stage.run(desired, catalog, sender)).await;
    })
}

#[derive(Default)]
struct SkillStateTracker {
    desired: Arc<Desired>,
    states: SkillStates,
    /// Each server that skills refer to: what is known of it, and the skills.
    servers: BTreeMap<ObjectKey, (Option<ServerPresence>, BTreeSet<ObjectKey>)>,
}

impl SkillStateTracker {
    async fn run(
        mut self,
        mut desired: watch::Receiver<Arc<Desired>>,
        catalog: Catalog,
        sender: watch::Sender<SkillStates>,
    ) {
        let mut generations = catalog.changes();
        let mut settled = catalog.settled();
        loop {
            let now = desired.borrow_and_update().clone();
            let early = !*settled.borrow_and_update();
            let attached = catalog.load();
            self.update(now, |server| attached.section(server).is_some(), early);
            drop(attached);
            sender.send_if_modified(|told| {
                let differs =
                    told.complete != self.states.complete || !told.skills.ptr_eq(&self.states.skills);
                told.clone_from(&self.states);
                differs
            });
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                Ok(()) = generations.changed() => {}
                Ok(()) = settled.changed() => {}
            }
        }
    }

    /// Costs what changed, and the servers that skills refer to.
    fn update(&mut self, desired: Arc<Desired>, attached: impl Fn(&ObjectKey) -> bool, early: bool) {
        let before = std::mem::replace(&mut self.desired, desired);
        let after = self.desired.clone();
        let mut stale = BTreeSet::new();
        for change in before.skills.diff(&after.skills) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            stale.insert(key.clone());
            self.update_references(key);
        }
        for change in before.skill_contents.diff(&after.skill_contents) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) =
                change;
            stale.insert(key.clone());
        }
        for (server, (known, users)) in &mut self.servers {
            let now = if attached(server) {
                ServerPresence::Attached
            } else if after.servers.contains_key(server) {
                ServerPresence::Detached { during_startup: early }
            } else {
                ServerPresence::Undeclared { during_startup: !after.source.synced }
            };
            if *known != Some(now) {
                *known = Some(now);
                stale.extend(users.iter().cloned());
            }
        }
        for key in stale {
            self.update_skill(&key);
        }
        self.states.complete |= after.source.skills_synced;
    }

    /// Takes up what a skill refers to now.
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
        let known = |server: &ObjectKey| servers.get(server).and_then(|(known, _)| *known);
        let next = SkillState::compute(
            last.map(|last| &**last),
            skill,
            self.desired.skill_contents.get(key),
            |server| known(server).unwrap_or(ServerPresence::Undeclared { during_startup: true }),
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
    use crate::resource::{DeclaredObject, SourceState};

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
    fn change_affects_only_the_skills_that_depend_on_it() {
        let source = Arc::new(SourceState { skills_synced: true, ..SourceState::default() });
        let first = Desired { source, ..Desired::default() };
        let first =
            with_skill(&with_skill(&first, "a", None, bundle("a", "A.")), "b", Some("s"), bundle("b", "B."));
        let first = with_skill(&first, "c", Some("s"), bundle("c", "C."));
        let mut stage = SkillStateTracker::default();
        let offered = |stage: &SkillStateTracker| {
            let all = stage.states.skills.iter().filter(|(_, standing)| standing.offered().is_some());
            all.map(|(key, _)| key.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        let moved = |before: &SkillStates, after: &SkillStates| {
            let diff = before.skills.diff(&after.skills).map(|change| match change {
                DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => {
                    key.name.to_string()
                }
            });
            diff.collect::<Vec<_>>().join(" ")
        };
        stage.update(Arc::new(first.clone()), |_| false, true);
        assert!(stage.states.complete);
        assert_eq!(offered(&stage), "a");

        // The server appears, is attached, and something else is.
        let mut second = first.clone();
        second.servers.insert(key("s"), Arc::new(declared_server("s", 1)));
        stage.update(Arc::new(second.clone()), |_| false, true);
        let before = stage.states.clone();
        stage.update(Arc::new(second.clone()), |server| &*server.name == "s", true);
        assert_eq!((&*offered(&stage), &*moved(&before, &stage.states)), ("a b c", "b c"));
        let before = stage.states.clone();
        stage.update(Arc::new(second.clone()), |_| true, false);
        assert!(before.skills.ptr_eq(&stage.states.skills), "churn elsewhere");

        // One is edited, one refers to nothing any more.
        let third = with_skill(&second, "a", None, bundle("a", "Other."));
        stage.update(Arc::new(third.clone()), |_| true, false);
        assert_eq!(moved(&before, &stage.states), "a");
        let fourth = with_skill(&third, "b", None, bundle("b", "B."));
        stage.update(Arc::new(fourth.clone()), |_| false, false);
        assert_eq!(offered(&stage), "a b");
        let mut last = fourth;
        last.skills.remove(&key("a"));
        last.skill_contents.remove(&key("a"));
        stage.update(Arc::new(last), |_| true, false);
        assert_eq!(offered(&stage), "b c");
        assert_eq!(stage.servers.len(), 1);
    }
}
