//! Server counts in the status of the source.

use std::sync::Arc;

use super::Reporter;
use crate::report::SourceObject;
use crate::report::conditions::find_condition;
use crate::report::source::ServerCounts;
use crate::resource::{ConditionType, McpServerStatus};

impl Reporter {
    /// Replaces the contribution of one server to the counts. The cost does not depend on the size of the fleet.
    pub(super) fn update_counts(
        &mut self,
        before: Option<&McpServerStatus>,
        after: Option<&McpServerStatus>,
    ) {
        let count = |status: Option<&McpServerStatus>| status.map_or_else(ServerCounts::default, counts_of);
        let (before, after) = (count(before), count(after));
        let ServerCounts { servers, attached, tools } = &mut self.counts;
        *servers = (*servers + after.servers).saturating_sub(before.servers);
        *attached = (*attached + after.attached).saturating_sub(before.attached);
        *tools = (*tools + after.tools).saturating_sub(before.tools);
    }

    /// Updates the counts in the status of the source, if they changed.
    pub(super) fn publish_counts(&mut self) {
        if self.snapshot.source.status.counts == self.counts {
            return;
        }
        let mut source = SourceObject::clone(&self.snapshot.source);
        source.status.counts = self.counts;
        source.resource_version = self.snapshot.next_resource_version();
        self.snapshot.source = Arc::new(source);
    }
}

fn counts_of(status: &McpServerStatus) -> ServerCounts {
    let ready = find_condition(&status.conditions, ConditionType::Ready);
    ServerCounts {
        servers: 1,
        attached: usize::from(ready.is_some_and(|ready| ready.status == "True")),
        tools: usize::try_from(status.tools.unwrap_or_default()).unwrap_or_default(),
    }
}
