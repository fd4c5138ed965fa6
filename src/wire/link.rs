use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Edit;
use crate::resource::Problem;

/// A live connection to one server, shared by every call on it.
#[derive(Debug)]
pub struct Link {}

/// A request to a server, as the agent wrote it and with what must change.
///
/// The link adds what the connection needs: an id of its own, a progress token of its own in place of the
/// agent's, and in the modern era the `_meta` of the connection in place of the agent's.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The members of `params`, from [`super::members`].
    pub params: &'a [(Cow<'a, str>, &'a RawValue)],
    /// Changes to `params`.
    pub edits: &'a [Edit<'a>],
    /// The server's own name of the tool or prompt, or the resource's URI: the `Mcp-Name` header.
    pub name: Option<&'a str>,
}

/// A request in flight. Dropping it before the answer tells the server that it is cancelled.
#[derive(Debug)]
pub struct Exchange {}

/// What comes back for a request.
#[derive(Debug)]
pub enum Incoming {
    /// A notification that belongs to this request, as a whole JSON-RPC message; a progress
    /// notification carries the agent's own token again.
    Notice(Bytes),
    /// The answer; nothing follows.
    Answer(Reply),
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// The raw JSON of `result`.
    Result(Bytes),
    /// The raw JSON of `error`: an object with `code` and `message`.
    Error(Bytes),
}

/// Why a connection could not be made, or a request not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct LinkError {
    /// What happened, for conditions and for the caller.
    pub problem: Problem,
    /// True if the request may have reached the server: it must not be sent again.
    pub dispatched: bool,
    /// What the server asked for with Retry-After.
    pub retry_after: Option<Duration>,
}

impl Link {
    /// Sends a request. The answer may take as long as it likes: the caller bounds it.
    pub async fn call(&self, request: Request<'_>) -> Result<Exchange, LinkError> {
        let _ = request;
        unimplemented!()
    }
}

impl Exchange {
    /// The next thing that comes back. After an answer or an error nothing more comes.
    pub async fn next(&mut self) -> Result<Incoming, LinkError> {
        unimplemented!()
    }

    /// Stops waiting without telling the server; a late answer is discarded.
    pub fn abandon(self) {
        unimplemented!()
    }
}
