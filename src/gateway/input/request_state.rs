use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use parking_lot::Mutex;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

use super::process_ref::ProcessRef;
use crate::gateway::seal::{SealError, SealPurpose, SessionKey};

/// The maximum number of used states that are recorded.
const MAX_USED: usize = 65_536;

/// The `requestState` of results that ask modern agents for input. Every state is sealed, is for one request, expires,
/// and is used once in a process.
#[derive(Debug)]
pub(in crate::gateway) struct RequestStates {
    key: Arc<SessionKey>,
    used: Mutex<UsedStates>,
}

#[derive(Debug, Default)]
struct UsedStates {
    digests: HashSet<[u8; 32]>,
    by_age: VecDeque<[u8; 32]>,
}

/// The request that a state is for, as a digest: caller, method, server, item and arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) struct RequestBinding(String);

/// The content of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) enum StateContent {
    /// The call to the server is open in a process.
    #[serde(rename = "o")]
    Suspended(ProcessRef),
    /// The state of a modern server.
    #[serde(rename = "s")]
    Server(String),
    /// The request is sent to the server again.
    #[serde(rename = "r")]
    Repeat,
}

/// The reason why a state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::gateway) enum RequestStateError {
    /// It was not sealed with this key, or was changed.
    #[error("requestState is not valid")]
    Invalid,
    /// Its time is over.
    #[error("requestState has expired: send the request again without it")]
    Expired,
    /// It belongs to another request or caller.
    #[error("requestState belongs to another request")]
    OtherRequest,
    /// It was used before.
    #[error("requestState was used before: send the request again without it")]
    Used,
}

#[derive(Serialize, Deserialize)]
struct SealedState {
    #[serde(rename = "b")]
    binding: RequestBinding,
    /// The time at which it expires, in seconds since 1970.
    #[serde(rename = "e")]
    expires_at: i64,
    #[serde(rename = "c")]
    content: StateContent,
}

impl RequestBinding {
    /// Returns the digest of the parts of a request, of which `arguments` is JSON. Another spelling of the same JSON is
    /// the same.
    pub(in crate::gateway) fn new(parts: &[&str], arguments: &str) -> Self {
        // The members of a `Value` are ordered.
        let arguments = serde_json::from_str::<serde_json::Value>(arguments).unwrap_or_default().to_string();
        let mut context = Context::new(&SHA256);
        for part in parts.iter().copied().chain([&*arguments]) {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        Self(URL_SAFE_NO_PAD.encode(context.finish()))
    }
}

impl RequestStates {
    pub(in crate::gateway) fn new(key: Arc<SessionKey>) -> Self {
        Self { key, used: Mutex::default() }
    }

    /// Creates a state that expires after `lifetime`.
    pub(in crate::gateway) fn seal(
        &self,
        binding: RequestBinding,
        content: StateContent,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<String, SealError> {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let expires_at = now.as_second().saturating_add(lifetime);
        self.key.seal(SealPurpose::RequestState, &SealedState { binding, expires_at, content })
    }

    /// Returns the process that holds the call of a state, without any check of the request.
    pub(in crate::gateway) fn process(&self, state: &str) -> Option<ProcessRef> {
        match self.key.open::<SealedState>(SealPurpose::RequestState, state)?.content {
            StateContent::Suspended(reference) => Some(reference),
            StateContent::Server(_) | StateContent::Repeat => None,
        }
    }

    /// Returns the content of a state that a request repeats, and marks it as used.
    pub(in crate::gateway) fn open(
        &self,
        state: &str,
        binding: &RequestBinding,
        now: Timestamp,
    ) -> Result<StateContent, RequestStateError> {
        let sealed: SealedState =
            self.key.open(SealPurpose::RequestState, state).ok_or(RequestStateError::Invalid)?;
        if sealed.binding != *binding {
            return Err(RequestStateError::OtherRequest);
        }
        if sealed.expires_at < now.as_second() {
            return Err(RequestStateError::Expired);
        }
        self.used.lock().add(state).then_some(sealed.content).ok_or(RequestStateError::Used)
    }
}

impl UsedStates {
    /// Records a state. Returns false if it was recorded before.
    fn add(&mut self, state: &str) -> bool {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, state.as_bytes()).as_ref());
        if !self.digests.insert(key) {
            return false;
        }
        self.by_age.push_back(key);
        if self.by_age.len() > MAX_USED
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.digests.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(arguments: &str) -> RequestBinding {
        RequestBinding::new(&["", "tools/call", "default/a", "t"], arguments)
    }

    #[test]
    fn state_is_used_once_by_its_request_until_it_expires() {
        let states = RequestStates::new(Arc::new(SessionKey::new(b"k").unwrap()));
        let now = Timestamp::from_second(1_000).unwrap();
        let content = StateContent::Server("s".to_owned());
        let seal =
            || states.seal(binding(r#"{"a":1}"#), content.clone(), now, Duration::from_mins(1)).unwrap();
        let later = |seconds: i64| Timestamp::from_second(1_000 + seconds).unwrap();
        let state = seal();
        assert_eq!(states.open(&state, &binding(r#"{"a":2}"#), now), Err(RequestStateError::OtherRequest));
        assert_eq!(states.open(&state, &binding(r#"{ "a": 1 }"#), later(60)), Ok(content.clone()));
        assert_eq!(states.open(&state, &binding(r#"{"a":1}"#), later(60)), Err(RequestStateError::Used));
        assert_eq!(states.open(&seal(), &binding(r#"{"a":1}"#), later(61)), Err(RequestStateError::Expired));
        for invalid in ["", "x", &format!("{state}A")] {
            assert_eq!(states.open(invalid, &binding("{}"), now), Err(RequestStateError::Invalid));
        }
    }

    #[test]
    fn binding_distinguishes_every_part() {
        let all = [
            RequestBinding::new(&["a", "b"], "{}"),
            RequestBinding::new(&["ab", ""], "{}"),
            RequestBinding::new(&["a", "b"], r#"{"b":1,"a":2}"#),
            RequestBinding::new(&["a", "b"], "[]"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one));
        }
        assert_eq!(all[2], RequestBinding::new(&["a", "b"], r#"{"a":2, "b":1}"#));
    }

    #[test]
    fn number_of_recorded_states_is_bounded() {
        let mut used = UsedStates::default();
        for number in 0..=MAX_USED {
            assert!(used.add(&number.to_string()));
        }
        assert!(used.digests.len() == MAX_USED && !used.add("1") && used.add("0"));
    }
}
