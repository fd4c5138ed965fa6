use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limits::{MAX_OPEN_INPUTS, input_timeout};
use crate::gateway::deadline::CallDeadline;
use crate::gateway::route_target::RouteTarget;
use crate::resource::ObjectKey;
use crate::upstream::{CallGuard, CallerId};
use crate::wire::{ConnectionError, ResponseMessage, RpcResponse, ServerInputRequest, UpstreamExchange};

/// The maximum number of suspended calls of all callers that cannot be told apart.
const MAX_UNIDENTIFIED: usize = 256;
/// The maximum number of suspended calls of one caller that can be told apart from others.
const MAX_PER_CALLER: usize = 32;
/// The maximum number of suspended calls to one server.
const MAX_PER_SERVER: usize = 64;
/// The time for which the response of a suspended call is kept that has ended without the agent.
const RESPONSE_KEPT_FOR: Duration = Duration::from_mins(1);

/// The calls to legacy servers that stay open while their modern agents obtain input.
///
/// Promises that a call is given out once, that it is cancelled at its server when it expires, and that the calls of one
/// caller, and those to one server, are bounded.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct SuspendedCalls {
    calls: Arc<Mutex<HashMap<u64, Entry>>>,
    /// The number of calls, including those that are being resumed.
    gauge: Gauge,
}

#[derive(Debug)]
struct Entry {
    caller: Option<CallerId>,
    server: ObjectKey,
    /// Takes the call back from the task that holds it.
    resume: oneshot::Sender<oneshot::Sender<Box<SuspendedCall>>>,
}

/// A call that is open at its server, without a request of its agent.
#[derive(Debug)]
pub(in crate::gateway) struct SuspendedCall {
    pub(in crate::gateway) target: RouteTarget,
    pub(in crate::gateway) deadline: CallDeadline,
    pub(in crate::gateway) exchange: UpstreamExchange,
    /// Keeps the connection open; `None` once the call has ended.
    pub(in crate::gateway) guard: Option<CallGuard>,
    /// The request that the agent has to respond to; `None` once the server has cancelled it.
    pub(in crate::gateway) input: Option<ServerInputRequest>,
    /// Further requests of the server.
    pub(in crate::gateway) further_inputs: VecDeque<ServerInputRequest>,
    /// The end of the call, if it has ended meanwhile.
    pub(in crate::gateway) end: Option<Result<RpcResponse, ConnectionError>>,
}

/// The error if a caller, or a server, has too many suspended calls.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct TooManySuspended;

impl SuspendedCalls {
    pub(in crate::gateway) fn new(gauge: Gauge) -> Self {
        Self { calls: Arc::default(), gauge }
    }

    /// Checks that another call of this caller to this server may be suspended.
    pub(in crate::gateway) fn check_room(
        &self,
        caller: Option<&CallerId>,
        server: &ObjectKey,
    ) -> Result<(), TooManySuspended> {
        let calls = self.calls.lock();
        let of_caller = calls.values().filter(|entry| entry.caller.as_ref() == caller).count();
        let of_server = calls.values().filter(|entry| entry.server == *server).count();
        let max_of_caller = if caller.is_some() { MAX_PER_CALLER } else { MAX_UNIDENTIFIED };
        if of_caller < max_of_caller && of_server < MAX_PER_SERVER { Ok(()) } else { Err(TooManySuspended) }
    }

    /// Suspends a call, until it is resumed by its number, expires, or `stop` is cancelled.
    pub(in crate::gateway) fn suspend(
        &self,
        number: u64,
        caller: Option<CallerId>,
        call: SuspendedCall,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) {
        let (resume, resumed) = oneshot::channel();
        let server = call.target.section().key.clone();
        self.calls.lock().insert(number, Entry { caller, server, resume });
        self.gauge.inc();
        let this = self.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = Box::new(call).hold(resumed) => {}
                () = stop.cancelled() => {}
            }
            this.calls.lock().remove(&number);
            this.gauge.dec();
        });
    }

    /// Returns the call with this number; `None` if there is none any more.
    pub(in crate::gateway) async fn resume(&self, number: u64) -> Option<SuspendedCall> {
        let entry = self.calls.lock().remove(&number)?;
        let (sender, call) = oneshot::channel();
        entry.resume.send(sender).ok()?;
        call.await.ok().map(|call| *call)
    }
}

impl SuspendedCall {
    /// Reads the messages of the server until the call is resumed or expires.
    async fn hold(mut self: Box<Self>, mut resumed: oneshot::Receiver<oneshot::Sender<Box<Self>>>) {
        let timeout = self.input.as_ref().map(|input| input_timeout(input.request().method));
        let mut expires_at = Instant::now() + timeout.unwrap_or_default();
        loop {
            tokio::select! {
                biased;
                receiver = &mut resumed => {
                    if let Ok(receiver) = receiver {
                        // The agent may have disconnected.
                        let _ = receiver.send(self);
                    }
                    return;
                }
                message = self.exchange.next(), if self.end.is_none() => {
                    self.receive(message);
                    if self.end.is_some() {
                        expires_at = expires_at.min(Instant::now() + RESPONSE_KEPT_FOR);
                    }
                }
                () = sleep_until(expires_at) => return,
            }
        }
    }

    /// Handles a message of the server. Notifications have no receiver.
    fn receive(&mut self, message: Result<ResponseMessage, ConnectionError>) {
        let end = match message {
            Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_)) => return,
            Ok(ResponseMessage::InputRequest(id, request)) => {
                let input = self.exchange.input_request(id, request);
                if self.further_inputs.len() < MAX_OPEN_INPUTS {
                    self.further_inputs.push_back(input);
                } else {
                    input.decline();
                }
                return;
            }
            Ok(ResponseMessage::InputCancelled(id)) => {
                if let Some(input) = self.input.take_if(|input| *input.id() == id) {
                    input.forget();
                } else if let Some(index) = self.further_inputs.iter().position(|input| *input.id() == id)
                    && let Some(input) = self.further_inputs.remove(index)
                {
                    input.forget();
                }
                return;
            }
            Ok(ResponseMessage::Response(response)) => Ok(response),
            Err(error) => Err(error),
        };
        self.end = Some(end);
        self.guard = None;
        // The server waits for no response any more.
        self.input
            .take()
            .into_iter()
            .chain(self.further_inputs.drain(..))
            .for_each(ServerInputRequest::forget);
    }
}
