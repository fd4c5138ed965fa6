use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::resource::ObjectKey;
use crate::wire::Log;

/// The logs of servers: each outlives its server's connections and goes with the object. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Logs(Arc<Mutex<Shelf>>);

/// With the uid of the object that each belongs to.
type Shelf = HashMap<ObjectKey, (Arc<str>, Log)>;

impl Logs {
    /// The log of a server; `None` if it was never connected.
    pub fn get(&self, key: &ObjectKey) -> Option<Log> {
        self.lock().get(key).map(|(_, log)| log.clone())
    }

    /// The log of the object with this uid; another object of the same name had another one.
    pub(super) fn of(&self, key: &ObjectKey, uid: &Arc<str>) -> Log {
        let mut logs = self.lock();
        match logs.get(key) {
            Some((known, log)) if known == uid => log.clone(),
            _ => {
                let log = Log::default();
                logs.insert(key.clone(), (uid.clone(), log.clone()));
                log
            }
        }
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
