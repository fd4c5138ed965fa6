use std::collections::HashSet;

use imbl::OrdSet;

use crate::resource::ObjectKey;

/// Whether the process may be sent work: once it may, for good.
///
/// It may when the source has been read once and each `required` server has been attached once. A shared
/// server that dies later must not take every replica out of service.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    ready: bool,
    synced: bool,
    pending: OrdSet<ObjectKey>,
    /// Only until ready.
    attached: HashSet<ObjectKey>,
}

impl Readiness {
    /// True from the first moment on at which everything required was there.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// True once the source has been read.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The required servers that have never been attached, in order.
    pub fn pending(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pending.iter()
    }

    /// Takes note of one server: whether it is required (and not suspended), and whether it is attached now.
    pub(super) fn server(&mut self, key: &ObjectKey, required: bool, attached: bool) {
        if self.ready {
            return;
        }
        if attached {
            self.attached.insert(key.clone());
        }
        if required && !self.attached.contains(key) {
            self.pending.insert(key.clone());
        } else {
            self.pending.remove(key);
        }
    }

    /// Forgets a server that is no longer declared.
    pub(super) fn removed(&mut self, key: &ObjectKey) {
        self.attached.remove(key);
        self.pending.remove(key);
    }

    /// Decides, after all that is known was noted.
    pub(super) fn settle(&mut self, synced: bool) {
        self.synced |= synced;
        if !self.ready && self.synced && self.pending.is_empty() {
            self.ready = true;
            self.attached.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::key;

    #[test]
    fn waits_for_the_source_and_for_each_required_server_once() {
        let (a, b) = (key("a"), key("b"));
        let mut readiness = Readiness::default();
        readiness.settle(false);
        assert!(!readiness.ready(), "the source was not read");
        readiness.server(&a, true, false);
        readiness.server(&b, true, false);
        readiness.settle(true);
        assert_eq!(readiness.pending().collect::<Vec<_>>(), [&a, &b]);
        readiness.server(&a, true, true);
        // Attached once is enough, even if it is lost while another is still awaited.
        readiness.server(&a, true, false);
        readiness.settle(true);
        assert_eq!(readiness.pending().collect::<Vec<_>>(), [&b]);
        readiness.removed(&b);
        readiness.settle(true);
        assert!(readiness.ready());
        readiness.server(&b, true, false);
        readiness.settle(true);
        assert!(readiness.ready(), "for good");
    }
}
