use std::sync::Arc;

use serde_json::value::RawValue;

use super::era::{CAPABILITIES_KEY, first_modern_version};
use super::in_flight::{InFlightRequest, UnacceptedRequest};
use super::session::Session;
use crate::upstream::CallerId;
use crate::wire::{ClientCapabilities, Era, JsonRpcId, LogLevel, RequestParams};

/// The caller of a request. Code that depends on the caller takes this and uses no other distinction.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// A legacy session.
    Session(Arc<Session>),
    /// A modern agent, by the id in its endpoint path, and that of its window if it sends one. Without an id in the path it cannot be distinguished from others, because its
    /// process and connection are no identity (2026-07-28, Basic).
    Sessionless(Option<Arc<str>>),
}

impl Caller {
    /// Returns the protocol era of the caller.
    pub(super) fn era(&self) -> Era {
        match self {
            Self::Session(_) => Era::Legacy,
            Self::Sessionless(_) => Era::Modern,
        }
    }

    /// Returns the protocol version of the caller: the negotiated one, or the first modern one.
    pub(super) fn protocol_version(&self) -> &str {
        match self {
            Self::Session(session) => session.protocol_version(),
            Self::Sessionless(_) => first_modern_version(),
        }
    }

    /// Returns the session, if the caller has one.
    pub(super) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Session(session) => Some(session),
            Self::Sessionless(_) => None,
        }
    }

    /// Returns what tells the caller from others; `None` if nothing does. A legacy session is a caller of its own on every
    /// path.
    pub(super) fn id(&self) -> Option<CallerId> {
        match self {
            Self::Session(session) => Some(session.caller_id()),
            Self::Sessionless(path_id) => path_id.clone().map(CallerId::Path),
        }
    }

    /// Returns the minimum level of the log messages that the caller requests with a response. The meaning of `None`
    /// depends on the era.
    pub(super) fn log_level(&self, params: &RequestParams<'_>) -> Option<LogLevel> {
        match self {
            Self::Session(session) => session.log_level(),
            Self::Sessionless(_) => {
                let meta = params.meta.as_ref()?;
                LogLevel::from_name(&meta.get_string("io.modelcontextprotocol/logLevel")?)
            }
        }
    }

    /// Returns the capabilities by which servers may ask the caller for input.
    pub(super) fn input_capabilities(&self, params: &RequestParams<'_>) -> ClientCapabilities {
        match self {
            Self::Session(session) => session.input_capabilities(),
            Self::Sessionless(_) => {
                let capabilities = params.meta.as_ref().and_then(|meta| meta.get(CAPABILITIES_KEY));
                let capabilities = capabilities.map(RawValue::get);
                capabilities
                    .filter(|json| *json != "{}")
                    .map(ClientCapabilities::from_json)
                    .unwrap_or_default()
            }
        }
    }

    /// Registers a request in flight, at most `max` at a time, so that the caller can cancel it by its id. A caller
    /// without a session cancels by disconnecting; for it the result is `None`.
    pub(super) fn begin_request(
        &self,
        id: &JsonRpcId,
        max: usize,
    ) -> Result<Option<InFlightRequest>, UnacceptedRequest> {
        self.session().map(|session| session.begin_request(id.clone(), max)).transpose()
    }
}
