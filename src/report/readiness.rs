use std::collections::HashSet;

use imbl::OrdSet;

use crate::resource::ObjectKey;

/// The readiness of the process. Once ready, it stays ready.
///
/// The process is ready when the source has been read once, each `required` server has been attached once, and each
/// server that was declared at startup was attached or failed once; the last is waited for a limited time only.
/// Readiness is not revoked, because the failure of a shared server must not take every replica out of service.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    ready: bool,
    /// True once everything but the first attempts is complete.
    required_ready: bool,
    synced: bool,
    pending: OrdSet<ObjectKey>,
    /// The servers declared at startup of which no attempt has ended. Servers declared later are not recorded.
    unattempted: OrdSet<ObjectKey>,
    /// True once first attempts are no longer waited for.
    attempts_abandoned: bool,
    /// The servers that have been attached once; cleared when ready.
    attached_once: HashSet<ObjectKey>,
}

/// The contribution of one server to the readiness of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerReadiness {
    /// True if the server is required and not suspended: the process is not ready before it was attached.
    pub(super) required: bool,
    /// True if the server is attached now.
    pub(super) attached: bool,
    /// True if an attempt to attach it has ended, or if there is nothing to attempt.
    pub(super) attempted: bool,
}

impl Readiness {
    /// True once all conditions of readiness were met.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// True once the source was read and every required server was attached.
    pub fn required_ready(&self) -> bool {
        self.required_ready
    }

    /// True once the source has been read.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Returns the required servers that have never been attached, sorted.
    pub fn pending(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pending.iter()
    }

    /// Returns the servers of which no attempt has ended yet, sorted, without those that are
    /// [`pending`](Self::pending).
    pub fn unattempted(&self) -> impl Iterator<Item = &ObjectKey> {
        self.unattempted.iter().filter(|key| !self.pending.contains(*key))
    }

    /// Records the state of one server.
    pub(super) fn update_server(&mut self, key: &ObjectKey, server: ServerReadiness) {
        if self.ready {
            return;
        }
        if server.attempted {
            self.unattempted.remove(key);
        } else if !self.synced {
            self.unattempted.insert(key.clone());
        }
        if server.attached {
            self.attached_once.insert(key.clone());
        }
        if server.required && !self.attached_once.contains(key) {
            self.pending.insert(key.clone());
        } else {
            self.pending.remove(key);
        }
    }

    /// Removes a server that is no longer declared.
    pub(super) fn remove_server(&mut self, key: &ObjectKey) {
        self.attached_once.remove(key);
        self.pending.remove(key);
        self.unattempted.remove(key);
    }

    /// Stops waiting for first attempts.
    pub(super) fn abandon_attempts(&mut self) {
        self.attempts_abandoned = true;
        self.evaluate(false);
    }

    /// Decides about readiness. Call it after all servers were recorded.
    pub(super) fn evaluate(&mut self, synced: bool) {
        self.synced |= synced;
        self.required_ready |= self.synced && self.pending.is_empty();
        if !self.ready && self.required_ready && (self.attempts_abandoned || self.unattempted.is_empty()) {
            self.ready = true;
            self.attached_once.clear();
            self.unattempted.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing::key;

    fn server_readiness(required: bool, attached: bool) -> ServerReadiness {
        ServerReadiness { required, attached, attempted: true }
    }

    #[test]
    fn readiness_waits_for_the_source_and_each_required_server() {
        let (a, b) = (key("a"), key("b"));
        let mut readiness = Readiness::default();
        readiness.evaluate(false);
        assert!(!readiness.is_ready(), "the source has not been read");
        readiness.update_server(&a, server_readiness(true, false));
        readiness.update_server(&b, server_readiness(true, false));
        readiness.evaluate(true);
        assert_eq!(readiness.pending().collect::<Vec<_>>(), [&a, &b]);
        readiness.update_server(&a, server_readiness(true, true));
        // Attached once is enough, even if the connection is lost while another server is still pending.
        readiness.update_server(&a, server_readiness(true, false));
        readiness.evaluate(true);
        assert_eq!(readiness.pending().collect::<Vec<_>>(), [&b]);
        readiness.remove_server(&b);
        readiness.evaluate(true);
        assert!(readiness.is_ready());
        readiness.update_server(&b, server_readiness(true, false));
        readiness.evaluate(true);
        assert!(readiness.is_ready(), "readiness is not revoked");
    }

    #[test]
    fn readiness_waits_for_first_attempts_of_initial_servers() {
        let (a, b, late) = (key("a"), key("b"), key("late"));
        let connecting = ServerReadiness { required: false, attached: false, attempted: false };
        let start = || {
            let mut readiness = Readiness::default();
            readiness.update_server(&a, connecting);
            readiness.update_server(&b, ServerReadiness { required: true, ..connecting });
            readiness.evaluate(true);
            readiness.update_server(&late, connecting);
            readiness
        };
        let mut readiness = start();
        assert_eq!(
            readiness.unattempted().collect::<Vec<_>>(),
            [&a],
            "b is pending, and late was declared later"
        );
        readiness.update_server(&b, server_readiness(true, true));
        readiness.evaluate(true);
        assert!(readiness.required_ready() && !readiness.is_ready());
        readiness.update_server(&a, server_readiness(false, false));
        readiness.evaluate(true);
        assert!(readiness.is_ready());

        let mut readiness = start();
        readiness.abandon_attempts();
        assert!(!readiness.is_ready(), "required servers are still waited for");
        readiness.update_server(&b, server_readiness(true, true));
        readiness.evaluate(true);
        assert!(readiness.is_ready());
    }
}
