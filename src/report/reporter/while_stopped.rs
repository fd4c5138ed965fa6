//! Removals while evenkeel was not running.

use jiff::Timestamp;

use super::Reporter;
use crate::report::ObjectKind;
use crate::resource::Desired;

impl Reporter {
    /// Reports the objects that an earlier run had applied and that are no longer declared.
    pub(super) fn report_removals_while_stopped(&mut self, before: &Desired, now: Timestamp) {
        let previous = std::mem::take(&mut self.previous_run);
        let desired = self.desired.clone();
        for (key, declared) in &previous.servers {
            if !before.servers.contains_key(key) && !desired.servers.contains_key(key) {
                self.report_removal(ObjectKind::McpServer, declared, now);
            }
        }
        for (key, declared) in &previous.skills {
            if !before.skills.contains_key(key) && !desired.skills.contains_key(key) {
                self.report_removal(ObjectKind::Skill, declared, now);
            }
        }
    }
}
