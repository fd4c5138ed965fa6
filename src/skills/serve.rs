use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::content::skill_uri;
use super::library::{INSTRUCTIONS, SkillLibrary, TOOL_NAMES};
use super::skill_resources::SkillResources;
use super::skill_state::{SkillState, SkillStates};
use crate::catalog::{Catalog, ExpectedItem, Publisher};
use crate::net::restart_on_panic;
use crate::resource::bundle::Bundle;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Responder, Section, ServerLists, Subscriptions};
use crate::wire::ListKind;

/// The name of the tools' section in each namespace. No server can have this name, nor those of the skills' sections.
const TOOLS_SECTION_NAME: &str = "agent skills";

/// Publishes the offered skills until `stop`: a section for each skill, and one for the tools of each namespace. Then
/// notifies the agents that subscribed to a changed file. The cost is proportional to the change.
pub fn serve(
    states: watch::Receiver<SkillStates>,
    publisher: Publisher,
    catalog: Catalog,
    subscriptions: Subscriptions,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let server = Arc::new(Mutex::new(SkillServer {
        published: SkillStates::default(),
        libraries: BTreeMap::new(),
        publisher,
    }));
    async move {
        let serving = restart_on_panic("the task that offers skills over MCP", || {
            let (server, mut states) = (server.clone(), states.clone());
            let (catalog, subscriptions) = (catalog.clone(), subscriptions.clone());
            async move {
                loop {
                    let current = states.borrow_and_update().clone();
                    let changed_files = server.lock().update(current);
                    if !changed_files.is_empty() {
                        // An agent that reads the file at once gets the new content.
                        catalog.catch_up().await;
                    }
                    for (section, uri) in changed_files {
                        subscriptions.publish_resource_update(&section, &uri);
                    }
                    if states.changed().await.is_err() {
                        return;
                    }
                }
            }
        });
        stop.run_until_cancelled(serving).await;
    }
}

/// The published skills.
struct SkillServer {
    published: SkillStates,
    /// The offered skills of each namespace that has any.
    libraries: BTreeMap<Arc<str>, SkillLibrary>,
    publisher: Publisher,
}

impl SkillServer {
    /// Publishes what has changed. After a panic, the next update publishes the same again. Returns the section and the
    /// URI of each file that was changed, added or removed.
    fn update(&mut self, current: SkillStates) -> Vec<(ObjectKey, String)> {
        publish(&self.published, &current, &mut self.libraries, &self.publisher);
        // After the sections, so that a call that waits for an item finds it.
        announce(&self.published, &current, &self.publisher);
        let before = std::mem::replace(&mut self.published, current);
        changed_files(&before, &self.published)
    }
}

/// Publishes the difference between two states.
fn publish(
    before: &SkillStates,
    after: &SkillStates,
    libraries: &mut BTreeMap<Arc<str>, SkillLibrary>,
    publisher: &Publisher,
) {
    let mut changed_libraries = BTreeMap::new();
    for (key, skill) in changed_skills(before, after) {
        let namespace = &key.namespace;
        let library =
            libraries.entry(namespace.clone()).or_insert_with(|| SkillLibrary::new(namespace.clone()));
        let section_key = skill_section_key(key);
        if let Some(skill) = skill {
            library.insert(skill.clone());
            let resources = SkillResources::new(namespace.clone(), skill.clone());
            let lists = resources.lists();
            publisher.publish(section(section_key, lists, None, Responder::Local(Arc::new(resources))));
        } else {
            library.remove(&key.name);
            let message = format!("skill {} is not offered any more", key.name);
            publisher.withdraw(section_key, Problem::new(Reason::Removed, message));
        }
        changed_libraries.insert(namespace.clone(), library.clone());
    }
    for (namespace, library) in changed_libraries {
        let key = ObjectKey::new(namespace.clone(), TOOLS_SECTION_NAME);
        if library.is_empty() {
            libraries.remove(&namespace);
            publisher.withdraw(key, Problem::new(Reason::Removed, "no skill is offered any more"));
        } else {
            let responder = Responder::Local(Arc::new(library));
            publisher.publish(section(key, SkillLibrary::lists(), Some(INSTRUCTIONS.into()), responder));
        }
    }
}

/// Announces the items of skills that are not offered yet, but may be shortly.
fn announce(before: &SkillStates, after: &SkillStates, publisher: &Publisher) {
    for change in before.skills.diff(&after.skills) {
        let (key, old, new) = match change {
            DiffItem::Add(key, new) => (key, None, Some(new)),
            DiffItem::Remove(key, old) => (key, Some(old), None),
            DiffItem::Update { old: (_, old), new: (key, new) } => (key, Some(old), Some(new)),
        };
        let [was_pending, is_pending] = [old, new].map(|state| state.is_some_and(|state| state.is_pending()));
        if was_pending != is_pending {
            let items = if is_pending { expected_items(key) } else { Arc::default() };
            publisher.expect(skill_section_key(key), items);
        }
    }
    if after.complete && !before.complete {
        publisher.mark_expected_complete();
    }
}

/// Returns the items that a skill will have: its prompt, its files, and the tools of its namespace.
fn expected_items(key: &ObjectKey) -> Arc<[ExpectedItem]> {
    let item = |list, name: &str| ExpectedItem { list, namespace: key.namespace.clone(), name: name.into() };
    let tools = TOOL_NAMES.map(|name| item(ListKind::Tools, name));
    let files = skill_uri(&key.namespace, &key.name, "");
    let others = [item(ListKind::Prompts, &key.name), item(ListKind::Resources, &files)];
    tools.into_iter().chain(others).collect()
}

fn skill_section_key(skill: &ObjectKey) -> ObjectKey {
    ObjectKey::new(skill.namespace.clone(), format!("agent skill {}", skill.name))
}

/// Returns the skills whose content changed, with `None` for those that are no longer offered.
fn changed_skills<'a>(
    before: &'a SkillStates,
    after: &'a SkillStates,
) -> impl Iterator<Item = (&'a ObjectKey, Option<&'a Arc<Bundle>>)> {
    changed_bundles(before, after).map(|(key, _, new)| (key, new))
}

/// Returns the offered content of the skills that changed, before and after.
fn changed_bundles<'a>(
    before: &'a SkillStates,
    after: &'a SkillStates,
) -> impl Iterator<Item = (&'a ObjectKey, Option<&'a Arc<Bundle>>, Option<&'a Arc<Bundle>>)> {
    before.skills.diff(&after.skills).filter_map(|change| {
        let offered = |state: &'a Arc<SkillState>| state.offered();
        let (key, old, new) = match change {
            DiffItem::Add(key, new) => (key, None, offered(new)),
            DiffItem::Remove(key, old) => (key, offered(old), None),
            DiffItem::Update { old: (_, old), new: (key, new) } => (key, offered(old), offered(new)),
        };
        let digest = |bundle: Option<&Arc<Bundle>>| bundle.map(|bundle| bundle.digest());
        (digest(old) != digest(new)).then_some((key, old, new))
    })
}

/// Returns the section and the URI of each file that differs between two states.
fn changed_files(before: &SkillStates, after: &SkillStates) -> Vec<(ObjectKey, String)> {
    let mut changed = Vec::new();
    for (key, old, new) in changed_bundles(before, after) {
        let file = |bundle: Option<&'_ Arc<Bundle>>, path: &str| {
            bundle.and_then(|bundle| bundle.files().get(path)).map(|file| file.digest)
        };
        let paths: BTreeSet<_> =
            [old, new].into_iter().flatten().flat_map(|bundle| bundle.files().keys()).collect();
        let paths = paths.into_iter().filter(|path| file(old, path) != file(new, path));
        changed
            .extend(paths.map(|path| (skill_section_key(key), skill_uri(&key.namespace, &key.name, path))));
    }
    changed
}

fn section(
    key: ObjectKey,
    lists: ServerLists,
    instructions: Option<Arc<str>>,
    answered_by: Responder,
) -> Arc<Section> {
    let prefix = String::new();
    let call_timeout = Duration::from_mins(1);
    let lists = Arc::new(lists);
    Arc::new(Section {
        key,
        prefix,
        lists,
        resource_filter: None,
        instructions,
        call_timeout,
        responder: answered_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Generation, ReservedNames, catalog};
    use crate::resource::testing::key;
    use crate::upstream::ViewName;

    /// Waits until a generation meets a condition.
    async fn wait_for(catalog: &Catalog, condition: impl Fn(&Generation) -> bool) {
        let mut changes = catalog.changes();
        let reached = async {
            while !condition(&catalog.load()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(5), reached).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn items_of_a_pending_skill_may_appear_until_it_is_offered_or_fails() {
        let names = tokio::sync::mpsc::unbounded_channel().0;
        let (catalog, publisher, task) = catalog(Some("default".into()), ReservedNames::default(), names);
        let stop = CancellationToken::new();
        tokio::spawn(task.run(stop.clone()));
        publisher.mark_declarations_complete();
        let state = |bundle: Option<Bundle>, content_problem| {
            Arc::new(SkillState {
                uid: "u".into(),
                bundle: bundle.map(Arc::new),
                content_problem,
                missing_server: None,
                suspended: false,
            })
        };
        let mut states = SkillStates::default();
        for name in ["offered", "failed"] {
            states.skills.insert(key(name), state(None, None));
        }
        let (sender, receiver) = watch::channel(states.clone());
        let subscriptions = Subscriptions::default();
        tokio::spawn(serve(receiver, publisher, catalog.clone(), subscriptions, stop.clone()));
        let may_appear = |generation: &Generation, name: &str| {
            let uri = format!("skill://default/{name}/SKILL.md");
            let [prompt, resource] = [(ListKind::Prompts, name), (ListKind::Resources, &*uri)]
                .map(|(list, name)| generation.may_appear(&ViewName::All, list, name));
            assert_eq!(prompt, resource, "{name}");
            prompt
        };
        tokio::task::yield_now().await;
        assert!(may_appear(&catalog.load(), "other"), "not all skills are known yet");
        states.complete = true;
        sender.send_replace(states.clone());
        wait_for(&catalog, |generation| !may_appear(generation, "other")).await;
        assert!(["offered", "failed"].iter().all(|name| may_appear(&catalog.load(), name)));
        let tool = |name| catalog.load().may_appear(&ViewName::All, ListKind::Tools, name);
        assert!(tool("read_skill") && tool("list_skills") && !tool("offered"));

        let bundle = Bundle::from_text("offered", "---\nname: offered\ndescription: x\n---\n").unwrap();
        states.skills.insert(key("offered"), state(Some(bundle), None));
        let problem = Problem::new(Reason::InvalidSpec, "bad");
        states.skills.insert(key("failed"), state(None, Some(problem)));
        sender.send_replace(states);
        wait_for(&catalog, |generation| {
            !may_appear(generation, "offered")
                && generation.view(&ViewName::All).table(ListKind::Prompts).route("offered").is_some()
        })
        .await;
        assert!(!may_appear(&catalog.load(), "failed") && !tool("read_skill"));
        stop.cancel();
    }
}
