//! Records which commits removed objects, as far as git shows it. Pure.

use std::path::Path;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::resource::{Commit, DeclaredObject, ObjectKey};

/// The number of removals that are kept. Subscribers of the source have applied the oldest ones long before that.
const MAX_REMOVALS: usize = 1_000;

/// The commits that removed objects, by the uids of the objects.
pub type Removals = OrdMap<Arc<str>, Arc<Commit>>;

/// Records the objects that are in `before` and not in `after`, with the commit that `last_commit` returns for their
/// file.
pub fn record_removals<S>(
    removals: &mut Removals,
    before: &OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    after: &OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    last_commit: &dyn Fn(&Path) -> Option<Arc<Commit>>,
) {
    for change in before.diff(after) {
        let removed = match change {
            DiffItem::Remove(_, removed) => removed,
            DiffItem::Update { old: (_, old), new: (_, new) } if old.meta.uid != new.meta.uid => old,
            DiffItem::Update { .. } | DiffItem::Add(..) => continue,
        };
        if let Some(commit) = removed.meta.file().and_then(|path| last_commit(path)) {
            if removals.len() >= MAX_REMOVALS {
                removals.clear();
            }
            removals.insert(removed.meta.uid.clone(), commit);
        }
    }
}
