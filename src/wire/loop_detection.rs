//! Detects evenkeel instances that are servers of each other. Every handshake and list request to a server carries the
//! ids of the requesting instance and of the instances that recently sent requests to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::ConnectionError;
use crate::resource::Reason;

/// The member of `_meta` with the id of the requesting instance, followed by the ids of its recent callers.
pub const VIA_KEY: &str = "dev.evenkeel/via";
/// The member of an error's `data` that is present if a request was rejected because of a loop. Its value is the kind.
pub const LOOP_KEY: &str = "dev.evenkeel/ring";
/// The maximum number of recent callers that are kept, and of ids that are read from one request.
const MAX_INSTANCES: usize = 64;
/// The time after its last request for which an instance counts as a recent caller.
const CALLER_TTL: Duration = Duration::from_mins(10);
/// The length of an id in characters.
const ID_CHARS: usize = 16;

/// The id of this evenkeel instance and its recent callers, for the life of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InstanceId(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    /// The instances that recently sent a request, directly or through others, with the time of the last one.
    recent_callers: Mutex<HashMap<String, Instant>>,
}

/// The kind of a loop between evenkeel instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKind {
    /// The server is this instance's own endpoint.
    OwnEndpoint,
    /// Two instances are servers of each other, directly or through others.
    Cycle,
}

impl Default for InstanceId {
    /// Generates a new id.
    fn default() -> Self {
        let id = format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
        Self(Arc::new(Inner { id, recent_callers: Mutex::default() }))
    }
}

impl InstanceId {
    /// Returns the id.
    pub fn as_str(&self) -> &str {
        &self.0.id
    }

    /// Returns the value of [`VIA_KEY`]: a JSON array of ids, this instance's first.
    pub(super) fn via_json(&self) -> String {
        let recent_callers = self.0.recent_callers.lock();
        let recent = recent_callers.iter().filter(|(_, at)| at.elapsed() < CALLER_TTL).map(|(id, _)| id);
        let ids: Vec<_> = std::iter::once(&self.0.id).chain(recent).collect();
        serde_json::to_string(&ids).unwrap_or_default()
    }

    /// Checks the [`VIA_KEY`] of a request and records the callers. Returns an error if the request must be rejected.
    ///
    /// A handshake (`is_handshake`) that closes a cycle is rejected. If the handshakes of a cycle ran at the same time,
    /// a list request reveals it: only the instance with the greatest id rejects that, so the cycle is cut at one
    /// place.
    pub fn check_via(&self, via: &str, is_handshake: bool) -> Result<(), LoopKind> {
        // Any other value was not written by an evenkeel instance.
        let ids: Vec<String> = serde_json::from_str(via).unwrap_or_default();
        let is_well_formed =
            |id: &&String| id.len() == ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let ids: Vec<_> = ids.iter().filter(is_well_formed).take(MAX_INSTANCES).collect();
        let own_id = &self.0.id;
        if ids.first() == Some(&own_id) {
            return Err(LoopKind::OwnEndpoint);
        }
        if ids.contains(&own_id) && (is_handshake || ids.iter().all(|id| *id <= own_id)) {
            return Err(LoopKind::Cycle);
        }
        let now = Instant::now();
        let mut recent_callers = self.0.recent_callers.lock();
        recent_callers.retain(|_, at| now.duration_since(*at) < CALLER_TTL);
        for id in ids.into_iter().filter(|id| *id != own_id) {
            if recent_callers.len() < MAX_INSTANCES || recent_callers.contains_key(id) {
                recent_callers.insert(id.clone(), now);
            }
        }
        Ok(())
    }
}

impl LoopKind {
    /// Returns the value of [`LOOP_KEY`] in an error's `data`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnEndpoint => "own",
            Self::Cycle => "around",
        }
    }

    /// Reads the kind of loop from the JSON of a server's `error`; `None` if it reports no loop.
    pub(super) fn from_error(error: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct ErrorObject {
            data: HashMap<String, serde_json::Value>,
        }
        let ErrorObject { data } = serde_json::from_slice(error).ok()?;
        let value = data.get(LOOP_KEY)?.as_str()?;
        [Self::OwnEndpoint, Self::Cycle].into_iter().find(|kind| kind.as_str() == value)
    }

    /// Returns the error of a connection to such a server.
    pub(super) fn connection_error(self) -> ConnectionError {
        ConnectionError::new(
            Reason::PolicyDenied,
            match self {
                Self::OwnEndpoint => {
                    "the server is evenkeel's own endpoint, which cannot be its own server; remove the declaration"
                }
                Self::Cycle => {
                    "this evenkeel instance is a server of the evenkeel instance behind this declaration, directly or \
                     through others; remove one of the declarations, because the two would list each other's items \
                     endlessly"
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(digit: &str) -> InstanceId {
        InstanceId(Arc::new(Inner { id: digit.repeat(ID_CHARS), recent_callers: Mutex::default() }))
    }

    #[test]
    fn check_via_rejects_own_requests_and_cycles_only() {
        let (a, b, c) = (instance("a"), instance("b"), instance("c"));
        assert_eq!(a.check_via(&a.via_json(), true), Err(LoopKind::OwnEndpoint));
        assert_eq!(a.check_via(&a.via_json(), false), Err(LoopKind::OwnEndpoint));
        for other in ["", "{}", "[]", "[1]", r#"["aaaa"]"#, r#"["aaaaaaaaaaaaaaaé"]"#] {
            assert_eq!(a.check_via(other, true), Ok(()), "{other}");
        }
        assert_eq!(a.via_json(), format!(r#"["{}"]"#, "a".repeat(16)));
        // A is a client of B, B of C, and C of A: the last handshake closes the cycle.
        assert_eq!(b.check_via(&a.via_json(), true), Ok(()));
        assert_eq!(c.check_via(&b.via_json(), true), Ok(()));
        assert_eq!(a.check_via(&c.via_json(), true), Err(LoopKind::Cycle));
        assert_eq!(
            b.check_via(&a.via_json(), false),
            Ok(()),
            "a rejected instance is not recorded as a caller"
        );
    }

    #[test]
    fn simultaneous_handshakes_are_rejected_by_one_instance_only() {
        let (a, b) = (instance("a"), instance("b"));
        let (from_a, from_b) = (a.via_json(), b.via_json());
        assert_eq!((b.check_via(&from_a, true), a.check_via(&from_b, true)), (Ok(()), Ok(())));
        assert_eq!(
            (b.check_via(&a.via_json(), false), a.check_via(&b.via_json(), false)),
            (Err(LoopKind::Cycle), Ok(()))
        );
    }

    #[test]
    fn recent_callers_are_bounded() {
        let a = instance("a");
        for number in 0..1_000_u64 {
            let names: Vec<_> = (0..100).map(|other| format!("{:016x}", number * 100 + other)).collect();
            a.check_via(&serde_json::to_string(&names).unwrap(), true).unwrap();
        }
        assert!(a.via_json().len() < 2_000);
    }

    #[test]
    fn loop_kind_is_parsed_from_error_data() {
        for kind in [LoopKind::OwnEndpoint, LoopKind::Cycle] {
            let error =
                serde_json::json!({ "code": -32600, "message": "m", "data": { LOOP_KEY: kind.as_str() } });
            assert_eq!(LoopKind::from_error(error.to_string().as_bytes()), Some(kind));
            assert_eq!(kind.connection_error().problem.reason, Reason::PolicyDenied);
        }
        for error in [r#"{"code":1,"message":"m"}"#, r#"{"data":"x"}"#, r#"{"data":{"dev.evenkeel/ring":1}}"#]
        {
            assert_eq!(LoopKind::from_error(error.as_bytes()), None);
        }
    }
}
