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
use super::answer::{self, RouteError};
use super::body::{self, KEEP_ALIVE, ResponseBody, event};
use super::coarse_timer::CoarseTimer;
use super::deadline::CallDeadline;
use super::era::modern;
use super::metrics::CallTimer;
use super::outcome::CallOutcome;
use super::route_target::RouteTarget;
use super::routed_method::RoutedMethod;
use super::session::InFlight;
use super::trace::CallSpan;
use crate::upstream::{CallGuard, Responder, UpstreamHandle, ViewName};
use crate::wire::{
    ConnectionError, Era, FailureSource, JsonRpcId, LogLevel, RequestParams, ResponseMessage, RpcResponse,
    UpstreamExchange, UpstreamRequest, level_of,
};

/// A response that is not there by then becomes a stream, and a quiet stream says that it is alive.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many calls may go on without their agents.
const ALONE: usize = 4_096;

/// A request as its agent made it, and how the answer is to look.
pub(super) struct CallRequest<'a> {
    pub(super) id: JsonRpcId,
    pub(super) era: Era,
    pub(super) view: &'a ViewName,
    /// Among the session's requests in flight; a modern agent has no session.
    pub(super) in_flight: Option<InFlight>,
    /// False if the agent takes nothing but JSON.
    pub(super) streams: bool,
    /// From which level on the agent wants log messages with its answer; what `None` means its era says.
    pub(super) level: Option<LogLevel>,
}

/// Carries out a request.
pub(super) async fn call(
    gateway: &Arc<Gateway>,
    request: CallRequest<'_>,
    ask: RoutedMethod,
    params: &RequestParams<'_>,
) -> Response<ResponseBody> {
    let found = match find(gateway, request.view, ask, params) {
        Err(RouteError::Unknown(_)) => appearance(gateway, request.view, ask, params).await,
        found => found,
    };
    let aim = match found {
        Ok(aim) => aim,
        Err(miss) => {
            let (status, message) = answer::missed(&request.id, &miss, ask, request.era);
            return body::json(status, message);
        }
    };
    let name = aim.name().unwrap_or_default();
    let at_once = match &aim.section().answered_by {
        Responder::Server(handle) => Err(handle.clone()),
        Responder::Evenkeel(local) => Ok(local.answer(ask.method(), name, &params.members)),
    };
    let handle = match at_once {
        Err(handle) => handle,
        Ok(reply) => {
            let (status, message) = answer::reply(&request.id, &reply, ask, request.era);
            return body::json(status, message);
        }
    };
    let mut in_flight = request.in_flight;
    let deadline = CallDeadline::new(Instant::now(), aim.section().call_timeout);
    let version = in_flight.as_ref().map_or(modern(), InFlight::version);
    let traced = CallSpan { ask, version, params };
    let measured = gateway.metrics.measure(&aim.section().key, &traced);
    let mut answer = Answer { id: request.id, era: request.era, level: request.level, aim, measured };
    let patience = Instant::now() + PATIENCE;
    let mut again = false;
    loop {
        let begun = tokio::select! {
            biased;
            () = cancelled(&mut in_flight) => Err(Ended::Cancelled),
            begun = begin(gateway, request.view, &answer, &handle, deadline, params)
                .instrument(answer.measured.context()) => begun,
        };
        let (exchange, guard) = match begun {
            Ok(begun) => begun,
            Err(ended) => return answer.respond(&ended),
        };
        let call = Call { answer, in_flight, deadline, exchange, _guard: guard };
        let mut attended = Attended { gateway: gateway.clone(), call: Some(call) };
        match attended.first(patience, request.streams).await {
            First::Stream(notice) => return stream(attended, notice),
            First::Ended(ended) => {
                let Some(call) = attended.call.take() else { return nothing() };
                // The server did not take it, since it no longer knows the session: it takes it in the next one.
                if again || !ended.is_of_a_forgotten_session() {
                    return call.answer.respond(&ended);
                }
                again = true;
                (answer, in_flight) = (call.answer, call.in_flight);
            }
            First::Over => return nothing(),
        }
    }
}

fn find(
    gateway: &Gateway,
    view: &ViewName,
    ask: RoutedMethod,
    params: &RequestParams<'_>,
) -> Result<RouteTarget, RouteError> {
    RouteTarget::take(gateway.catalog.load().view(view), ask, &params.members)
}

/// Waits for what is not there while servers are connected for the first time: an agent whose session is older
/// than this process may call before its server is back.
async fn appearance(
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
            let found = find(gateway, view, ask, params);
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
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| find(gateway, view, ask, params))
}

/// The rest of a call that takes longer or says something before its answer.
fn stream(attended: Attended, first: Option<Bytes>) -> Response<ResponseBody> {
    body::events(unfold((Box::new(attended), first), async |(mut attended, first)| {
        if let Some(first) = first {
            return Some((first, (attended, None)));
        }
        let bytes = match attended.next(Instant::now() + PATIENCE).await {
            Next::Notice(notice) => event(&notice),
            Next::Quiet => KEEP_ALIVE,
            Next::Over => return None,
            Next::Ended(ended) => match attended.call.take() {
                Some(call) if !matches!(ended, Ended::Cancelled) => event(&call.answer.message(&ended).1),
                _ => return None,
            },
        };
        Some((bytes, (attended, None)))
    }))
}

/// A call that its server has. Dropped before its end, it is cancelled there.
struct Call {
    answer: Answer,
    in_flight: Option<InFlight>,
    deadline: CallDeadline,
    exchange: UpstreamExchange,
    /// The connection stays open while this is held.
    _guard: CallGuard,
}

/// A call whose agent is there.
///
/// A modern agent that goes away has cancelled its call. A legacy one has not: its call goes on alone, since
/// its server still works, and the agent may still cancel it.
struct Attended {
    gateway: Arc<Gateway>,
    call: Option<Call>,
}

enum Next {
    Notice(Bytes),
    /// Nothing came in time.
    Quiet,
    /// The call is to be taken out.
    Ended(Ended),
    /// It ended before.
    Over,
}

/// How a response begins.
enum First {
    /// As a stream, with this event if it is not empty.
    Stream(Option<Bytes>),
    Ended(Ended),
    Over,
}

/// Sends the request once its server has a connection. After a wait it is sent only if it still leads to what the agent
/// saw.
async fn begin(
    gateway: &Gateway,
    view: &ViewName,
    answer: &Answer,
    handle: &UpstreamHandle,
    deadline: CallDeadline,
    params: &RequestParams<'_>,
) -> Result<(UpstreamExchange, CallGuard), Ended> {
    let (aim, section) = (&answer.aim, answer.aim.section());
    let refused = |refusal| Ended::Refused(answer::refused(&section.key, &refusal));
    let guard = handle.begin_call().await.map_err(refused)?;
    if guard.waited() {
        let same = match (find(gateway, view, aim.ask, params), aim.listed()) {
            (Err(RouteError::Bad(why)), _) => return Err(Ended::Refused(why.to_owned())),
            (Err(RouteError::Unknown(text) | RouteError::Gone(text)), _) => return Err(Ended::Refused(text)),
            (Ok(_), Some((list, item))) => handle.lists_item(list, item),
            (Ok(_), None) => true,
        };
        if let (false, Some((list, item))) = (same, aim.listed()) {
            return Err(Ended::Refused(answer::redefined(&section.key, list, item.name())));
        }
    }
    let request = UpstreamRequest {
        method: aim.ask.method(),
        params,
        edits: &[aim.edit()],
        name: aim.name(),
        level: answer.level,
    };
    match tokio::time::timeout_at(deadline.until(), guard.link().call(request)).await {
        Ok(Ok(exchange)) => Ok((exchange, guard)),
        Ok(Err(error)) => Err(Ended::Failed(error)),
        Err(_) => Err(Ended::TimedOut(deadline.missed())),
    }
}

impl Call {
    /// What comes next, or nothing if nothing came until `patience`; an error is the end. Cancel safe.
    async fn next(&mut self, pulse: &CoarseTimer, patience: Instant) -> Result<Option<Bytes>, Ended> {
        let context = self.answer.measured.context();
        self.listen(pulse, patience).instrument(context).await
    }

    async fn listen(&mut self, pulse: &CoarseTimer, patience: Instant) -> Result<Option<Bytes>, Ended> {
        loop {
            let until = self.deadline.until();
            tokio::select! {
                biased;
                incoming = self.exchange.next() => match incoming {
                    Ok(ResponseMessage::Notice(notice)) if self.answer.wants(&notice) => return Ok(Some(notice)),
                    Ok(ResponseMessage::Notice(_)) => {}
                    Ok(ResponseMessage::Progress(notice)) => {
                        self.deadline.progress(Instant::now());
                        return Ok(Some(notice));
                    }
                    Ok(ResponseMessage::Answer(reply)) => return Err(Ended::Answered(reply)),
                    Err(error) => return Err(Ended::Failed(error)),
                },
                () = cancelled(&mut self.in_flight) => return Err(Ended::Cancelled),
                () = pulse.until(patience.min(until)) => return if patience < until {
                    Ok(None)
                } else {
                    Err(Ended::TimedOut(self.deadline.missed()))
                },
            }
        }
    }

    /// The rest of a call whose agent went away.
    async fn alone(mut self, gateway: Arc<Gateway>) {
        loop {
            tokio::select! {
                next = self.next(&gateway.pulse, self.deadline.until()) => if let Err(ended) = next {
                    return self.answer.measured.end(ended.outcome(), ended.reply());
                },
                () = gateway.stop.cancelled() => return self.exchange.abandon(),
            }
        }
    }
}

impl Attended {
    async fn next(&mut self, patience: Instant) -> Next {
        let Some(call) = &mut self.call else {
            return Next::Over;
        };
        match call.next(&self.gateway.pulse, patience).await {
            Ok(Some(notice)) => Next::Notice(notice),
            Ok(None) => Next::Quiet,
            Err(ended) => Next::Ended(ended),
        }
    }

    /// Waits for the answer, or, with `streams`, for whatever makes the response a stream.
    async fn first(&mut self, patience: Instant, streams: bool) -> First {
        loop {
            match self.next(patience).await {
                Next::Notice(notice) if streams => return First::Stream(Some(event(&notice))),
                Next::Quiet if streams => return First::Stream(None),
                Next::Notice(_) | Next::Quiet => {}
                Next::Ended(ended) => return First::Ended(ended),
                Next::Over => return First::Over,
            }
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if let Some(call) = self.call.take()
            && call.answer.era == Era::Legacy
            && self.gateway.alone.len() < ALONE
            && let Ok(runtime) = Handle::try_current()
        {
            self.gateway.alone.spawn_on(call.alone(self.gateway.clone()), &runtime);
        }
    }
}

/// How a call ended.
enum Ended {
    Answered(RpcResponse),
    Refused(String),
    Failed(ConnectionError),
    /// With what was missed.
    TimedOut(String),
    Cancelled,
}

impl Ended {
    fn is_of_a_forgotten_session(&self) -> bool {
        matches!(self, Self::Failed(error) if error.sign == FailureSource::Session)
    }

    fn outcome(&self) -> CallOutcome {
        match self {
            Self::Answered(RpcResponse::Result(_)) => CallOutcome::Ok,
            Self::Answered(RpcResponse::Error(_)) => CallOutcome::Error,
            Self::Refused(_) => CallOutcome::Refused,
            Self::Failed(_) => CallOutcome::Failed,
            Self::TimedOut(_) => CallOutcome::Timeout,
            Self::Cancelled => CallOutcome::Cancelled,
        }
    }

    fn reply(&self) -> Option<&RpcResponse> {
        match self {
            Self::Answered(reply) => Some(reply),
            _ => None,
        }
    }
}

/// What an answer is made from.
struct Answer {
    id: JsonRpcId,
    era: Era,
    level: Option<LogLevel>,
    aim: RouteTarget,
    measured: CallTimer,
}

impl Answer {
    /// True if the agent wants this notice: log messages are for those who asked for their level. A legacy
    /// agent that never did gets what its server sends, a modern one nothing.
    fn wants(&self, notice: &[u8]) -> bool {
        match (level_of(notice), self.level, self.era) {
            (None, ..) | (Some(_), None, Era::Legacy) => true,
            (Some(_), None, Era::Modern) => false,
            (Some(level), Some(wanted), _) => level >= wanted,
        }
    }

    fn respond(self, ended: &Ended) -> Response<ResponseBody> {
        if matches!(ended, Ended::Cancelled) {
            return nothing();
        }
        let (status, message) = self.message(ended);
        body::json(status, message)
    }

    /// The whole message and its HTTP status.
    fn message(self, ended: &Ended) -> (StatusCode, Bytes) {
        self.measured.end(ended.outcome(), ended.reply());
        let (ask, section) = (self.aim.ask, self.aim.section());
        let text = match ended {
            Ended::Answered(reply) => return answer::reply(&self.id, reply, ask, self.era),
            Ended::Refused(text) => text.clone(),
            Ended::Failed(error) => answer::failed(&section.key, error),
            Ended::TimedOut(missed) => answer::timed_out(&section.key, missed),
            Ended::Cancelled => String::from("The call was cancelled."),
        };
        (StatusCode::OK, answer::unanswered(&self.id, &text, ask, self.era))
    }
}

async fn cancelled(in_flight: &mut Option<InFlight>) {
    match in_flight {
        Some(in_flight) => in_flight.cancelled().await,
        None => std::future::pending().await,
    }
}

/// The response to a cancelled request: a stream in which no answer comes.
fn nothing() -> Response<ResponseBody> {
    body::events(futures_util::stream::empty())
}
