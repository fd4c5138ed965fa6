use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::wire::ServerLog;

/// The logs of servers, by the uid of their objects: each outlives its server's connections and goes with the object.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServerLogs(Arc<Mutex<HashMap<Arc<str>, ServerLog>>>);

impl ServerLogs {
    /// The log of an object; `None` if nobody has needed one yet.
    pub fn get(&self, uid: &str) -> Option<ServerLog> {
        self.0.lock().get(uid).cloned()
    }

    /// The same, made if there is none: whoever writes it or waits for what is written later has the same one.
    pub fn get_or_create(&self, uid: &Arc<str>) -> ServerLog {
        self.0.lock().entry(uid.clone()).or_default().clone()
    }

    /// The object is gone. Who reads its log still has it.
    pub fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}
