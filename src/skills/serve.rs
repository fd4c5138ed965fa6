use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::library::{INSTRUCTIONS, Library};
use super::standing::Standings;
use crate::catalog::{Answering, Publisher, Section};
use crate::fleet::Publish;
use crate::resource::{ObjectKey, Problem, Reason};

/// The name of the section of skills in each namespace: one that no server can have.
const NAME: &str = "agent skills";

/// Publishes the skills that are offered, one section for each namespace, until `stop`.
pub fn serve(
    mut standings: watch::Receiver<Standings>,
    publisher: Publisher,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let serve = async move {
        let mut told = Standings::default();
        loop {
            let now = standings.borrow_and_update().clone();
            for namespace in changed(&told, &now) {
                let key = ObjectKey::new(namespace.clone(), NAME);
                let of_this = now.all.iter().filter(|(key, _)| key.namespace == namespace);
                let offered = of_this.filter_map(|(_, standing)| standing.offered());
                let skills: BTreeMap<_, _> =
                    offered.map(|bundle| (bundle.name().clone(), bundle.clone())).collect();
                if skills.is_empty() {
                    let problem = Problem::new(Reason::Removed, "no skill is offered any more");
                    publisher.withdraw(key, problem);
                } else {
                    publisher.publish(Arc::new(section(key, Library::new(namespace, skills))));
                }
            }
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

/// The namespaces whose skills are offered otherwise than before.
fn changed(before: &Standings, after: &Standings) -> BTreeSet<Arc<str>> {
    let changes = before.all.diff(&after.all).filter_map(|change| match change {
        DiffItem::Add(key, new) => new.offered().map(|_| key),
        DiffItem::Remove(key, old) => old.offered().map(|_| key),
        DiffItem::Update { old: (_, old), new: (key, new) } => {
            (old.offered() != new.offered()).then_some(key)
        }
    });
    changes.map(|key| key.namespace.clone()).collect()
}

fn section(key: ObjectKey, library: Library) -> Section {
    Section {
        key,
        prefix: String::new(),
        lists: library.lists(),
        resources: None,
        instructions: Some(INSTRUCTIONS.into()),
        call_timeout: Duration::from_mins(1),
        by: Answering::Skills(Arc::new(library)),
    }
}
