//! The rig over streamable HTTP. Any path is the endpoint.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::headers::text;
use super::message::{Listen, Notice, Outcome};
use super::script::Answers;
use super::server::{Event, Rig};

/// The connection ends here, without a word or in the middle of one.
#[derive(Debug, thiserror::Error)]
#[error("cut, as the script says")]
struct Broken;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Broken>;
type Chunks = Pin<Box<dyn Stream<Item = Result<String, Broken>> + Send>>;

/// Serves until it is dropped; connections end with it.
pub async fn serve(rig: Arc<Rig>, listener: TcpListener) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        rig.connected();
        let rig = rig.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let rig = rig.clone();
                async move { answer(rig, request).await }
            });
            // A client that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(rig: Arc<Rig>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    if let Some(rule) = rig.rule(parts.method.as_str())
        && let Some(outcome) = rig.follow(rule, "null").await
    {
        if parts.method != Method::POST {
            rig.count(parts.method.as_str());
        }
        return plain(outcome);
    }
    let manners = rig.script().http;
    if let Some(wanted) = &manners.authorization
        && text(&parts.headers, AUTHORIZATION.as_str()) != Some(wanted)
    {
        let mut response = status(401);
        response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().unwrap());
        return Ok(response);
    }
    match parts.method {
        Method::POST => {
            accepts(&rig, &parts.headers, "application/json");
            accepts(&rig, &parts.headers, "text/event-stream");
            let bytes = body.collect().await.map_err(|_| Broken)?.to_bytes();
            post(rig, parts.headers, bytes, manners.answers).await
        }
        Method::GET => {
            rig.count("GET");
            let session = text(&parts.headers, "mcp-session-id");
            accepts(&rig, &parts.headers, "text/event-stream");
            if !manners.get_stream || rig.modern_only() {
                return Ok(not_allowed());
            }
            if manners.sessions && !rig.knows(session) {
                return Ok(status(if session.is_some() { manners.unknown_session.0.max(400) } else { 400 }));
            }
            Ok(streamed(notices(&rig)))
        }
        Method::DELETE => {
            rig.count("DELETE");
            if !manners.delete || rig.modern_only() {
                return Ok(not_allowed());
            }
            let known = rig.end_session(text(&parts.headers, "mcp-session-id"));
            Ok(status(if known { 200 } else { 404 }))
        }
        _ => Ok(not_allowed()),
    }
}

async fn post(
    rig: Arc<Rig>,
    headers: HeaderMap,
    bytes: Bytes,
    answers: Answers,
) -> Result<Response<Body>, Broken> {
    let priming = rig.script().http.priming;
    let (sender, mut told) = mpsc::unbounded_channel();
    let mut work: Work = Box::pin({
        let rig = rig.clone();
        async move { rig.receive(&bytes, Some(&headers), sender).await }
    });
    let first = tokio::select! {
        biased;
        Some(notice) = told.recv() => Ok(notice),
        outcome = &mut work => Err(outcome),
    };
    let opening = if priming { "id: 0\ndata:\n\n" } else { ":\n\n" };
    match first {
        // The stream runs the tool: a client that goes away takes it along.
        Ok(notice) => {
            let opened = stream::once(async move { Ok(opening.to_owned()) });
            let rest = stream::unfold(Some((work, told)), |state| async move {
                let (mut work, mut told) = state?;
                tokio::select! {
                    biased;
                    Some(notice) = told.recv() => Some((Ok(event(notice)), Some((work, told)))),
                    outcome = &mut work => {
                        let late = std::iter::from_fn(|| told.try_recv().ok()).map(event).collect::<String>();
                        Some((last(outcome).map(|last| late + &last), None))
                    }
                }
            });
            let first = stream::once(async move { Ok(event(notice)) });
            Ok(streamed(Box::pin(opened.chain(first).chain(rest))))
        }
        Err(Outcome::Listen(listen)) => Ok(streamed(subscription(&rig, listen))),
        Err(Outcome::Reply { status: 200, text, session }) if answers == Answers::Stream => {
            let chunk = opening.to_owned() + &data(&text);
            let mut response = streamed(Box::pin(stream::once(async move { Ok(chunk) })));
            give_session(&mut response, session.as_deref());
            Ok(response)
        }
        Err(outcome) => plain(outcome),
    }
}

type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

fn event(notice: Notice) -> String {
    match notice {
        Notice::Started => String::new(),
        Notice::Message(message) => data(&message),
    }
}

fn data(message: &str) -> String {
    format!("event: message\ndata: {}\n\n", message.replace('\n', "\ndata: "))
}

/// The end of a stream that has begun.
fn last(outcome: Outcome) -> Result<String, Broken> {
    match outcome {
        Outcome::Reply { text, .. } => Ok(data(&text)),
        Outcome::Junk(text) => Ok(text),
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::Accepted | Outcome::Silence => Ok(String::new()),
        Outcome::CloseStdin | Outcome::CloseStdout => panic!("the script closes the pipes of no process"),
        Outcome::Http { .. } | Outcome::Drop | Outcome::Cut | Outcome::Listen(_) => Err(Broken),
    }
}

/// An answer that is no stream.
fn plain(outcome: Outcome) -> Result<Response<Body>, Broken> {
    Ok(match outcome {
        Outcome::Reply { status: code, text, session } => {
            let mut response = json(code, text);
            give_session(&mut response, session.as_deref());
            response
        }
        Outcome::Accepted | Outcome::Silence => status(202),
        Outcome::Http { status: code, headers, body } => {
            let mut response = status(code);
            for (name, value) in &headers {
                response.headers_mut().insert(
                    hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
            *response.body_mut() = full(body);
            response
        }
        Outcome::Junk(text) => json(200, text),
        Outcome::Cut => {
            let beginning = stream::once(async { Ok("event: message\ndata: {".to_owned()) });
            let end = stream::once(async {
                // Lets hyper send what it has.
                tokio::task::yield_now().await;
                Err(Broken)
            });
            streamed(Box::pin(beginning.chain(end)))
        }
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::CloseStdin | Outcome::CloseStdout => panic!("the script closes the pipes of no process"),
        Outcome::Drop | Outcome::Listen(_) => return Err(Broken),
    })
}

/// The GET stream of a legacy client.
fn notices(rig: &Arc<Rig>) -> Chunks {
    let open = (rig.events(), rig.open_stream());
    let opened = stream::once(async { Ok(":\n\n".to_owned()) });
    Box::pin(opened.chain(stream::unfold(open, |(mut events, open)| async move {
        loop {
            match events.recv().await {
                Ok(Event::CloseStreams) | Err(_) => return None,
                Ok(event) => {
                    let messages = open.rig().told_legacy(&event);
                    if !messages.is_empty() {
                        let events_text = messages.iter().map(|message| data(message)).collect();
                        return Some((Ok(events_text), (events, open)));
                    }
                }
            }
        }
    })))
}

/// The stream of a `subscriptions/listen`.
fn subscription(rig: &Arc<Rig>, listen: Listen) -> Chunks {
    let open = (rig.events(), rig.open_stream(), listen);
    let acknowledgement = data(&open.2.acknowledgement());
    let opened = stream::once(async move { Ok(acknowledgement) });
    Box::pin(opened.chain(stream::unfold(open, |(mut events, open, listen)| async move {
        loop {
            match events.recv().await {
                Ok(Event::CloseStreams) | Err(_) => return None,
                Ok(event) => {
                    if let Some(message) = listen.told(&event) {
                        return Some((Ok(data(&message)), (events, open, listen)));
                    }
                }
            }
        }
    })))
}

fn accepts(rig: &Rig, headers: &HeaderMap, kind: &str) {
    if !text(headers, ACCEPT.as_str()).is_some_and(|accept| accept.contains(kind) || accept.contains("*/*")) {
        rig.complain(format!("Accept lacks {kind}"));
    }
}

fn give_session(response: &mut Response<Body>, session: Option<&str>) {
    if let Some(session) = session {
        response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
    }
}

fn streamed(chunks: Chunks) -> Response<Body> {
    let frames = chunks.map(|chunk| chunk.map(|text| Frame::data(Bytes::from(text))));
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
    response.headers_mut().insert("x-accel-buffering", "no".parse().unwrap());
    response
}

fn json(code: u16, text: String) -> Response<Body> {
    let mut response = status(code);
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    *response.body_mut() = full(text);
    response
}

fn status(code: u16) -> Response<Body> {
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn not_allowed() -> Response<Body> {
    let mut response = status(405);
    response.headers_mut().insert(ALLOW, "POST".parse().unwrap());
    response
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}
