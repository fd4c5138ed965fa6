//! Who took objects away, as far as git tells it. Pure.

use std::path::Path;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::resource::{Commit, DeclaredObject, ObjectKey};

/// Of so many objects it is kept: who follows the source has long taken the first of them up then.
const MAX_REMOVALS: usize = 1_000;

/// Commits by the uids of the objects that they took away.
pub type Removals = OrdMap<Arc<str>, Arc<Commit>>;

/// Notes the objects that are there no more, with what `last` gives as the commit that changed their file.
pub fn record_removals<S>(
    removals: &mut Removals,
    before: &OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    after: &OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    last: &dyn Fn(&Path) -> Option<Arc<Commit>>,
) {
    for change in before.diff(after) {
        let gone = match change {
            DiffItem::Remove(_, gone) => gone,
            DiffItem::Update { old: (_, old), new: (_, new) } if old.meta.uid != new.meta.uid => old,
            DiffItem::Update { .. } | DiffItem::Add(..) => continue,
        };
        if let Some(commit) = gone.meta.file().and_then(|path| last(path)) {
            if removals.len() >= MAX_REMOVALS {
                removals.clear();
            }
            removals.insert(gone.meta.uid.clone(), commit);
        }
    }
}
