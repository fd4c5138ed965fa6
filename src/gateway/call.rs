//! A request that one server answers: from the agent to the server and back, as raw JSON. The hot path.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Response, StatusCode};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument;

use super::Gateway;
use super::body::{self, KEEP_ALIVE_COMMENT, ResponseBody, sse_event};
use super::coarse_timer::CoarseTimer;
use super::deadline::CallDeadline;
use super::era::first_modern_version;
use super::metrics::CallTimer;
use super::outcome::CallOutcome;
use super::response::{self, RouteError};
use super::route_target::RouteTarget;
use super::routed_method::RoutedMethod;
use super::session::InFlightRequest;
use super::trace::CallSpan;
use crate::upstream::{CallGuard, Responder, UpstreamHandle, ViewName};
use crate::wire::{
    ConnectionError, Era, FailureSource, JsonRpcId, LogLevel, RequestParams, ResponseMessage, RpcResponse,
    UpstreamExchange, UpstreamRequest, notification_level,
};

/// A response that is not there by then becomes a stream, and a quiet stream says that it is alive.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// So many calls may go on without their agents.
const MAX_DETACHED_CALLS: usize = 4_096;

/// A request as its agent made it, and how the answer is to look.
pub(super) struct CallRequest<'a> {
    pub(super) id: JsonRpcId,
    pub(super) era: Era,
    pub(super) view: &'a ViewName,
    /// Among the session's requests in flight; a modern agent has no session.
    pub(super) in_flight: Option<InFlightRequest>,
    /// False if the agent takes nothing but JSON.
    pub(super) accepts_stream: bool,
    /// From which level on the agent wants log messages with its answer; what `None` means its era says.
    pub(super) log_level: Option<LogLevel>,
}

/// Carries out a request.
pub(super) async fn call(
    gateway: &Arc<Gateway>,
    request: CallRequest<'_>,
    ask: RoutedMethod,
    params: &RequestParams<'_>,
) -> Response<ResponseBody> {
    let found = match resolve_target(gateway, request.view, ask, params) {
        Err(RouteError::Unknown(_)) => wait_for_target(gateway, request.view, ask, params).await,
        found => found,
    };
    let aim = match found {
        Ok(aim) => aim,
        Err(miss) => {
            let (status, message) = response::route_error_response(&request.id, &miss, ask, request.era);
            return body::json(status, message);
        }
    };
    let name = aim.upstream_name().unwrap_or_default();
    let at_once = match &aim.section().responder {
        Responder::Server(handle) => Err(handle.clone()),
        Responder::Local(local) => Ok(local.respond(ask.as_str(), name, &params.members)),
    };
    let handle = match at_once {
        Err(handle) => handle,
        Ok(reply) => {
            let (status, message) = response::server_response(&request.id, &reply, ask, request.era);
            return body::json(status, message);
        }
    };
    let mut in_flight = request.in_flight;
    let deadline = CallDeadline::new(Instant::now(), aim.section().call_timeout);
    let version = in_flight.as_ref().map_or(first_modern_version(), InFlightRequest::protocol_version);
    let traced = CallSpan { method: ask, protocol_version: version, params };
    let measured = gateway.metrics.start_timer(&aim.section().key, &traced);
    let mut answer = PendingResponse {
        id: request.id,
        era: request.era,
        log_level: request.log_level,
        target: aim,
        timer: measured,
    };
    let patience = Instant::now() + QUIET_INTERVAL;
    let mut again = false;
    loop {
        let begun = tokio::select! {
            biased;
            () = wait_for_cancel(&mut in_flight) => Err(CallEnd::Cancelled),
            begun = dispatch(gateway, request.view, &answer, &handle, deadline, params)
                .instrument(answer.timer.tracing_span()) => begun,
        };
        let (exchange, guard) = match begun {
            Ok(begun) => begun,
            Err(ended) => return answer.into_response(&ended),
        };
        let call = DispatchedCall { response: answer, in_flight, deadline, exchange, _guard: guard };
        let mut attended = AttendedCall { gateway: gateway.clone(), call: Some(call) };
        match attended.start_response(patience, request.accepts_stream).await {
            ResponseStart::Stream(notice) => return stream_response(attended, notice),
            ResponseStart::Ended(ended) => {
                let Some(call) = attended.call.take() else { return empty_stream() };
                // The server did not take it, since it no longer knows the session: it takes it in the next one.
                if again || !ended.is_session_lost() {
                    return call.response.into_response(&ended);
                }
                again = true;
                (answer, in_flight) = (call.response, call.in_flight);
            }
            ResponseStart::AlreadyEnded => return empty_stream(),
        }
    }
}

fn resolve_target(
    gateway: &Gateway,
    view: &ViewName,
    ask: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    RouteTarget::resolve(gateway.catalog.load().view(view), ask, &params.members)
}

/// Waits for what is not there while servers are connected for the first time: an agent whose session is older
/// than this process may call before its server is back.
async fn wait_for_target(
    gateway: &Gateway,
    view: &ViewName,
    ask: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    let (mut changes, mut settled) = (gateway.catalog.changes(), gateway.catalog.settled());
    let wait = async {
        loop {
            // Looked at before the name: what the start brought is there by then.
            let over = *settled.borrow_and_update();
            let found = resolve_target(gateway, view, ask, params);
            if over || !matches!(found, Err(RouteError::Unknown(_))) {
                return found;
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = settled.changed() => {}
            }
        }
    };
    // Whatever is there by then is what there is.
    tokio::time::timeout(QUIET_INTERVAL, wait)
        .await
        .unwrap_or_else(|_| resolve_target(gateway, view, ask, params))
}

/// The rest of a call that takes longer or says something before its answer.
fn stream_response(attended: AttendedCall, first: Option<Bytes>) -> Response<ResponseBody> {
    body::event_stream(unfold((Box::new(attended), first), async |(mut attended, first)| {
        if let Some(first) = first {
            return Some((first, (attended, None)));
        }
        let bytes = match attended.next(Instant::now() + QUIET_INTERVAL).await {
            CallEvent::Notification(notice) => sse_event(&notice),
            CallEvent::Quiet => KEEP_ALIVE_COMMENT,
            CallEvent::AlreadyEnded => return None,
            CallEvent::Ended(ended) => match attended.call.take() {
                Some(call) if !matches!(ended, CallEnd::Cancelled) => {
                    sse_event(&call.response.into_message(&ended).1)
                }
                _ => return None,
            },
        };
        Some((bytes, (attended, None)))
    }))
}

/// A call that its server has. Dropped before its end, it is cancelled there.
struct DispatchedCall {
    response: PendingResponse,
    in_flight: Option<InFlightRequest>,
    deadline: CallDeadline,
    exchange: UpstreamExchange,
    /// The connection stays open while this is held.
    _guard: CallGuard,
}

/// A call whose agent is there.
///
/// A modern agent that goes away has cancelled its call. A legacy one has not: its call goes on alone, since
/// its server still works, and the agent may still cancel it.
struct AttendedCall {
    gateway: Arc<Gateway>,
    call: Option<DispatchedCall>,
}

enum CallEvent {
    Notification(Bytes),
    /// Nothing came in time.
    Quiet,
    /// The call is to be taken out.
    Ended(CallEnd),
    /// It ended before.
    AlreadyEnded,
}

/// How a response begins.
enum ResponseStart {
    /// As a stream, with this event if it is not empty.
    Stream(Option<Bytes>),
    Ended(CallEnd),
    AlreadyEnded,
}

/// Sends the request once its server has a connection. After a wait it is sent only if it still leads to what the agent
/// saw.
async fn dispatch(
    gateway: &Gateway,
    view: &ViewName,
    answer: &PendingResponse,
    handle: &UpstreamHandle,
    deadline: CallDeadline,
    params: &RequestParams<'_>,
) -> Result<(UpstreamExchange, CallGuard), CallEnd> {
    let (aim, section) = (&answer.target, answer.target.section());
    let refused = |refusal| CallEnd::Refused(response::refusal_text(&section.key, &refusal));
    let guard = handle.begin_call().await.map_err(refused)?;
    if guard.waited() {
        let same = match (resolve_target(gateway, view, aim.method, params), aim.listed_item()) {
            (Err(RouteError::InvalidParams(why)), _) => return Err(CallEnd::Refused(why.to_owned())),
            (Err(RouteError::Unknown(text) | RouteError::Removed(text)), _) => {
                return Err(CallEnd::Refused(text));
            }
            (Ok(_), Some((list, item))) => handle.lists_item(list, item),
            (Ok(_), None) => true,
        };
        if let (false, Some((list, item))) = (same, aim.listed_item()) {
            return Err(CallEnd::Refused(response::changed_item_text(&section.key, list, item.name())));
        }
    }
    let request = UpstreamRequest {
        method: aim.method.as_str(),
        params,
        edits: &[aim.params_edit()],
        name: aim.upstream_name(),
        log_level: answer.log_level,
    };
    match tokio::time::timeout_at(deadline.expires_at(), guard.connection().call(request)).await {
        Ok(Ok(exchange)) => Ok((exchange, guard)),
        Ok(Err(error)) => Err(CallEnd::Failed(error)),
        Err(_) => Err(CallEnd::TimedOut(deadline.timeout_reason())),
    }
}

impl DispatchedCall {
    /// What comes next, or nothing if nothing came until `patience`; an error is the end. Cancel safe.
    async fn next(&mut self, pulse: &CoarseTimer, patience: Instant) -> Result<Option<Bytes>, CallEnd> {
        let context = self.response.timer.tracing_span();
        self.next_notification(pulse, patience).instrument(context).await
    }

    async fn next_notification(
        &mut self,
        pulse: &CoarseTimer,
        patience: Instant,
    ) -> Result<Option<Bytes>, CallEnd> {
        loop {
            let until = self.deadline.expires_at();
            tokio::select! {
                biased;
                incoming = self.exchange.next() => match incoming {
                    Ok(ResponseMessage::Notification(notice)) if self.response.accepts_notification(&notice) => return Ok(Some(notice)),
                    Ok(ResponseMessage::Notification(_)) => {}
                    Ok(ResponseMessage::Progress(notice)) => {
                        self.deadline.record_progress(Instant::now());
                        return Ok(Some(notice));
                    }
                    Ok(ResponseMessage::Response(reply)) => return Err(CallEnd::Response(reply)),
                    Err(error) => return Err(CallEnd::Failed(error)),
                },
                () = wait_for_cancel(&mut self.in_flight) => return Err(CallEnd::Cancelled),
                () = pulse.sleep_until(patience.min(until)) => return if patience < until {
                    Ok(None)
                } else {
                    Err(CallEnd::TimedOut(self.deadline.timeout_reason()))
                },
            }
        }
    }

    /// The rest of a call whose agent went away.
    async fn run_detached(mut self, gateway: Arc<Gateway>) {
        loop {
            tokio::select! {
                next = self.next(&gateway.coarse_timer, self.deadline.expires_at()) => if let Err(ended) = next {
                    return self.response.timer.end(ended.outcome(), ended.response());
                },
                () = gateway.stop.cancelled() => return self.exchange.abandon(),
            }
        }
    }
}

impl AttendedCall {
    async fn next(&mut self, patience: Instant) -> CallEvent {
        let Some(call) = &mut self.call else {
            return CallEvent::AlreadyEnded;
        };
        match call.next(&self.gateway.coarse_timer, patience).await {
            Ok(Some(notice)) => CallEvent::Notification(notice),
            Ok(None) => CallEvent::Quiet,
            Err(ended) => CallEvent::Ended(ended),
        }
    }

    /// Waits for the answer, or, with `streams`, for whatever makes the response a stream.
    async fn start_response(&mut self, patience: Instant, streams: bool) -> ResponseStart {
        loop {
            match self.next(patience).await {
                CallEvent::Notification(notice) if streams => {
                    return ResponseStart::Stream(Some(sse_event(&notice)));
                }
                CallEvent::Quiet if streams => return ResponseStart::Stream(None),
                CallEvent::Notification(_) | CallEvent::Quiet => {}
                CallEvent::Ended(ended) => return ResponseStart::Ended(ended),
                CallEvent::AlreadyEnded => return ResponseStart::AlreadyEnded,
            }
        }
    }
}

impl Drop for AttendedCall {
    fn drop(&mut self) {
        if let Some(call) = self.call.take()
            && call.response.era == Era::Legacy
            && self.gateway.detached_calls.len() < MAX_DETACHED_CALLS
            && let Ok(runtime) = Handle::try_current()
        {
            self.gateway.detached_calls.spawn_on(call.run_detached(self.gateway.clone()), &runtime);
        }
    }
}

/// How a call ended.
enum CallEnd {
    Response(RpcResponse),
    Refused(String),
    Failed(ConnectionError),
    /// With what was missed.
    TimedOut(String),
    Cancelled,
}

impl CallEnd {
    fn is_session_lost(&self) -> bool {
        matches!(self, Self::Failed(error) if error.failure_source == FailureSource::Session)
    }

    fn outcome(&self) -> CallOutcome {
        match self {
            Self::Response(RpcResponse::Result(_)) => CallOutcome::Ok,
            Self::Response(RpcResponse::Error(_)) => CallOutcome::Error,
            Self::Refused(_) => CallOutcome::Refused,
            Self::Failed(_) => CallOutcome::Failed,
            Self::TimedOut(_) => CallOutcome::Timeout,
            Self::Cancelled => CallOutcome::Cancelled,
        }
    }

    fn response(&self) -> Option<&RpcResponse> {
        match self {
            Self::Response(reply) => Some(reply),
            _ => None,
        }
    }
}

/// What an answer is made from.
struct PendingResponse {
    id: JsonRpcId,
    era: Era,
    log_level: Option<LogLevel>,
    target: RouteTarget,
    timer: CallTimer,
}

impl PendingResponse {
    /// True if the agent wants this notice: log messages are for those who asked for their level. A legacy
    /// agent that never did gets what its server sends, a modern one nothing.
    fn accepts_notification(&self, notice: &[u8]) -> bool {
        match (notification_level(notice), self.log_level, self.era) {
            (None, ..) | (Some(_), None, Era::Legacy) => true,
            (Some(_), None, Era::Modern) => false,
            (Some(level), Some(wanted), _) => level >= wanted,
        }
    }

    fn into_response(self, ended: &CallEnd) -> Response<ResponseBody> {
        if matches!(ended, CallEnd::Cancelled) {
            return empty_stream();
        }
        let (status, message) = self.into_message(ended);
        body::json(status, message)
    }

    /// The whole message and its HTTP status.
    fn into_message(self, ended: &CallEnd) -> (StatusCode, Bytes) {
        self.timer.end(ended.outcome(), ended.response());
        let (ask, section) = (self.target.method, self.target.section());
        let text = match ended {
            CallEnd::Response(reply) => return response::server_response(&self.id, reply, ask, self.era),
            CallEnd::Refused(text) => text.clone(),
            CallEnd::Failed(error) => response::connection_failure_text(&section.key, error),
            CallEnd::TimedOut(missed) => response::timeout_text(&section.key, missed),
            CallEnd::Cancelled => String::from("The call was cancelled."),
        };
        (StatusCode::OK, response::failure_message(&self.id, &text, ask, self.era))
    }
}

async fn wait_for_cancel(in_flight: &mut Option<InFlightRequest>) {
    match in_flight {
        Some(in_flight) => in_flight.cancelled().await,
        None => std::future::pending().await,
    }
}

/// The response to a cancelled request: a stream in which no answer comes.
fn empty_stream() -> Response<ResponseBody> {
    body::event_stream(futures_util::stream::empty())
}
