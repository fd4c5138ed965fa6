use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::library::{INSTRUCTIONS, SkillLibrary};
use super::skill_resources::SkillResources;
use super::skill_state::{SkillState, SkillStates};
use crate::catalog::Publisher;
use crate::net::restart_on_panic;
use crate::resource::bundle::Bundle;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Responder, Section, ServerLists};

/// The name of the tools' section in each namespace. No server can have this name, nor those of the skills' sections.
const TOOLS_SECTION_NAME: &str = "agent skills";

/// Publishes the offered skills until `stop`: a section for each skill, and one for the tools of each namespace.
/// The cost is proportional to the change.
pub fn serve(
    states: watch::Receiver<SkillStates>,
    publisher: Publisher,
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
            async move {
                loop {
                    let current = states.borrow_and_update().clone();
                    server.lock().update(current);
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
    /// Publishes what has changed. After a panic, the next update publishes the same again.
    fn update(&mut self, current: SkillStates) {
        publish(&self.published, &current, &mut self.libraries, &self.publisher);
        self.published = current;
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

fn skill_section_key(skill: &ObjectKey) -> ObjectKey {
    ObjectKey::new(skill.namespace.clone(), format!("agent skill {}", skill.name))
}

/// Returns the skills that changed, with `None` for those that are no longer offered.
fn changed_skills<'a>(
    before: &'a SkillStates,
    after: &'a SkillStates,
) -> impl Iterator<Item = (&'a ObjectKey, Option<&'a Arc<Bundle>>)> {
    before.skills.diff(&after.skills).filter_map(|change| {
        let offered = |state: &'a Arc<SkillState>| state.offered();
        let (key, old, new) = match change {
            DiffItem::Add(key, new) => (key, None, offered(new)),
            DiffItem::Remove(key, old) => (key, offered(old), None),
            DiffItem::Update { old: (_, old), new: (key, new) } => (key, offered(old), offered(new)),
        };
        (old != new).then_some((key, new))
    })
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
