//! Tells the items that a server's lists lost: in the log once for each change, and as a metric.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::FleetContext;
use super::super::list_findings::LeftOutItems;
use crate::resource::ObjectKey;
use crate::upstream::LeftOutItem;
use crate::wire::ListKind;

/// The items of one server that agents do not get. Its metrics are removed when it is dropped.
pub(super) struct LeftOutReport {
    server: ObjectKey,
    context: Arc<FleetContext>,
    /// The lists that lost items. Allocates nothing for a well-behaved server.
    told: BTreeMap<ListKind, LeftOutItems>,
}

impl LeftOutReport {
    pub(super) fn new(server: ObjectKey, context: Arc<FleetContext>) -> Self {
        Self { server, context, told: BTreeMap::new() }
    }

    /// Records what a list that was read has lost.
    pub(super) fn record(&mut self, list: ListKind, items: LeftOutItems) {
        if items.count == 0 && !self.told.contains_key(&list) {
            return;
        }
        let told = self.told.entry(list).or_default();
        if *told == items {
            return;
        }
        let LeftOutItems { first, count } = &items;
        for item in first.iter().filter(|item| !told.first.contains(item)) {
            let LeftOutItem { name, why } = item;
            tracing::warn!(
                server = %self.server,
                item = name.as_deref().unwrap_or("(no name)"),
                why,
                "a {} is left out", list.item_noun()
            );
        }
        if *count > first.len() {
            tracing::warn!(server = %self.server, count, "entries of {} are left out", list.method());
        }
        self.context.metrics.set_items_left_out(&self.server, list, *count);
        *told = items;
    }
}

impl Drop for LeftOutReport {
    fn drop(&mut self) {
        self.told.keys().for_each(|list| self.context.metrics.set_items_left_out(&self.server, *list, 0));
    }
}
