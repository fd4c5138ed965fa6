use std::sync::Arc;

use imbl::OrdMap;

use crate::resource::ObjectKey;
use crate::wire::ListKind;

/// An item that evenkeel itself may offer shortly, such as a skill whose server is not attached yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedItem {
    /// The list that the item will be in.
    pub list: ListKind,
    /// The namespace of the item.
    pub namespace: Arc<str>,
    /// The name of the item without a namespace, or the beginning of its URI.
    pub name: Arc<str>,
}

/// The items that sections of evenkeel itself may offer shortly. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct ExpectedItems {
    by_section: OrdMap<ObjectKey, Arc<[ExpectedItem]>>,
    /// True once all of them were announced or offered.
    pub(super) complete: bool,
}

impl ExpectedItems {
    pub(super) fn items(&self) -> impl Iterator<Item = &ExpectedItem> {
        self.by_section.values().flat_map(|items| items.iter())
    }

    /// Replaces the expected items of a section.
    pub(super) fn set(&mut self, section: ObjectKey, items: Arc<[ExpectedItem]>) {
        if items.is_empty() {
            self.by_section.remove(&section);
        } else {
            self.by_section.insert(section, items);
        }
    }
}
