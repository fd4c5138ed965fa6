use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::resource::Digest;
use crate::wire::Era;

/// The era that each server was found to speak, by connection digest, so that it is probed once.
///
/// Cheap to clone. What it holds is kept across restarts by whoever watches [`Eras::changed`].
#[derive(Clone, Debug)]
pub struct Eras(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: Mutex<HashMap<Digest, Era>>,
    version: watch::Sender<u64>,
}

impl Eras {
    /// What was known at the last run.
    pub fn new(known: HashMap<Digest, Era>) -> Self {
        Self(Arc::new(Shared { known: Mutex::new(known), version: watch::Sender::new(0) }))
    }

    /// Changes whenever there is something new to keep.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Everything that is known.
    pub fn all(&self) -> HashMap<Digest, Era> {
        self.lock().clone()
    }

    pub(super) fn get(&self, digest: Digest) -> Option<Era> {
        self.lock().get(&digest).copied()
    }

    pub(super) fn set(&self, digest: Digest, era: Era) {
        if self.lock().insert(digest, era) != Some(era) {
            self.0.version.send_modify(|version| *version += 1);
        }
    }

    /// Forgets an era that did not work, so that the next attempt probes.
    pub(super) fn forget(&self, digest: Digest) {
        if self.lock().remove(&digest).is_some() {
            self.0.version.send_modify(|version| *version += 1);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Era>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
