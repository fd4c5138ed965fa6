//! A call whose agent is connected, and its response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::Response;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::Gateway;
use super::super::body::{self, KEEP_ALIVE_COMMENT, ResponseBody, empty_stream, sse_event};
use super::super::input::{StateContent, input_required_result, input_timeout};
use super::active::{ActiveCall, Stage};
use super::end::CallEnd;
use crate::wire::{Era, ServerInputRequest};

/// The time without a message after which a pending response becomes an event stream, and after which a stream sends
/// a keep-alive comment.
pub(super) const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of calls that continue after their agents have disconnected.
const MAX_DETACHED_CALLS: usize = 4_096;
/// The key of the request in a result that asks for input of a legacy server.
pub(super) const INPUT_KEY: &str = "input";

/// A call whose agent is connected.
///
/// The disconnect of a modern agent cancels its call. The disconnect of a legacy agent does not: its call continues
/// detached, since the server still works on it and the agent may still cancel it.
pub(super) struct AttendedCall {
    pub(super) gateway: Arc<Gateway>,
    pub(super) call: Option<ActiveCall>,
}

pub(super) enum CallEvent {
    /// A notification or a request for the agent.
    Message(Bytes),
    /// No message arrived in time.
    Quiet,
    /// The call has ended. It is still held by the [`AttendedCall`].
    Ended(CallEnd),
    /// The call had ended before.
    AlreadyEnded,
}

/// The start of a response.
pub(super) enum ResponseStart {
    /// An event stream, with this first event if there is one.
    Stream(Option<Bytes>),
    Ended(CallEnd),
    AlreadyEnded,
}

impl AttendedCall {
    async fn next(&mut self, quiet_until: Instant) -> CallEvent {
        loop {
            let Some(call) = &mut self.call else { return CallEvent::AlreadyEnded };
            return match call.next(&self.gateway, quiet_until).await {
                Ok(Some(message)) => CallEvent::Message(message),
                Ok(None) => CallEvent::Quiet,
                Err(CallEnd::Suspend(input)) => match self.suspend(*input) {
                    Some(end) => CallEvent::Ended(end),
                    // The request was declined, and the call goes on.
                    None => continue,
                },
                Err(end) => CallEvent::Ended(end),
            };
        }
    }

    /// Keeps the call open at its server, and asks the modern agent for input. Declines the request and returns `None` if
    /// too many calls are kept.
    fn suspend(&mut self, input: ServerInputRequest) -> Option<CallEnd> {
        let (gateway, call) = (&self.gateway, self.call.as_mut()?);
        let (agent, target) = (&call.response.agent, &call.response.target);
        let room = gateway.suspended_calls.check_room(agent.caller.as_ref(), &target.section().key);
        let reference = gateway.process.new_ref();
        let (number, content) = (reference.number, StateContent::Suspended(reference));
        let lifetime = input_timeout(input.request().method);
        let now = jiff::Timestamp::now();
        let state = gateway.request_states.seal(agent.binding(target), content, now, lifetime);
        let (Ok(()), Ok(state)) = (room, state) else {
            input.decline();
            return None;
        };
        let result = input_required_result(&[(INPUT_KEY, input.request())], &state);
        let caller = agent.caller.clone();
        let suspended = call.suspend(input)?;
        let (tasks, stop) = (&gateway.detached_calls, gateway.stop.clone());
        gateway.suspended_calls.suspend(number, caller, suspended, tasks, stop);
        Some(CallEnd::Suspended(result))
    }

    /// Waits for the response or, if `accepts_stream`, for the first event that turns the response into a stream.
    pub(super) async fn start_response(
        &mut self,
        quiet_until: Instant,
        accepts_stream: bool,
    ) -> ResponseStart {
        loop {
            match self.next(quiet_until).await {
                CallEvent::Message(message) if accepts_stream => {
                    return ResponseStart::Stream(Some(sse_event(&message)));
                }
                CallEvent::Quiet if accepts_stream => return ResponseStart::Stream(None),
                CallEvent::Message(_) | CallEvent::Quiet => {}
                CallEvent::Ended(end) => return ResponseStart::Ended(end),
                CallEvent::AlreadyEnded => return ResponseStart::AlreadyEnded,
            }
        }
    }

    /// Returns the response of a call that is not sent again.
    pub(super) async fn into_response(
        mut self,
        quiet_until: Instant,
        accepts_stream: bool,
    ) -> Response<ResponseBody> {
        match self.start_response(quiet_until, accepts_stream).await {
            ResponseStart::Stream(first_event) => self.into_stream(first_event),
            ResponseStart::Ended(end) => match self.call.take() {
                Some(call) => call.response.into_response(&self.gateway, &end),
                None => empty_stream(),
            },
            ResponseStart::AlreadyEnded => empty_stream(),
        }
    }

    /// Streams the rest of a call that takes longer, or that has messages for its agent before the response.
    pub(super) fn into_stream(self, first: Option<Bytes>) -> Response<ResponseBody> {
        body::event_stream(unfold((Box::new(self), first), async |(mut attended, first)| {
            if let Some(first) = first {
                return Some((first, (attended, None)));
            }
            let bytes = match attended.next(Instant::now() + QUIET_INTERVAL).await {
                CallEvent::Message(message) => sse_event(&message),
                CallEvent::Quiet => KEEP_ALIVE_COMMENT,
                CallEvent::AlreadyEnded => return None,
                CallEvent::Ended(end) => match attended.call.take() {
                    Some(call) if !matches!(end, CallEnd::Cancelled) => {
                        sse_event(&call.response.into_message(&attended.gateway, &end).1)
                    }
                    _ => return None,
                },
            };
            Some((bytes, (attended, None)))
        }))
    }
}

impl ActiveCall {
    /// Runs a call to its end after its agent has disconnected.
    async fn run_detached(mut self, gateway: Arc<Gateway>) {
        loop {
            let expires_at = self.deadline.expires_at();
            tokio::select! {
                next = self.next(&gateway, expires_at) => if let Err(end) = next {
                    self.response.end(&gateway, &end);
                    return;
                },
                () = gateway.stop.cancelled() => {
                    if let Stage::Dispatched(dispatched) = self.stage {
                        dispatched.exchange.abandon();
                    }
                    return;
                }
            }
        }
    }
}

impl Drop for AttendedCall {
    fn drop(&mut self) {
        if let Some(mut call) = self.call.take()
            && call.response.agent.era == Era::Legacy
            && self.gateway.detached_calls.len() < MAX_DETACHED_CALLS
            && let Ok(runtime) = Handle::try_current()
            && call.detach()
        {
            if let Some(in_flight) = &call.in_flight {
                in_flight.mark_detached();
            }
            self.gateway.detached_calls.spawn_on(call.run_detached(self.gateway.clone()), &runtime);
        }
    }
}
