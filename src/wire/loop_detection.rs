//! How evenkeels that have each other as servers notice it: with each handshake and each list they say who asks, and
//! behind whom.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::ConnectionError;
use crate::resource::Reason;

/// The member of `_meta` that names the evenkeel that asks, and then those that asked it.
pub const VIA_KEY: &str = "dev.evenkeel/via";
/// The member of an error's `data` that says that an evenkeel was refused, and how they hang together.
pub const LOOP_KEY: &str = "dev.evenkeel/ring";
/// So many others are remembered, and taken from one request.
const MAX_INSTANCES: usize = 64;
/// How long after its last request an evenkeel counts as one that is served here.
const CALLER_TTL: Duration = Duration::from_mins(10);
/// The length of a name.
const ID_CHARS: usize = 16;

/// Who this evenkeel is, for as long as the process lives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InstanceId(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    /// The evenkeels that asked for something lately, themselves or through others.
    recent_callers: Mutex<HashMap<String, Instant>>,
}

/// How two evenkeels hang together that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopKind {
    /// They are one.
    OwnEndpoint,
    /// Each is a server of the other, directly or through others.
    Cycle,
}

impl Default for InstanceId {
    /// A new one.
    fn default() -> Self {
        let name = format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
        Self(Arc::new(Inner { id: name, recent_callers: Mutex::default() }))
    }
}

impl InstanceId {
    /// What is said with a request: the JSON of an array of names, the own one first.
    pub(super) fn via_json(&self) -> String {
        let served = self.0.recent_callers.lock();
        let lately = served.iter().filter(|(_, at)| at.elapsed() < CALLER_TTL).map(|(name, _)| name);
        let names: Vec<_> = std::iter::once(&self.0.id).chain(lately).collect();
        serde_json::to_string(&names).unwrap_or_default()
    }

    /// Takes up what a request says of who asks; the error says that it must be refused.
    ///
    /// An opening that comes round is refused. Two that were opened in the same moment are noticed by a list that is
    /// asked for: only the one of the greatest name refuses that, so that the ring is cut at one place.
    pub fn check_via(&self, via: &str, opening: bool) -> Result<(), LoopKind> {
        // Whatever else stands there was not said by an evenkeel.
        let names: Vec<String> = serde_json::from_str(via).unwrap_or_default();
        let well_formed =
            |name: &&String| name.len() == ID_CHARS && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let names: Vec<_> = names.iter().filter(well_formed).take(MAX_INSTANCES).collect();
        let own = &self.0.id;
        if names.first() == Some(&own) {
            return Err(LoopKind::OwnEndpoint);
        }
        if names.contains(&own) && (opening || names.iter().all(|name| *name <= own)) {
            return Err(LoopKind::Cycle);
        }
        let now = Instant::now();
        let mut served = self.0.recent_callers.lock();
        served.retain(|_, at| now.duration_since(*at) < CALLER_TTL);
        for name in names.into_iter().filter(|name| *name != own) {
            if served.len() < MAX_INSTANCES || served.contains_key(name) {
                served.insert(name.clone(), now);
            }
        }
        Ok(())
    }
}

impl LoopKind {
    /// The word for it in an error's `data`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnEndpoint => "own",
            Self::Cycle => "around",
        }
    }

    /// Whether the `error` of a server says that it is an evenkeel that must not be one.
    pub(super) fn from_error(error: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct ErrorObject {
            data: HashMap<String, serde_json::Value>,
        }
        let ErrorObject { data } = serde_json::from_slice(error).ok()?;
        let word = data.get(LOOP_KEY)?.as_str()?;
        [Self::OwnEndpoint, Self::Cycle].into_iter().find(|ring| ring.as_str() == word)
    }

    /// What becomes of the attempt to have such a server.
    pub(super) fn connection_error(self) -> ConnectionError {
        ConnectionError::new(
            Reason::PolicyDenied,
            match self {
                Self::OwnEndpoint => {
                    "this is evenkeel's own endpoint, which cannot be a server of its own; remove the declaration"
                }
                Self::Cycle => {
                    "this evenkeel is a server of the one behind this declaration, directly or through others, and what \
                     they offer would go round and round; remove one of the declarations"
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str) -> InstanceId {
        InstanceId(Arc::new(Inner { id: name.repeat(ID_CHARS), recent_callers: Mutex::default() }))
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
        // A asks B, B asks C, C asks A: the last one closes the ring.
        assert_eq!(b.check_via(&a.via_json(), true), Ok(()));
        assert_eq!(c.check_via(&b.via_json(), true), Ok(()));
        assert_eq!(a.check_via(&c.via_json(), true), Err(LoopKind::Cycle));
        assert_eq!(b.check_via(&a.via_json(), false), Ok(()), "who was refused is not served");
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
        for ring in [LoopKind::OwnEndpoint, LoopKind::Cycle] {
            let error =
                serde_json::json!({ "code": -32600, "message": "m", "data": { LOOP_KEY: ring.as_str() } });
            assert_eq!(LoopKind::from_error(error.to_string().as_bytes()), Some(ring));
            assert_eq!(ring.connection_error().problem.reason, Reason::PolicyDenied);
        }
        for error in [r#"{"code":1,"message":"m"}"#, r#"{"data":"x"}"#, r#"{"data":{"dev.evenkeel/ring":1}}"#]
        {
            assert_eq!(LoopKind::from_error(error.as_bytes()), None);
        }
    }
}
