use std::sync::Arc;

use super::session::{InFlightRequest, Session};
use crate::wire::{Era, JsonRpcId, LogLevel, RequestParams};

/// Who asks. Whatever hangs on who asks takes this and decides by nothing else.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// A legacy session.
    Session(Arc<Session>),
    /// Somebody who cannot be told from others: a modern agent, whose process and connection are no identity
    /// (2026-07-28, Basic).
    Sessionless,
}

/// A request of the session with the same id is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct DuplicateRequestId;

impl Caller {
    /// Gives the era in which the caller speaks.
    pub(super) fn era(&self) -> Era {
        match self {
            Self::Session(_) => Era::Legacy,
            Self::Sessionless => Era::Modern,
        }
    }

    /// Gives the session, if there is one.
    pub(super) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Session(session) => Some(session),
            Self::Sessionless => None,
        }
    }

    /// Gives the level from which on the caller wants log messages with the answer to a request; what `None` means its
    /// era says.
    pub(super) fn log_level(&self, params: &RequestParams<'_>) -> Option<LogLevel> {
        match self {
            Self::Session(session) => session.log_level(),
            Self::Sessionless => {
                let meta = params.meta.as_ref()?;
                LogLevel::from_name(&meta.get_string("io.modelcontextprotocol/logLevel")?)
            }
        }
    }

    /// Notes that a request begins, so that the caller can cancel it by its id. A caller without a session cancels by
    /// going away.
    pub(super) fn begin_request(
        &self,
        id: &JsonRpcId,
    ) -> Result<Option<InFlightRequest>, DuplicateRequestId> {
        self.session().map(|session| session.begin_request(id.clone()).ok_or(DuplicateRequestId)).transpose()
    }
}
