use std::sync::Arc;

use super::session::{InFlight, Session};
use crate::wire::{Era, JsonRpcId, LogLevel, RequestParams};

/// Who asks. Whatever hangs on who asks takes this and decides by nothing else.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// A legacy session.
    Session(Arc<Session>),
    /// Somebody who cannot be told from others: a modern agent, whose process and connection are no identity
    /// (2026-07-28, Basic).
    Nobody,
}

/// A request of the session with the same id is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct DuplicateRequestId;

impl Caller {
    /// Gives the era in which the caller speaks.
    pub(super) fn era(&self) -> Era {
        match self {
            Self::Session(_) => Era::Legacy,
            Self::Nobody => Era::Modern,
        }
    }

    /// Gives the session, if there is one.
    pub(super) fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Self::Session(session) => Some(session),
            Self::Nobody => None,
        }
    }

    /// Gives the level from which on the caller wants log messages with the answer to a request; what `None` means its
    /// era says.
    pub(super) fn level(&self, params: &RequestParams<'_>) -> Option<LogLevel> {
        match self {
            Self::Session(session) => session.level(),
            Self::Nobody => {
                let meta = params.meta.as_ref()?;
                LogLevel::named(&meta.text("io.modelcontextprotocol/logLevel")?)
            }
        }
    }

    /// Notes that a request begins, so that the caller can cancel it by its id. A caller without a session cancels by
    /// going away.
    pub(super) fn begin(&self, id: &JsonRpcId) -> Result<Option<InFlight>, DuplicateRequestId> {
        self.session().map(|session| session.begin(id.clone()).ok_or(DuplicateRequestId)).transpose()
    }
}
