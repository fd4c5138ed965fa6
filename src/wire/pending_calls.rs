//! The requests in flight on a connection whose messages all share one stream: stdio, and HTTP+SSE.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::error::{ConnectionEnd, ConnectionError};
use super::notifications::NotificationDispatcher;
use super::response::{ResponseMessage, RpcResponse, unreadable_response};
use super::server_message::ServerMessage;
use crate::resource::Reason;

/// The maximum number of queued notifications of one call. More are dropped: progress notifications are optional.
const MAX_QUEUED_NOTIFICATIONS: usize = 64;

/// The calls that wait for their responses, by request id. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingCalls(Arc<Mutex<HashMap<u64, CallSender>>>);

#[derive(Debug)]
struct CallSender {
    response: oneshot::Sender<Result<RpcResponse, ConnectionError>>,
    notifications: Option<mpsc::Sender<Bytes>>,
    /// True for `subscriptions/listen`, which the server may end by `notifications/cancelled`.
    is_listen: bool,
}

/// A call that waits for its response.
#[derive(Debug)]
pub(super) struct PendingCall {
    id: u64,
    calls: PendingCalls,
    response: oneshot::Receiver<Result<RpcResponse, ConnectionError>>,
    notifications: Option<mpsc::Receiver<Bytes>>,
    end: Arc<ConnectionEnd>,
}

impl PendingCalls {
    /// Adds a call. `wants_notifications` is true if it takes notifications; `is_listen` for `subscriptions/listen`.
    /// After [`Self::fail_all`] it fails with `end`.
    pub(super) fn add(
        &self,
        id: u64,
        (wants_notifications, is_listen): (bool, bool),
        end: Arc<ConnectionEnd>,
    ) -> PendingCall {
        let (response_sender, response) = oneshot::channel();
        let (notification_sender, notifications) =
            wants_notifications.then(|| mpsc::channel(MAX_QUEUED_NOTIFICATIONS)).unzip();
        let sender = CallSender { response: response_sender, notifications: notification_sender, is_listen };
        self.0.lock().insert(id, sender);
        PendingCall { id, calls: self.clone(), response, notifications, end }
    }

    /// Ends a call, if it is in flight, with a response or an error.
    pub(super) fn complete(&self, id: Option<u64>, response: Result<RpcResponse, ConnectionError>) {
        let call = id.and_then(|id| self.0.lock().remove(&id));
        if let Some(call) = call {
            // The call may have been dropped.
            let _ = call.response.send(response);
        }
    }

    /// Ends all calls with the error of the connection's end, which must be recorded before.
    pub(super) fn fail_all(&self) {
        self.0.lock().clear();
    }

    /// Gives a message of the server to its call. Returns it if it belongs to none.
    pub(super) fn receive(
        &self,
        message: Bytes,
        kind: ServerMessage,
        notifications: &NotificationDispatcher,
    ) -> Option<(Bytes, ServerMessage)> {
        if !matches!(kind, ServerMessage::Unreadable(_)) {
            notifications.mark_received();
        }
        match kind {
            // Without an id it can only be the response to the one request in flight.
            ServerMessage::Response(None, response @ RpcResponse::Error(_)) => {
                self.complete(self.only_request(), Ok(response));
            }
            ServerMessage::Response(id, response) => self.complete(id, Ok(response)),
            ServerMessage::Unreadable(id) => {
                if id.is_some() {
                    self.complete(id, Err(unreadable_response(&message, notifications.mask())));
                }
            }
            ServerMessage::Progress(id) | ServerMessage::ListenAcknowledged(id) => {
                let sender = self.0.lock().get(&id).and_then(|call| call.notifications.clone());
                if let Some(sender) = sender {
                    let _ = sender.try_send(message);
                }
            }
            ServerMessage::ListenCancelled(id) => {
                let is_listen = self.0.lock().get(&id).is_some_and(|call| call.is_listen);
                let message = "the server ended the subscription";
                let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
                self.complete(Some(id).filter(|_| is_listen), Err(error));
            }
            kind => return Some((message, kind)),
        }
        None
    }

    /// Returns the id of the request in flight if there is exactly one, apart from subscriptions.
    fn only_request(&self) -> Option<u64> {
        let calls = self.0.lock();
        let mut ids = calls.iter().filter(|(_, call)| !call.is_listen).map(|(id, _)| *id);
        ids.next().filter(|_| ids.next().is_none())
    }
}

impl PendingCall {
    /// Returns the next message for the call. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let notification = async {
            match &mut self.notifications {
                Some(notifications) => notifications.recv().await,
                None => None,
            }
        };
        // Notifications come first: those that arrived before the response are returned before it.
        tokio::select! {
            biased;
            Some(message) = notification => Ok(ResponseMessage::Notification(message)),
            response = &mut self.response => match response {
                Ok(response) => response.map(ResponseMessage::Response),
                Err(_) => Err(self.end.wait().await.into_dispatched()),
            },
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.calls.0.lock().remove(&self.id);
    }
}
