//! Pages of a list, as agents get them.
//!
//! A list that fits on one page is ordered by name. The first page of a longer one has items of every server before all
//! of one, because some agents never request a second page: first comes the first item of each server, then the second
//! of each, and so on. Each page is ordered by name again.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::route::Route;
use crate::resource::ObjectKey;
use crate::wire::Era;

/// The number of items after which a page ends with a cursor. Large, since some agents never request a second page.
const PAGE_ITEMS: usize = 1_000;
/// The size after which a page ends with a cursor.
const PAGE_BYTES: usize = 1 << 20;

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

/// A listed item: its name, and what it routes to.
type Listed<'a> = (&'a str, &'a Arc<Route>);

/// The position of an item in the order of a list that has several pages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PagePosition {
    /// The number of items of the same server before it.
    rank: usize,
    name: Arc<str>,
}

impl PagePosition {
    /// Reads a cursor.
    pub(super) fn from_cursor(cursor: &str) -> Result<Self, InvalidCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| InvalidCursor)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| InvalidCursor)?;
        let (rank, name) = text.split_once(' ').ok_or(InvalidCursor)?;
        Ok(Self { rank: rank.parse().map_err(|_| InvalidCursor)?, name: name.into() })
    }

    fn to_cursor(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{} {}", self.rank, self.name))
    }
}

/// Builds the page that begins after a position, or the first one. `routes` are ordered by name.
///
/// A change of the list between two requests may repeat an item or leave it out, as the position of the other items of
/// its server changes; the agent is notified of the change.
pub(super) fn build_page<'a>(
    routes: impl Iterator<Item = Listed<'a>> + Clone,
    after: Option<&PagePosition>,
    era: Era,
) -> ListPage {
    if after.is_none()
        && let Some(items) = whole_list(routes.clone(), era)
    {
        return ListPage { items, cursor: None };
    }
    let mut ranks: HashMap<&ObjectKey, usize> = HashMap::new();
    let mut ordered: Vec<_> = routes
        .map(|(name, route)| {
            let next = ranks.entry(&route.section().key).or_default();
            *next += 1;
            (*next - 1, name, route)
        })
        .filter(|(rank, name, _)| after.is_none_or(|after| (*rank, *name) > (after.rank, &*after.name)))
        .collect();
    ordered.sort_unstable_by_key(|(rank, name, _)| (*rank, *name));
    let mut bytes = 0;
    let count = ordered
        .iter()
        .take(PAGE_ITEMS)
        .take_while(|(_, _, route)| {
            let fits = bytes < PAGE_BYTES;
            bytes += route.item().raw().len();
            fits
        })
        .count();
    let has_more = count < ordered.len();
    ordered.truncate(count);
    let last = ordered.last().map(|(rank, name, _)| PagePosition { rank: *rank, name: (*name).into() });
    ordered.sort_unstable_by_key(|(_, name, _)| *name);
    let mut items = String::from("[");
    for (_, name, route) in ordered {
        push_item(name, route, era, &mut items);
    }
    items.push(']');
    let cursor = last.filter(|_| has_more).map(|last| last.to_cursor());
    ListPage { items: items.into(), cursor }
}

/// Returns the whole list if it fits on one page.
fn whole_list<'a>(routes: impl Iterator<Item = Listed<'a>>, era: Era) -> Option<Bytes> {
    let mut items = String::from("[");
    for (count, (name, route)) in routes.enumerate() {
        if count >= PAGE_ITEMS || items.len() >= PAGE_BYTES {
            return None;
        }
        push_item(name, route, era, &mut items);
    }
    items.push(']');
    Some(items.into())
}

fn push_item(name: &str, route: &Route, era: Era, items: &mut String) {
    if items.len() > 1 {
        items.push(',');
    }
    route.push_json_as(name, era, items);
}

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
