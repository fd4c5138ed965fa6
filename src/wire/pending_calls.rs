//! The requests in flight on a connection whose messages all share one stream: stdio, and HTTP+SSE.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::connection_callers::ConnectionCallers;
use super::envelope::JsonRpcId;
use super::error::{ConnectionEnd, ConnectionError};
use super::input_request::{InputMethod, InputRequest};
use super::notifications::NotificationDispatcher;
use super::response::{RpcResponse, unreadable_response};
use super::response_message::ResponseMessage;
use super::server_message::ServerMessage;
use crate::resource::Reason;

/// The maximum number of queued notifications of one call. More are dropped: progress notifications are optional.
const MAX_QUEUED_NOTIFICATIONS: usize = 64;
/// The maximum number of queued requests of the server for input of one call. More are declined.
const MAX_QUEUED_INPUT_REQUESTS: usize = 64;

/// The maximum number of requests of the server for input that are held until the next call. More are declined.
const MAX_HELD_INPUT_REQUESTS: usize = 16;

/// The calls that wait for their responses, by request id. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct PendingCalls(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    by_id: HashMap<u64, CallSender>,
    /// The requests for roots that arrived without a call in flight, as servers send them after the handshake and after a
    /// change. The next call gets them. `None` on a connection of all callers.
    held_inputs: Option<Box<HeldInputs>>,
}

/// Boxed, because few connections have one.
#[derive(Debug, Default)]
struct HeldInputs(VecDeque<(JsonRpcId, InputRequest)>);

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
    /// Creates the calls of a connection with these callers.
    pub(super) fn new(callers: ConnectionCallers) -> Self {
        let held_inputs = (callers != ConnectionCallers::All).then(Box::default);
        Self(Arc::new(Mutex::new(Calls { by_id: HashMap::new(), held_inputs })))
    }

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
        let mut calls = self.0.lock();
        calls.by_id.insert(id, sender);
        if kind == CallKind::Agent {
            calls.release_held(id);
        }
        drop(calls);
        PendingCall { id, calls: self.clone(), events, notifications, end }
    }

    /// Ends a call, if it is in flight, with a response or an error.
    pub(super) fn complete(&self, id: Option<u64>, response: Result<RpcResponse, ConnectionError>) {
        let call = id.and_then(|id| self.0.lock().by_id.remove(&id));
        if let Some(call) = call {
            // The call may have been dropped.
            let _ = call.events.send(CallEvent::Response(response));
        }
    }

    /// Ends all calls with the error of the connection's end, which must be recorded before.
    pub(super) fn fail_all(&self) {
        let mut calls = self.0.lock();
        calls.by_id.clear();
        if let Some(held) = &mut calls.held_inputs {
            held.0.clear();
        }
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
                let sender = self.0.lock().by_id.get(&id).and_then(|call| call.notifications.clone());
                if let Some(sender) = sender {
                    let _ = sender.try_send(message);
                }
            }
            ServerMessage::Cancelled(id) => self.receive_cancelled(&id),
            ServerMessage::InputRequest(id, request) => {
                return self
                    .receive_input_request(id, request)
                    .map(|(id, request)| (message, ServerMessage::InputRequest(id, request)));
            }
            kind => return Some((message, kind)),
        }
        None
    }

    /// Ends a subscription that the server cancelled, or reports to its call that a request for input was cancelled.
    pub(super) fn receive_cancelled(&self, id: &JsonRpcId) {
        let mut calls = self.0.lock();
        if let Some(held) = &mut calls.held_inputs {
            held.0.retain(|(held_id, _)| held_id != id);
        }
        let has_room = |call: &&mut CallSender| call.queued_inputs < 2 * MAX_QUEUED_INPUT_REQUESTS;
        for call in calls.by_id.values_mut().filter(|call| call.has_input_requests).filter(has_room) {
            call.send_input(ResponseMessage::InputCancelled(id.clone()));
        }
        let listen =
            id.number().filter(|id| calls.by_id.get(id).is_some_and(|call| call.kind == CallKind::Listen));
        drop(calls);
        let message = "the server ended the subscription";
        let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
        self.complete(listen, Err(error));
    }

    /// Gives a request of the server for input to a call, or holds it for the next one. Returns it if no agent is
    /// responsible for it, or if there are too many.
    pub(super) fn receive_input_request(
        &self,
        id: JsonRpcId,
        request: InputRequest,
    ) -> Option<(JsonRpcId, InputRequest)> {
        let mut calls = self.0.lock();
        match calls.input_receiver() {
            Some(call) if call.queued_inputs < MAX_QUEUED_INPUT_REQUESTS => {
                call.has_input_requests = true;
                call.send_input(ResponseMessage::InputRequest(id, request));
                None
            }
            Some(_) => Some((id, request)),
            None => match &mut calls.held_inputs {
                Some(held)
                    if request.method == InputMethod::Roots && held.0.len() < MAX_HELD_INPUT_REQUESTS =>
                {
                    held.0.push_back((id, request));
                    None
                }
                _ => Some((id, request)),
            },
        }
    }

    /// Returns the id of the call of these kinds if there is exactly one.
    fn only_call(&self, is_counted: impl Fn(CallKind) -> bool) -> Option<u64> {
        let calls = self.0.lock();
        let mut ids = calls.by_id.iter().filter(|(_, call)| is_counted(call.kind)).map(|(id, _)| *id);
        ids.next().filter(|_| ids.next().is_none())
    }
}

impl Calls {
    /// Returns the call that gets the requests of the server for input. The protocol does not say which call such a
    /// request belongs to: among several callers it is unambiguous only with one call.
    fn input_receiver(&mut self) -> Option<&mut CallSender> {
        let is_of_one_caller = self.held_inputs.is_some();
        let of_agents = self.by_id.iter_mut().filter(|(_, call)| call.kind == CallKind::Agent);
        let mut of_agents = of_agents.map(|(id, call)| (*id, call));
        if is_of_one_caller {
            return of_agents.max_by_key(|(id, _)| *id).map(|(_, call)| call);
        }
        let (_, only) = of_agents.next()?;
        of_agents.next().is_none().then_some(only)
    }

    /// Gives the requests that were held to a call.
    fn release_held(&mut self, id: u64) {
        let held = self.held_inputs.as_mut().map(|held| std::mem::take(&mut held.0)).unwrap_or_default();
        let Some(call) = self.by_id.get_mut(&id).filter(|_| !held.is_empty()) else { return };
        call.has_input_requests = true;
        for (id, request) in held {
            call.send_input(ResponseMessage::InputRequest(id, request));
        }
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
                    if let Some(call) = self.calls.0.lock().by_id.get_mut(&self.id) {
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
        self.calls.0.lock().by_id.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::wire::ClientCapabilities;

    fn request(method: InputMethod) -> InputRequest {
        InputRequest::new(method, Bytes::new())
    }

    /// Receives a request with this number. Returns true if it is refused.
    fn is_refused(calls: &PendingCalls, number: u64, method: InputMethod) -> bool {
        calls.receive_input_request(JsonRpcId::from_number(number), request(method)).is_some()
    }

    fn next_input(call: &mut PendingCall) -> Option<JsonRpcId> {
        match call.next().now_or_never()?.unwrap() {
            ResponseMessage::InputRequest(id, _) | ResponseMessage::InputCancelled(id) => Some(id),
            _ => None,
        }
    }

    #[test]
    fn request_of_the_server_needs_an_unambiguous_call() {
        let one = ConnectionCallers::One(ClientCapabilities::NONE);
        // The number of calls in flight, and whether a request is refused on a connection of all callers and of one.
        for (callers, in_flight, roots_refused, others_refused) in [
            (ConnectionCallers::All, 0, true, true),
            (ConnectionCallers::All, 1, false, false),
            (ConnectionCallers::All, 2, true, true),
            (one, 0, false, true),
            (one, 1, false, false),
            (one, 2, false, false),
        ] {
            let calls = PendingCalls::new(callers);
            let add = |id| calls.add(id, CallKind::Agent, false, Arc::default());
            let _internal = calls.add(100, CallKind::Internal, false, Arc::default());
            let _in_flight: Vec<_> = (0..in_flight).map(add).collect();
            let refused =
                [InputMethod::Roots, InputMethod::Elicitation].map(|method| is_refused(&calls, 1, method));
            assert_eq!(refused, [roots_refused, others_refused], "{callers:?} {in_flight}");
        }
    }

    #[test]
    fn request_for_roots_is_held_until_the_next_call() {
        let calls = PendingCalls::new(ConnectionCallers::One(ClientCapabilities::ROOTS));
        for number in 1..=3 {
            assert!(!is_refused(&calls, number, InputMethod::Roots));
        }
        calls.receive_cancelled(&JsonRpcId::from_number(2));
        let mut call = calls.add(7, CallKind::Agent, false, Arc::default());
        let inputs = [next_input(&mut call), next_input(&mut call), next_input(&mut call)];
        assert_eq!(inputs, [Some(JsonRpcId::from_number(1)), Some(JsonRpcId::from_number(3)), None]);
        // The call is told that the server gave up.
        calls.receive_cancelled(&JsonRpcId::from_number(3));
        assert_eq!(next_input(&mut call), Some(JsonRpcId::from_number(3)));
        drop(call);
        for number in 0..MAX_HELD_INPUT_REQUESTS as u64 {
            assert!(!is_refused(&calls, number, InputMethod::Roots));
        }
        assert!(is_refused(&calls, 99, InputMethod::Roots), "the number is bounded");
    }
}
