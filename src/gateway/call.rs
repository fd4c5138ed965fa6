//! Forwards a request to one server and its response back to the agent, as raw JSON. The hot path.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument;

use super::Gateway;
use super::body::{self, KEEP_ALIVE_COMMENT, ResponseBody, sse_event};
use super::coarse_timer::CoarseTimer;
use super::deadline::CallDeadline;
use super::in_flight::InFlightRequest;
use super::metrics::CallTimer;
use super::outcome::CallOutcome;
use super::response::{self, RouteError};
use super::route_target::RouteTarget;
use super::routed_method::RoutedMethod;
use super::trace::CallSpan;
use super::unknown_item::unknown_item_list;
use crate::upstream::{CallGuard, Responder, UpstreamHandle, ViewName};
use crate::wire::{
    ConnectionError, Era, FailureSource, JsonRpcId, LogLevel, RequestParams, ResponseMessage, RpcResponse,
    UpstreamExchange, UpstreamRequest, notification_level,
};

/// The time without a message after which a pending response becomes an event stream, and after which a stream sends
/// a keep-alive comment.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum time for which a call waits for an unknown item during startup.
const TARGET_TIMEOUT: Duration = QUIET_INTERVAL;
/// The maximum number of calls that continue after their agents have disconnected.
const MAX_DETACHED_CALLS: usize = 4_096;

/// A request of an agent, and the properties that the response depends on.
pub(super) struct CallRequest<'a> {
    pub(super) id: JsonRpcId,
    pub(super) era: Era,
    /// The protocol version of the agent.
    pub(super) protocol_version: &'a str,
    pub(super) view: &'a ViewName,
    pub(super) headers: &'a HeaderMap,
    /// The entry among the session's requests in flight; `None` for a modern agent, which has no session.
    pub(super) in_flight: Option<InFlightRequest>,
    /// False if the agent accepts only JSON.
    pub(super) accepts_stream: bool,
    /// The minimum level of log messages before the response. The meaning of `None` depends on the era.
    pub(super) log_level: Option<LogLevel>,
}

/// Forwards a request and returns its response.
pub(super) async fn call(
    gateway: &Arc<Gateway>,
    request: CallRequest<'_>,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Response<ResponseBody> {
    let mut in_flight = request.in_flight;
    let found = match resolve_target(gateway, request.view, method, params) {
        Err(RouteError::Unknown(..)) => tokio::select! {
            biased;
            () = wait_for_cancel(&mut in_flight) => return empty_stream(),
            found = wait_for_target(gateway, request.view, method, params) => found,
        },
        found => found,
    };
    let target = match found {
        Ok(target) => target,
        Err(route_error) => {
            let (status, message) =
                response::route_error_response(&request.id, &route_error, method, request.era);
            return body::json(status, message);
        }
    };
    if request.era == Era::Modern
        && let Err(error) = target.check_param_headers(request.headers, &params.members)
    {
        return body::json(error.status, error.to_message(Some(&request.id)));
    }
    let name = target.upstream_name().unwrap_or_default();
    let local_response = match &target.section().responder {
        Responder::Server(handle) => Err(handle.clone()),
        Responder::Local(local) => Ok(local.respond(method.as_str(), name, &params.members)),
    };
    let handle = match local_response {
        Err(handle) => handle,
        Ok(response) => {
            let (status, message) = response::server_response(&request.id, &response, &target, request.era);
            return body::json(status, message);
        }
    };
    let deadline = CallDeadline::new(Instant::now(), target.section().call_timeout);
    let span = CallSpan { method, protocol_version: request.protocol_version, params };
    let timer = gateway.metrics.start_timer(&target.section().key, &span);
    let mut pending =
        PendingResponse { id: request.id, era: request.era, log_level: request.log_level, target, timer };
    let quiet_until = Instant::now() + QUIET_INTERVAL;
    let mut resent = false;
    loop {
        let dispatched = tokio::select! {
            biased;
            () = wait_for_cancel(&mut in_flight) => Err(CallEnd::Cancelled),
            dispatched = dispatch(gateway, request.view, &pending, &handle, deadline, params)
                .instrument(pending.timer.tracing_span()) => dispatched,
        };
        let (exchange, guard) = match dispatched {
            Ok(dispatched) => dispatched,
            Err(end) => return pending.into_response(&end),
        };
        let call = DispatchedCall { response: pending, in_flight, deadline, exchange, _guard: guard };
        let mut attended = AttendedCall { gateway: gateway.clone(), call: Some(call) };
        match attended.start_response(quiet_until, request.accepts_stream).await {
            ResponseStart::Stream(first_event) => return stream_response(attended, first_event),
            ResponseStart::Ended(end) => {
                let Some(call) = attended.call.take() else { return empty_stream() };
                // The server rejected the call because its session is lost: it is sent once more, in the next session.
                if resent || !end.is_rejected_by_lost_session() {
                    return call.response.into_response(&end);
                }
                resent = true;
                (pending, in_flight) = (call.response, call.in_flight);
            }
            ResponseStart::AlreadyEnded => return empty_stream(),
        }
    }
}

fn resolve_target(
    gateway: &Gateway,
    view: &ViewName,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    RouteTarget::resolve(gateway.catalog.load().view(view), method, &params.members)
}

/// Waits for an unknown item while an initial server that can have an item with its name is connecting: an agent whose
/// session is older than this process may call before its server is attached again.
async fn wait_for_target(
    gateway: &Gateway,
    view: &ViewName,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    let (mut changes, mut settled) = (gateway.catalog.changes(), gateway.catalog.settled());
    let wait = async {
        loop {
            // Read before the name is resolved: once this is true, all items of the initial servers are published.
            let is_settled = *settled.borrow_and_update();
            {
                let generation = gateway.catalog.load();
                let target = RouteTarget::resolve(generation.view(view), method, &params.members);
                let may_appear = match &target {
                    Err(RouteError::Unknown(list, name)) => generation.may_appear(view, *list, name),
                    _ => false,
                };
                if is_settled || !may_appear {
                    return target;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = settled.changed() => {}
            }
        }
    };
    // After the timeout the current catalog decides.
    tokio::time::timeout(TARGET_TIMEOUT, wait)
        .await
        .unwrap_or_else(|_| resolve_target(gateway, view, method, params))
}

/// Streams the rest of a call that takes longer, or whose server sends notifications before the response.
fn stream_response(attended: AttendedCall, first: Option<Bytes>) -> Response<ResponseBody> {
    body::event_stream(unfold((Box::new(attended), first), async |(mut attended, first)| {
        if let Some(first) = first {
            return Some((first, (attended, None)));
        }
        let bytes = match attended.next(Instant::now() + QUIET_INTERVAL).await {
            CallEvent::Notification(notification) => sse_event(&notification),
            CallEvent::Quiet => KEEP_ALIVE_COMMENT,
            CallEvent::AlreadyEnded => return None,
            CallEvent::Ended(end) => match attended.call.take() {
                Some(call) if !matches!(end, CallEnd::Cancelled) => {
                    sse_event(&call.response.into_message(&end).1)
                }
                _ => return None,
            },
        };
        Some((bytes, (attended, None)))
    }))
}

/// A call that was sent to its server. If it is dropped before it ends, it is cancelled at the server.
struct DispatchedCall {
    response: PendingResponse,
    in_flight: Option<InFlightRequest>,
    deadline: CallDeadline,
    exchange: UpstreamExchange,
    /// Keeps the connection open.
    _guard: CallGuard,
}

/// A call whose agent is connected.
///
/// The disconnect of a modern agent cancels its call. The disconnect of a legacy agent does not: its call continues
/// detached, since the server still works on it and the agent may still cancel it.
struct AttendedCall {
    gateway: Arc<Gateway>,
    call: Option<DispatchedCall>,
}

enum CallEvent {
    Notification(Bytes),
    /// No message arrived in time.
    Quiet,
    /// The call has ended. It is still held by the [`AttendedCall`].
    Ended(CallEnd),
    /// The call had ended before.
    AlreadyEnded,
}

/// The start of a response.
enum ResponseStart {
    /// An event stream, with this first event if there is one.
    Stream(Option<Bytes>),
    Ended(CallEnd),
    AlreadyEnded,
}

/// Sends the request once its server has a connection. After a wait it is sent only if its name still resolves to the
/// item that was exposed to the agent.
async fn dispatch(
    gateway: &Gateway,
    view: &ViewName,
    pending: &PendingResponse,
    handle: &UpstreamHandle,
    deadline: CallDeadline,
    params: &RequestParams<'_>,
) -> Result<(UpstreamExchange, CallGuard), CallEnd> {
    let (target, section) = (&pending.target, pending.target.section());
    let refused = |refusal| CallEnd::Refused(response::refusal_text(&section.key, &refusal));
    let guard = handle.begin_call().await.map_err(refused)?;
    if guard.waited() {
        let is_unchanged = match (resolve_target(gateway, view, target.method, params), target.listed_item())
        {
            (Err(route_error), _) => return Err(CallEnd::Refused(route_error.text())),
            (Ok(_), Some((list, item))) => handle.lists_item(list, item),
            (Ok(_), None) => true,
        };
        if let (false, Some((list, item))) = (is_unchanged, target.listed_item()) {
            return Err(CallEnd::Refused(response::changed_item_text(&section.key, list, item.name())));
        }
    }
    let request = UpstreamRequest {
        method: target.method.as_str(),
        params,
        edits: &[target.params_edit()],
        name: target.upstream_name(),
        log_level: pending.log_level,
    };
    match tokio::time::timeout_at(deadline.expires_at(), guard.connection().call(request)).await {
        Ok(Ok(exchange)) => Ok((exchange, guard)),
        Ok(Err(error)) => Err(CallEnd::Failed(error)),
        Err(_) => Err(CallEnd::TimedOut(deadline.timeout_reason())),
    }
}

impl DispatchedCall {
    /// Returns the next notification, or `None` at `quiet_until`. An error is the end of the call. Cancel safe.
    async fn next(&mut self, timer: &CoarseTimer, quiet_until: Instant) -> Result<Option<Bytes>, CallEnd> {
        let span = self.response.timer.tracing_span();
        self.next_notification(timer, quiet_until).instrument(span).await
    }

    async fn next_notification(
        &mut self,
        timer: &CoarseTimer,
        quiet_until: Instant,
    ) -> Result<Option<Bytes>, CallEnd> {
        loop {
            let expires_at = self.deadline.expires_at();
            tokio::select! {
                biased;
                message = self.exchange.next() => match message {
                    Ok(ResponseMessage::Notification(notification))
                        if self.response.accepts_notification(&notification) =>
                    {
                        return Ok(Some(notification));
                    }
                    Ok(ResponseMessage::Notification(_)) => {}
                    Ok(ResponseMessage::Progress(notification)) => {
                        self.deadline.record_progress(Instant::now());
                        return Ok(Some(notification));
                    }
                    Ok(ResponseMessage::Response(response)) => {
                        return Err(response.require_object().map_or_else(CallEnd::Failed, CallEnd::Response));
                    }
                    Err(error) => return Err(CallEnd::Failed(error)),
                },
                () = wait_for_cancel(&mut self.in_flight) => return Err(CallEnd::Cancelled),
                () = timer.sleep_until(quiet_until.min(expires_at)) => return if quiet_until < expires_at {
                    Ok(None)
                } else {
                    Err(CallEnd::TimedOut(self.deadline.timeout_reason()))
                },
            }
        }
    }

    /// Runs a call to its end after its agent has disconnected.
    async fn run_detached(mut self, gateway: Arc<Gateway>) {
        loop {
            tokio::select! {
                next = self.next(&gateway.coarse_timer, self.deadline.expires_at()) => if let Err(end) = next {
                    self.response.report_unknown_item(&end);
                    return self.response.timer.end(end.outcome(), end.response());
                },
                () = gateway.stop.cancelled() => return self.exchange.abandon(),
            }
        }
    }
}

impl AttendedCall {
    async fn next(&mut self, quiet_until: Instant) -> CallEvent {
        let Some(call) = &mut self.call else {
            return CallEvent::AlreadyEnded;
        };
        match call.next(&self.gateway.coarse_timer, quiet_until).await {
            Ok(Some(notification)) => CallEvent::Notification(notification),
            Ok(None) => CallEvent::Quiet,
            Err(end) => CallEvent::Ended(end),
        }
    }

    /// Waits for the response or, if `accepts_stream`, for the first event that turns the response into a stream.
    async fn start_response(&mut self, quiet_until: Instant, accepts_stream: bool) -> ResponseStart {
        loop {
            match self.next(quiet_until).await {
                CallEvent::Notification(notification) if accepts_stream => {
                    return ResponseStart::Stream(Some(sse_event(&notification)));
                }
                CallEvent::Quiet if accepts_stream => return ResponseStart::Stream(None),
                CallEvent::Notification(_) | CallEvent::Quiet => {}
                CallEvent::Ended(end) => return ResponseStart::Ended(end),
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
            if let Some(in_flight) = &call.in_flight {
                in_flight.mark_detached();
            }
            self.gateway.detached_calls.spawn_on(call.run_detached(self.gateway.clone()), &runtime);
        }
    }
}

/// The end of a call.
enum CallEnd {
    Response(RpcResponse),
    Refused(String),
    Failed(ConnectionError),
    /// With the description of the exceeded limit.
    TimedOut(String),
    Cancelled,
}

impl CallEnd {
    /// True if the server rejected the call because its session is lost. A call that it may have processed does not
    /// count, although its session was lost meanwhile.
    fn is_rejected_by_lost_session(&self) -> bool {
        matches!(self, Self::Failed(error) if error.failure_source == FailureSource::Session && !error.dispatched)
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
            Self::Response(response) => Some(response),
            _ => None,
        }
    }
}

/// The data from which the response to the agent is built.
struct PendingResponse {
    id: JsonRpcId,
    era: Era,
    log_level: Option<LogLevel>,
    target: RouteTarget,
    timer: CallTimer,
}

impl PendingResponse {
    /// True if this notification is forwarded to the agent. Log messages are filtered by the requested level. Without
    /// one, a legacy agent receives all that its server sends and a modern agent none.
    fn accepts_notification(&self, notification: &[u8]) -> bool {
        match (notification_level(notification), self.log_level, self.era) {
            (None, ..) | (Some(_), None, Era::Legacy) => true,
            (Some(_), None, Era::Modern) => false,
            (Some(level), Some(minimum), _) => level >= minimum,
        }
    }

    fn into_response(self, end: &CallEnd) -> Response<ResponseBody> {
        if matches!(end, CallEnd::Cancelled) {
            return empty_stream();
        }
        let (status, message) = self.into_message(end);
        body::json(status, message)
    }

    /// Returns the HTTP status and the whole JSON-RPC message.
    fn into_message(self, end: &CallEnd) -> (StatusCode, Bytes) {
        self.report_unknown_item(end);
        self.timer.end(end.outcome(), end.response());
        let (method, section) = (self.target.method, self.target.section());
        let text = match end {
            CallEnd::Response(response) => {
                return response::server_response(&self.id, response, &self.target, self.era);
            }
            CallEnd::Refused(text) => text.clone(),
            CallEnd::Failed(error) => response::connection_failure_text(&section.key, error),
            CallEnd::TimedOut(reason) => response::timeout_text(&section.key, reason),
            CallEnd::Cancelled => String::from("The call was cancelled."),
        };
        (StatusCode::OK, response::failure_message(&self.id, &text, method, self.era))
    }

    /// Has the list checked if the server does not know the item that it had listed.
    fn report_unknown_item(&self, end: &CallEnd) {
        if let CallEnd::Response(response) = end
            && let Responder::Server(handle) = &self.target.section().responder
            && let Some(list) = unknown_item_list(&self.target, response)
        {
            handle.report_unknown_item(list);
        }
    }
}

async fn wait_for_cancel(in_flight: &mut Option<InFlightRequest>) {
    match in_flight {
        Some(in_flight) => in_flight.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Returns the response to a cancelled request: an event stream that ends without a message.
fn empty_stream() -> Response<ResponseBody> {
    body::event_stream(futures_util::stream::empty())
}
