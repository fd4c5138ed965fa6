//! The requests in flight on a connection whose messages all share one stream: stdio, and HTTP+SSE.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::envelope::JsonRpcId;
use super::error::{ConnectionEnd, ConnectionError};
use super::input_request::InputRequest;
use super::notifications::NotificationDispatcher;
use super::response::{RpcResponse, unreadable_response};
use super::response_message::ResponseMessage;
use super::server_message::ServerMessage;
use crate::resource::Reason;

/// The maximum number of queued notifications of one call. More are dropped: progress notifications are optional.
const MAX_QUEUED_NOTIFICATIONS: usize = 64;
/// The maximum number of queued requests of the server for input of one call. More are declined.
const MAX_QUEUED_INPUT_REQUESTS: usize = 64;

/// The calls that wait for their responses, by request id. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingCalls(Arc<Mutex<HashMap<u64, CallSender>>>);

#[derive(Debug)]
struct CallSender {
    events: oneshot::Sender<CallEvent>,
    notifications: Option<mpsc::Sender<Bytes>>,
    kind: CallKind,
    /// True once the call got a request of the server for input.
    has_input_requests: bool,
    /// The number of such requests and cancellations that the call has not read yet.
    queued_inputs: usize,
}

/// An event of a call, with the receiver of the next one unless it is the last.
#[derive(Debug)]
enum CallEvent {
    Response(Result<RpcResponse, ConnectionError>),
    /// A request of the server for input, or its cancellation. No channel is kept for these: they are rare.
    Input(ResponseMessage, oneshot::Receiver<CallEvent>),
}

/// The kind of a call, which decides about the messages that it gets besides its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    /// A request of an agent. The server may request input for it.
    Agent,
    /// A request of evenkeel.
    Internal,
    /// `subscriptions/listen`, which the server may end by `notifications/cancelled`.
    Listen,
}

/// A call that waits for its response.
#[derive(Debug)]
pub(super) struct PendingCall {
    id: u64,
    calls: PendingCalls,
    events: oneshot::Receiver<CallEvent>,
    notifications: Option<mpsc::Receiver<Bytes>>,
    end: Arc<ConnectionEnd>,
}

impl PendingCalls {
    /// Adds a call. `wants_notifications` is true if it takes notifications. After [`Self::fail_all`] it fails with `end`.
    pub(super) fn add(
        &self,
        id: u64,
        kind: CallKind,
        wants_notifications: bool,
        end: Arc<ConnectionEnd>,
    ) -> PendingCall {
        let (event_sender, events) = oneshot::channel();
        let (notification_sender, notifications) =
            wants_notifications.then(|| mpsc::channel(MAX_QUEUED_NOTIFICATIONS)).unzip();
        let sender = CallSender {
            events: event_sender,
            notifications: notification_sender,
            kind,
            has_input_requests: false,
            queued_inputs: 0,
        };
        self.0.lock().insert(id, sender);
        PendingCall { id, calls: self.clone(), events, notifications, end }
    }

    /// Ends a call, if it is in flight, with a response or an error.
    pub(super) fn complete(&self, id: Option<u64>, response: Result<RpcResponse, ConnectionError>) {
        let call = id.and_then(|id| self.0.lock().remove(&id));
        if let Some(call) = call {
            // The call may have been dropped.
            let _ = call.events.send(CallEvent::Response(response));
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
                let only_call = self.only_call(|kind| kind != CallKind::Listen);
                self.complete(only_call, Ok(response));
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
            ServerMessage::Cancelled(id) => self.receive_cancelled(&id),
            // The protocol does not say which call such a request belongs to: it is unambiguous only with one call.
            ServerMessage::InputRequest(id, request) => {
                let call = self.only_call(|kind| kind == CallKind::Agent);
                return self
                    .send_input_request(call, id, request)
                    .map(|(id, request)| (message, ServerMessage::InputRequest(id, request)));
            }
            kind => return Some((message, kind)),
        }
        None
    }

    /// Ends a subscription that the server cancelled, or reports to its call that a request for input was cancelled.
    fn receive_cancelled(&self, id: &JsonRpcId) {
        let mut calls = self.0.lock();
        let has_room = |call: &&mut CallSender| call.queued_inputs < 2 * MAX_QUEUED_INPUT_REQUESTS;
        for call in calls.values_mut().filter(|call| call.has_input_requests).filter(has_room) {
            call.send_input(ResponseMessage::InputCancelled(id.clone()));
        }
        let listen = id.number().filter(|id| calls.get(id).is_some_and(|call| call.kind == CallKind::Listen));
        drop(calls);
        let message = "the server ended the subscription";
        let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
        self.complete(listen, Err(error));
    }

    /// Sends a request for input to a call. Returns it if there is no call, or if the call has too many of them.
    fn send_input_request(
        &self,
        call: Option<u64>,
        id: JsonRpcId,
        request: InputRequest,
    ) -> Option<(JsonRpcId, InputRequest)> {
        let mut calls = self.0.lock();
        match call.and_then(|call| calls.get_mut(&call)) {
            Some(call) if call.queued_inputs < MAX_QUEUED_INPUT_REQUESTS => {
                call.has_input_requests = true;
                call.send_input(ResponseMessage::InputRequest(id, request));
                None
            }
            _ => Some((id, request)),
        }
    }

    /// Returns the id of the call of these kinds if there is exactly one.
    fn only_call(&self, is_counted: impl Fn(CallKind) -> bool) -> Option<u64> {
        let calls = self.0.lock();
        let mut ids = calls.iter().filter(|(_, call)| is_counted(call.kind)).map(|(id, _)| *id);
        ids.next().filter(|_| ids.next().is_none())
    }
}

impl CallSender {
    /// Sends an event that is not the last.
    fn send_input(&mut self, message: ResponseMessage) {
        self.queued_inputs += 1;
        let (sender, next) = oneshot::channel();
        let previous = std::mem::replace(&mut self.events, sender);
        // The call may have been dropped.
        let _ = previous.send(CallEvent::Input(message, next));
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
            event = &mut self.events => match event {
                Ok(CallEvent::Response(response)) => response.map(ResponseMessage::Response),
                Ok(CallEvent::Input(message, next)) => {
                    self.events = next;
                    if let Some(call) = self.calls.0.lock().get_mut(&self.id) {
                        call.queued_inputs = call.queued_inputs.saturating_sub(1);
                    }
                    Ok(message)
                }
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
