use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::gateway::seal::{SealError, SealPurpose, SessionKey};
use crate::wire::{InstanceId, JsonRpcId};

/// Something that one process holds: a request for input, or a call that waits for input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) struct ProcessRef {
    #[serde(rename = "p")]
    process: String,
    /// The address (`HOST:PORT`) at which other replicas reach the process.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(in crate::gateway) address: Option<String>,
    /// The number of the request or call in its process.
    #[serde(rename = "n")]
    pub(in crate::gateway) number: u64,
}

/// The identity of this process, and the numbers of what it holds.
#[derive(Debug)]
pub(in crate::gateway) struct OwnProcess {
    id: InstanceId,
    address: Option<String>,
    key: Arc<SessionKey>,
    next_number: AtomicU64,
}

impl OwnProcess {
    pub(in crate::gateway) fn new(id: InstanceId, address: Option<String>, key: Arc<SessionKey>) -> Self {
        Self { id, address, key, next_number: AtomicU64::new(1) }
    }

    /// Returns a reference with a new number.
    pub(in crate::gateway) fn new_ref(&self) -> ProcessRef {
        ProcessRef {
            process: self.id.as_str().to_owned(),
            address: self.address.clone(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Returns true for a reference to this process.
    pub(in crate::gateway) fn holds(&self, reference: &ProcessRef) -> bool {
        reference.process == self.id.as_str()
    }

    /// Creates the id of a request to an agent: any replica can tell from it which process holds the request.
    pub(super) fn new_request_id(&self) -> Result<(u64, JsonRpcId), SealError> {
        let reference = self.new_ref();
        let id = self.key.seal(SealPurpose::RequestId, &reference)?;
        Ok((reference.number, JsonRpcId::from_text(&id)))
    }

    /// Returns the content of an id of [`Self::new_request_id`] of any process with the same key.
    pub(in crate::gateway) fn open_request_id(&self, id: &JsonRpcId) -> Option<ProcessRef> {
        let text: String = serde_json::from_slice(id.as_bytes()).ok()?;
        self.key.open(SealPurpose::RequestId, &text)
    }
}
