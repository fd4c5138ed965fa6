//! `tools/call`: from the agent's request to the server and back, as raw JSON. The hot path.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Response, StatusCode};
use rmcp::model::ErrorCode;
use tokio::time::{Instant, sleep_until};

use super::Gateway;
use super::answer::{self, Failure};
use super::body::{self, Body, KEEP_ALIVE, event};
use super::era::{member, text};
use super::metrics::{Measured, Outcome};
use super::session::InFlight;
use crate::catalog::{Route, ViewName};
use crate::fleet::CallGuard;
use crate::wire::{Edit, Era, Exchange, Id, Incoming, LinkError, Members, Reply, Request};

/// A response that is not there by then becomes a stream, and a quiet stream says that it is alive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who calls, and how the answer is to look.
pub(super) struct Caller<'a> {
    pub(super) id: Id,
    pub(super) era: Era,
    pub(super) view: &'a ViewName,
    /// Among the session's requests in flight; a modern agent has no session.
    pub(super) in_flight: Option<InFlight>,
    /// False if the agent takes nothing but JSON.
    pub(super) streams: bool,
}

/// Carries out a call.
pub(super) async fn call(gateway: &Gateway, caller: Caller<'_>, params: &Members<'_>) -> Response<Body> {
    let Some(name) = member(params, "name").and_then(text) else {
        return refuse(&caller, "Invalid params: a call needs the \"name\" of a tool");
    };
    let route = {
        let generation = gateway.catalog.load();
        let view = generation.view(caller.view);
        match (view.route(&name), view.gone(&name)) {
            (Some(route), _) => route.clone(),
            (None, Some(gone)) => return tell(&caller, &answer::gone(&name, gone)),
            (None, None) => return refuse(&caller, &format!("Unknown tool: {name}")),
        }
    };
    let measured = gateway.metrics.measure(&route.section().key);
    let deadline = Instant::now() + route.section().call_timeout;
    let mut call =
        Call { id: caller.id, era: caller.era, route, in_flight: caller.in_flight, deadline, measured };
    let begun = tokio::select! {
        biased;
        () = cancelled(&mut call.in_flight) => return nothing(),
        begun = begin(&call.route, call.deadline, call.era, params) => begun,
    };
    let mut running = match begun {
        Ok(running) => running,
        Err(ended) => return call.end(&ended),
    };
    let patience = Instant::now() + PATIENCE;
    let first = loop {
        match call.next(&mut running, patience).await {
            Next::Notice(notice) if caller.streams => break Some(event(&notice)),
            Next::Quiet if caller.streams => break None,
            Next::Notice(_) | Next::Quiet => {}
            Next::Ended(ended) => return call.end(&ended),
        }
    };
    stream(call, running, first)
}

/// The rest of a call that takes longer or says something before its answer.
fn stream(call: Call, running: Running, first: Option<Bytes>) -> Response<Body> {
    let state = Some((Box::new((call, running)), first));
    body::events(unfold(state, async |state| {
        let (mut state, first) = state?;
        if let Some(first) = first {
            return Some((first, Some((state, None))));
        }
        let (call, running) = &mut *state;
        match call.next(running, Instant::now() + PATIENCE).await {
            Next::Notice(notice) => Some((event(&notice), Some((state, None)))),
            Next::Quiet => Some((KEEP_ALIVE, Some((state, None)))),
            Next::Ended(Ended::Cancelled) => None,
            Next::Ended(ended) => {
                let (call, _) = *state;
                let (_, message) = call.message(&ended);
                call.measured.end(ended.outcome());
                Some((event(&message), None))
            }
        }
    }))
}

/// A call on its way.
struct Call {
    id: Id,
    era: Era,
    route: Arc<Route>,
    in_flight: Option<InFlight>,
    deadline: Instant,
    measured: Measured,
}

/// A call that its server has.
struct Running {
    exchange: Option<Exchange>,
    /// A legacy agent that goes away has not cancelled; a modern one has.
    era: Era,
    /// The connection stays open while this is held.
    _guard: CallGuard,
}

enum Next {
    Notice(Bytes),
    Quiet,
    Ended(Ended),
}

/// How a call ended, but for agents that went away.
enum Ended {
    Answered(Reply),
    Refused(String),
    Failed(LinkError),
    TimedOut,
    Cancelled,
}

async fn begin(route: &Route, deadline: Instant, era: Era, params: &Members<'_>) -> Result<Running, Ended> {
    let section = route.section();
    let guard = section
        .handle
        .begin_call()
        .await
        .map_err(|refusal| Ended::Refused(answer::refused(&section.key, &refusal)))?;
    let request = Request {
        method: "tools/call",
        params,
        edits: &[Edit::Set("name", route.tool_json())],
        name: Some(route.tool()),
    };
    let exchange = tokio::time::timeout_at(deadline, guard.link().call(request))
        .await
        .map_err(|_| Ended::TimedOut)?
        .map_err(Ended::Failed)?;
    Ok(Running { exchange: Some(exchange), era, _guard: guard })
}

impl Call {
    /// What comes next of the call, or that nothing came until `patience`. Cancel safe.
    async fn next(&mut self, running: &mut Running, patience: Instant) -> Next {
        let Some(exchange) = &mut running.exchange else {
            return Next::Ended(Ended::Cancelled);
        };
        let ended = tokio::select! {
            biased;
            incoming = exchange.next() => match incoming {
                Ok(Incoming::Notice(notice)) => return Next::Notice(notice),
                Ok(Incoming::Answer(reply)) => Ended::Answered(reply),
                Err(error) => Ended::Failed(error),
            },
            () = cancelled(&mut self.in_flight) => Ended::Cancelled,
            () = sleep_until(patience.min(self.deadline)) => {
                if patience < self.deadline {
                    return Next::Quiet;
                }
                Ended::TimedOut
            }
        };
        // Dropped here and not abandoned: what has no answer yet is cancelled at the server.
        running.exchange = None;
        Next::Ended(ended)
    }

    fn end(self, ended: &Ended) -> Response<Body> {
        if matches!(ended, Ended::Cancelled) {
            return nothing();
        }
        let (status, message) = self.message(ended);
        self.measured.end(ended.outcome());
        body::json(status, message)
    }

    fn message(&self, ended: &Ended) -> (StatusCode, Bytes) {
        let section = self.route.section();
        let text = match ended {
            Ended::Answered(reply) => return answer::reply(&self.id, reply, self.era),
            Ended::Refused(text) => text.clone(),
            Ended::Failed(error) => answer::failed(&section.key, error),
            Ended::TimedOut => answer::timed_out(&section.key, section.call_timeout),
            Ended::Cancelled => String::from("The call was cancelled."),
        };
        (StatusCode::OK, answer::tool_error(&self.id, &text, self.era))
    }
}

impl Ended {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Answered(Reply::Result(_)) => Outcome::Ok,
            Self::Answered(Reply::Error(_)) => Outcome::Error,
            Self::Refused(_) => Outcome::Refused,
            Self::Failed(_) => Outcome::Failed,
            Self::TimedOut => Outcome::Timeout,
            Self::Cancelled => Outcome::Cancelled,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take()
            && self.era == Era::Legacy
        {
            exchange.abandon();
        }
    }
}

async fn cancelled(in_flight: &mut Option<InFlight>) {
    match in_flight {
        Some(in_flight) => in_flight.cancelled().await,
        None => std::future::pending().await,
    }
}

/// The response to a cancelled request: a stream in which no answer comes.
fn nothing() -> Response<Body> {
    body::events(futures_util::stream::empty())
}

fn refuse(caller: &Caller<'_>, message: &str) -> Response<Body> {
    let failure = Failure::in_band(ErrorCode::INVALID_PARAMS, message.to_owned());
    body::json(failure.status, failure.message(Some(&caller.id)))
}

fn tell(caller: &Caller<'_>, text: &str) -> Response<Body> {
    body::json(StatusCode::OK, answer::tool_error(&caller.id, text, caller.era))
}
