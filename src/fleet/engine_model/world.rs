use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::json;
use tokio::time::Instant;

use super::super::listing::{ListResult, ServerListing, list_unavailable};
use super::super::state_machine::{AttachedServer, ConnectionId};
use super::operations::{Behavior, ConnectionFault};
use crate::plan::ConnectionTarget;
use crate::resource::{Reason, Transport};
use crate::upstream::{Item, ServerLists};
use crate::wire::{ConnectionError, FailureSource, ListKind, ServerCapabilities, ServerDescription};

/// The Retry-After that a server sends.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A simulated server: what it answers at the moment.
#[derive(Clone, Debug)]
pub(super) struct SimulatedServer {
    pub(super) behavior: Behavior,
    pub(super) tools: Vec<&'static str>,
}

/// An attempt or connection of one state machine, and the process behind it.
#[derive(Clone, Debug)]
pub(super) struct SimulatedConnection {
    pub(super) id: ConnectionId,
    pub(super) target: Arc<ConnectionTarget>,
    pub(super) role: Role,
    pub(super) calls: u32,
    /// The end of its drain.
    pub(super) drain_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Attempting,
    Live,
    /// Draining and closing. True if a `MakeBeforeBreak` replacement caused it.
    Draining(bool),
    /// The attempt failed or was cancelled, and is closing.
    Ended,
}

/// Something that is on its way to a state machine.
#[derive(Clone, Debug)]
pub(super) enum PendingEvent {
    AttemptEnds(ConnectionId),
    ReadEnds(ConnectionId, ListKind),
    Notification(ConnectionId, ListKind),
    ConnectionEnds(ConnectionId, ConnectionError),
    Closes(ConnectionId),
}

impl SimulatedConnection {
    pub(super) fn is_process(&self) -> bool {
        self.target.endpoint.transport.is_stdio()
    }
}

impl SimulatedServer {
    /// Returns the result of an attempt at this moment.
    pub(super) fn attempt_result(
        &self,
        target: &ConnectionTarget,
    ) -> Result<AttachedServer, ConnectionError> {
        let is_process = target.endpoint.transport.is_stdio();
        let error = |reason| Err(ConnectionError::new(reason, "the attempt failed"));
        match self.behavior {
            Behavior::Healthy | Behavior::HasNoPrompts | Behavior::LeaksSecret => {
                let mut listing = ServerListing { lists: self.lists(target), ..ServerListing::default() };
                if self.behavior == Behavior::HasNoPrompts {
                    let problem =
                        list_unavailable(ListKind::Prompts, &ConnectionError::new(Reason::Timeout, "late"));
                    listing.degraded.insert(ListKind::Prompts, problem);
                }
                let capabilities = ServerCapabilities {
                    tools: Some(true),
                    prompts: Some(true),
                    ..ServerCapabilities::default()
                };
                Ok(AttachedServer {
                    description: Arc::new(ServerDescription::default()),
                    capabilities,
                    listing,
                })
            }
            Behavior::RefusesConnections => error(Reason::ConnectFailed),
            Behavior::Hangs => error(Reason::Timeout),
            Behavior::ExitsAtStart if is_process => Err(ConnectionError {
                failure_source: FailureSource::Exit(Duration::from_millis(10)),
                ..ConnectionError::new(Reason::Exited, "exited with code 1")
            }),
            Behavior::ExitsAtStart => error(Reason::HandshakeFailed),
            Behavior::RejectsCredentials => error(Reason::CredentialsRejected),
            Behavior::FailsToList => error(Reason::ListFailed),
            Behavior::SendsRetryAfter => Err(ConnectionError {
                retry_after: Some(RETRY_AFTER),
                failure_source: FailureSource::Status(http::StatusCode::SERVICE_UNAVAILABLE),
                ..ConnectionError::new(Reason::ConnectFailed, "503")
            }),
            Behavior::IsAnotherEvenkeel => error(Reason::PolicyDenied),
        }
    }

    /// Returns the result of a read of a list at this moment.
    pub(super) fn read_result(
        &self,
        target: &ConnectionTarget,
        list: ListKind,
    ) -> Result<ListResult, ConnectionError> {
        match (self.behavior, list) {
            (Behavior::FailsToList | Behavior::Hangs, _) | (Behavior::HasNoPrompts, ListKind::Prompts) => {
                Err(ConnectionError::new(Reason::Timeout, "late").into_dispatched())
            }
            (Behavior::IsAnotherEvenkeel, _) => Err(ConnectionError::new(Reason::PolicyDenied, "a loop")),
            (_, list) => {
                Ok(ListResult { items: self.lists(target).items(list).to_vec(), ..ListResult::default() })
            }
        }
    }

    fn lists(&self, target: &ConnectionTarget) -> ServerLists {
        let secret = target.endpoint.referenced_values().first().map(ExposeSecret::expose_secret);
        let description = secret.filter(|_| self.behavior == Behavior::LeaksSecret).unwrap_or_default();
        let item = |name: &&str| {
            let text = json!({ "name": name, "description": description }).to_string();
            Item::parse(ListKind::Tools, &text).unwrap()
        };
        let mut tools = self.tools.clone();
        tools.sort_unstable();
        ServerLists { tools: tools.iter().map(item).collect(), ..ServerLists::default() }
    }
}

/// Returns the error with which a live connection ends.
pub(super) fn connection_error(end: ConnectionFault, age: Duration) -> ConnectionError {
    let (reason, failure_source) = match end {
        ConnectionFault::Broken => (Reason::ConnectFailed, FailureSource::Connection),
        ConnectionFault::Exited => (Reason::Exited, FailureSource::Exit(age)),
        ConnectionFault::SessionLost => (Reason::ConnectFailed, FailureSource::Session),
        ConnectionFault::Refused => (Reason::PolicyDenied, FailureSource::Connection),
    };
    ConnectionError { failure_source, ..ConnectionError::new(reason, "the connection ended") }
}

/// Returns the URL or command of a target, which names its simulated server.
pub(super) fn endpoint_name(target: &ConnectionTarget) -> String {
    match &target.endpoint.transport {
        Transport::Http(endpoint) => endpoint.url.to_string(),
        Transport::Stdio(endpoint) => endpoint.command.clone(),
    }
}

/// Returns the item with this index, counted around.
pub(super) fn nth<T>(items: impl Iterator<Item = T>, index: usize) -> Option<T> {
    let mut items: Vec<_> = items.collect();
    if items.is_empty() {
        return None;
    }
    let index = index % items.len();
    Some(items.swap_remove(index))
}
