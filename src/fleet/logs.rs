use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::wire::ServerLog;

/// The logs of servers, by the uid of their objects. A log outlives its server's connections and is removed with the
/// object. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServerLogs(Arc<Mutex<HashMap<Arc<str>, ServerLog>>>);

impl ServerLogs {
    /// Returns the log of an object; `None` if none was created yet.
    pub fn get(&self, uid: &str) -> Option<ServerLog> {
        self.0.lock().get(uid).cloned()
    }

    /// Returns the log of an object, and creates it if there is none. Writers and readers share the same log.
    pub fn get_or_create(&self, uid: &Arc<str>) -> ServerLog {
        self.0.lock().entry(uid.clone()).or_default().clone()
    }

    /// Removes the log of a deleted object. Existing readers keep it.
    pub fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}
