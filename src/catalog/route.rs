//! The route of one item: the upstream that its requests go to, and its entry in a list.

use std::sync::Arc;

use super::names::{HashSuffix, ItemId};
use crate::upstream::{Item, Section};
use crate::wire::{Era, push_json_string};

/// The target of an item's name: its server, and the server's own name for it.
#[derive(Debug)]
pub struct Route {
    section: Arc<Section>,
    item: Item,
    /// The hash suffix of its names, unless another item has the same.
    hash_suffix: HashSuffix,
}

impl Route {
    /// Creates the route of an item.
    pub(super) fn new(section: &Arc<Section>, item: &Item) -> Self {
        let hash_suffix = ItemId { server: &section.key, name: item.name() }.hash_suffix(0);
        Self { section: section.clone(), item: item.clone(), hash_suffix }
    }

    /// Returns the server's section: its key, its responder, its limits.
    pub fn section(&self) -> &Arc<Section> {
        &self.section
    }

    /// Returns the item as its server lists it.
    pub fn item(&self) -> &Item {
        &self.item
    }

    /// Returns the server's own name for the item, or its URI.
    pub fn name(&self) -> &str {
        self.item.name()
    }

    /// Returns the server's own name for the item, or its URI, as JSON text.
    pub fn name_json(&self) -> &str {
        self.item.name_json()
    }

    /// Appends the item's JSON under the name listed to agents of an era; every other byte is as its server sent it,
    /// unless the item has another form for that era.
    pub(super) fn push_json_as(&self, name: &str, era: Era, list: &mut String) {
        let (before, after) = self.item.for_era(era).around_name();
        list.push_str(before);
        push_json_string(name, list);
        list.push_str(after);
    }

    /// Returns true if both are listed with the same bytes under the same name.
    pub(super) fn has_same_json(&self, other: &Self) -> bool {
        self.item.raw() == other.item.raw()
    }

    /// Returns the hash suffix of its names, computed once for all views. A `number` other than 0 gives a different
    /// one.
    pub(super) fn hash_suffix(&self, number: u32) -> HashSuffix {
        if number == 0 { self.hash_suffix } else { self.item_id().hash_suffix(number) }
    }

    pub(super) fn item_id(&self) -> ItemId<'_> {
        ItemId { server: &self.section.key, name: self.name() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::section;
    use crate::upstream::read_item;
    use crate::wire::ListKind;

    #[test]
    fn list_entry_differs_only_in_its_name() {
        for (raw, own_name, expected) in [
            (r#"{"name":"a","x":1}"#, r#""a""#, r#"{"name":"N","x":1}"#),
            (
                r#" { "x" : {"name":"a"} , "na\u006de" : "\u0061" , "y":1.0e+2 } "#,
                r#""\u0061""#,
                r#" { "x" : {"name":"a"} , "na\u006de" : "N" , "y":1.0e+2 } "#,
            ),
            (r#"{"name":"b","x":[],"name":"a"}"#, r#""a""#, r#"{"name":"N","x":[]}"#),
        ] {
            let section = Arc::new(section("default", "s", "s", &[]));
            let route = Route::new(&section, &Item::parse(ListKind::Tools, raw).unwrap());
            let mut list = String::new();
            route.push_json_as("N", Era::Modern, &mut list);
            assert_eq!(list, expected);
            assert_eq!(route.name_json(), own_name);
        }
    }

    #[test]
    fn list_entry_depends_on_the_era_where_an_item_does() {
        let raw = r#"{"name":"a","inputSchema":{"type":"object"},"outputSchema":{"type":"array"}}"#;
        let section = Arc::new(section("default", "s", "s", &[]));
        let route = Route::new(&section, &read_item(ListKind::Tools, raw).unwrap().item);
        for (era, expected) in [
            (Era::Modern, r#"{"name":"N","inputSchema":{"type":"object"},"outputSchema":{"type":"array"}}"#),
            (Era::Legacy, r#"{"name":"N","inputSchema":{"type":"object"}}"#),
        ] {
            let mut list = String::new();
            route.push_json_as("N", era, &mut list);
            assert_eq!(list, expected);
        }
    }
}
