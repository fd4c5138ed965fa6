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
pub const RING_KEY: &str = "dev.evenkeel/ring";
/// So many others are remembered, and taken from one request.
const OTHERS: usize = 64;
/// How long after its last request an evenkeel counts as one that is served here.
const REMEMBERED: Duration = Duration::from_mins(10);
/// The length of a name.
const LENGTH: usize = 16;

/// Who this evenkeel is, for as long as the process lives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InstanceId(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// The evenkeels that asked for something lately, themselves or through others.
    served: Mutex<HashMap<String, Instant>>,
}

/// How two evenkeels hang together that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopDetection {
    /// They are one.
    Own,
    /// Each is a server of the other, directly or through others.
    Around,
}

impl Default for InstanceId {
    /// A new one.
    fn default() -> Self {
        let name = format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
        Self(Arc::new(Inner { name, served: Mutex::default() }))
    }
}

impl InstanceId {
    /// What is said with a request: the JSON of an array of names, the own one first.
    pub(super) fn via(&self) -> String {
        let served = self.0.served.lock();
        let lately = served.iter().filter(|(_, at)| at.elapsed() < REMEMBERED).map(|(name, _)| name);
        let names: Vec<_> = std::iter::once(&self.0.name).chain(lately).collect();
        serde_json::to_string(&names).unwrap_or_default()
    }

    /// Takes up what a request says of who asks; the error says that it must be refused.
    ///
    /// An opening that comes round is refused. Two that were opened in the same moment are noticed by a list that is
    /// asked for: only the one of the greatest name refuses that, so that the ring is cut at one place.
    pub fn meet(&self, via: &str, opening: bool) -> Result<(), LoopDetection> {
        // Whatever else stands there was not said by an evenkeel.
        let names: Vec<String> = serde_json::from_str(via).unwrap_or_default();
        let well_formed =
            |name: &&String| name.len() == LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let names: Vec<_> = names.iter().filter(well_formed).take(OTHERS).collect();
        let own = &self.0.name;
        if names.first() == Some(&own) {
            return Err(LoopDetection::Own);
        }
        if names.contains(&own) && (opening || names.iter().all(|name| *name <= own)) {
            return Err(LoopDetection::Around);
        }
        let now = Instant::now();
        let mut served = self.0.served.lock();
        served.retain(|_, at| now.duration_since(*at) < REMEMBERED);
        for name in names.into_iter().filter(|name| *name != own) {
            if served.len() < OTHERS || served.contains_key(name) {
                served.insert(name.clone(), now);
            }
        }
        Ok(())
    }
}

impl LoopDetection {
    /// The word for it in an error's `data`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Around => "around",
        }
    }

    /// Whether the `error` of a server says that it is an evenkeel that must not be one.
    pub(super) fn of(error: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Refusal {
            data: HashMap<String, serde_json::Value>,
        }
        let Refusal { data } = serde_json::from_slice(error).ok()?;
        let word = data.get(RING_KEY)?.as_str()?;
        [Self::Own, Self::Around].into_iter().find(|ring| ring.word() == word)
    }

    /// What becomes of the attempt to have such a server.
    pub(super) fn error(self) -> ConnectionError {
        ConnectionError::new(
            Reason::PolicyDenied,
            match self {
                Self::Own => {
                    "this is evenkeel's own endpoint, which cannot be a server of its own; remove the declaration"
                }
                Self::Around => {
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

    fn named(name: &str) -> InstanceId {
        InstanceId(Arc::new(Inner { name: name.repeat(LENGTH), served: Mutex::default() }))
    }

    #[test]
    fn what_comes_round_is_refused_and_nothing_else() {
        let (a, b, c) = (named("a"), named("b"), named("c"));
        assert_eq!(a.meet(&a.via(), true), Err(LoopDetection::Own));
        assert_eq!(a.meet(&a.via(), false), Err(LoopDetection::Own));
        for other in ["", "{}", "[]", "[1]", r#"["aaaa"]"#, r#"["aaaaaaaaaaaaaaaé"]"#] {
            assert_eq!(a.meet(other, true), Ok(()), "{other}");
        }
        assert_eq!(a.via(), format!(r#"["{}"]"#, "a".repeat(16)));
        // A asks B, B asks C, C asks A: the last one closes the ring.
        assert_eq!(b.meet(&a.via(), true), Ok(()));
        assert_eq!(c.meet(&b.via(), true), Ok(()));
        assert_eq!(a.meet(&c.via(), true), Err(LoopDetection::Around));
        assert_eq!(b.meet(&a.via(), false), Ok(()), "who was refused is not served");
    }

    #[test]
    fn two_that_open_at_once_are_cut_at_one_place() {
        let (a, b) = (named("a"), named("b"));
        let (from_a, from_b) = (a.via(), b.via());
        assert_eq!((b.meet(&from_a, true), a.meet(&from_b, true)), (Ok(()), Ok(())));
        assert_eq!((b.meet(&a.via(), false), a.meet(&b.via(), false)), (Err(LoopDetection::Around), Ok(())));
    }

    #[test]
    fn hostile_names_cost_little() {
        let a = named("a");
        for number in 0..1_000_u64 {
            let names: Vec<_> = (0..100).map(|other| format!("{:016x}", number * 100 + other)).collect();
            a.meet(&serde_json::to_string(&names).unwrap(), true).unwrap();
        }
        assert!(a.via().len() < 2_000);
    }

    #[test]
    fn a_refusal_is_read_back() {
        for ring in [LoopDetection::Own, LoopDetection::Around] {
            let error =
                serde_json::json!({ "code": -32600, "message": "m", "data": { RING_KEY: ring.word() } });
            assert_eq!(LoopDetection::of(error.to_string().as_bytes()), Some(ring));
            assert_eq!(ring.error().problem.reason, Reason::PolicyDenied);
        }
        for error in [r#"{"code":1,"message":"m"}"#, r#"{"data":"x"}"#, r#"{"data":{"dev.evenkeel/ring":1}}"#]
        {
            assert_eq!(LoopDetection::of(error.as_bytes()), None);
        }
    }
}
