//! Pages of a list, as agents get them.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::wire::Era;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    /// The items, as a JSON array.
    pub items: Bytes,
    /// The cursor of the next page, if there is one.
    pub cursor: Option<String>,
}

/// A cursor that no list returned.
#[derive(Debug, thiserror::Error)]
#[error("invalid cursor")]
pub struct InvalidCursor;

/// The first page of a list for agents of each era, built at the first request.
#[derive(Debug, Default)]
pub(super) struct FirstPages {
    legacy: OnceLock<ListPage>,
    modern: OnceLock<ListPage>,
}

impl FirstPages {
    /// Returns the page for an era, built now if it was not.
    pub(super) fn get_or_build(&self, era: Era, build: impl FnOnce() -> ListPage) -> ListPage {
        let (page, other) = match era {
            Era::Legacy => (&self.legacy, &self.modern),
            Era::Modern => (&self.modern, &self.legacy),
        };
        page.get_or_init(|| {
            let built = build();
            // Nearly always both are the same, and share their memory.
            other.get().filter(|other| **other == built).cloned().unwrap_or(built)
        })
        .clone()
    }
}
