use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::library::{INSTRUCTIONS, SkillLibrary};
use super::skill_resources::SkillResources;
use super::skill_state::{SkillState, SkillStates};
use crate::catalog::Publisher;
use crate::resource::bundle::Bundle;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::upstream::{Responder, Section, ServerLists};

/// The name of the section of the tools in each namespace: one that no server can have, like those of the skills.
const TOOLS_SECTION_NAME: &str = "agent skills";

/// Publishes the skills that are offered, a section for each and one for the tools of each namespace, until `stop`.
/// Costs what changed.
pub fn serve(
    mut standings: watch::Receiver<SkillStates>,
    publisher: Publisher,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let serve = async move {
        let mut told = SkillStates::default();
        let mut libraries = BTreeMap::new();
        loop {
            let now = standings.borrow_and_update().clone();
            publish(&told, &now, &mut libraries, &publisher);
            told = now;
            if standings.changed().await.is_err() {
                return;
            }
        }
    };
    async move {
        stop.run_until_cancelled(serve).await;
    }
}

/// Publishes what is offered otherwise than before.
fn publish(
    before: &SkillStates,
    after: &SkillStates,
    libraries: &mut BTreeMap<Arc<str>, SkillLibrary>,
    publisher: &Publisher,
) {
    let mut touched = BTreeMap::new();
    for (key, skill) in changed_skills(before, after) {
        let namespace = &key.namespace;
        let library =
            libraries.entry(namespace.clone()).or_insert_with(|| SkillLibrary::new(namespace.clone()));
        let of_skill = ObjectKey::new(namespace.clone(), format!("agent skill {}", key.name));
        if let Some(skill) = skill {
            library.insert(skill.clone());
            let volume = SkillResources::new(namespace.clone(), skill.clone());
            let lists = volume.lists();
            publisher.publish(section(of_skill, lists, None, Responder::Local(Arc::new(volume))));
        } else {
            library.remove(&key.name);
            let message = format!("skill {} is not offered any more", key.name);
            publisher.withdraw(of_skill, Problem::new(Reason::Removed, message));
        }
        touched.insert(namespace.clone(), library.clone());
    }
    for (namespace, library) in touched {
        let key = ObjectKey::new(namespace.clone(), TOOLS_SECTION_NAME);
        if library.is_empty() {
            libraries.remove(&namespace);
            publisher.withdraw(key, Problem::new(Reason::Removed, "no skill is offered any more"));
        } else {
            let by = Responder::Local(Arc::new(library));
            publisher.publish(section(key, SkillLibrary::lists(), Some(INSTRUCTIONS.into()), by));
        }
    }
}

/// The skills that are offered otherwise than before, or not any more.
fn changed_skills<'a>(
    before: &'a SkillStates,
    after: &'a SkillStates,
) -> impl Iterator<Item = (&'a ObjectKey, Option<&'a Arc<Bundle>>)> {
    before.skills.diff(&after.skills).filter_map(|change| {
        let offered = |standing: &'a Arc<SkillState>| standing.offered();
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
