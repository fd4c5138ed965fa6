//! The fake server over streamable HTTP. Every path is the endpoint.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::headers::header_text;
use super::message::{InterimEvent, ListenStream, Outcome};
use super::polling::{Poll, PolledCalls};
use super::script::ResponseFormat;
use super::server::{FakeServer, ServerEvent};
use super::sse::SseSessions;

/// The error that makes hyper close the connection, before a response or in the middle of one.
#[derive(Debug, thiserror::Error)]
#[error("connection closed by the script")]
struct ConnectionClosed;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, ConnectionClosed>;
type Chunks = Pin<Box<dyn Stream<Item = Result<String, ConnectionClosed>> + Send>>;

/// The state that requests share.
#[derive(Default)]
struct Exchanges {
    polled_calls: Arc<PolledCalls>,
    sse_sessions: SseSessions,
}

/// Serves until the future is dropped, which closes all connections.
pub async fn serve(server: Arc<FakeServer>, listener: TcpListener) -> Infallible {
    let mut connections = JoinSet::new();
    let exchanges = Arc::new(Exchanges::default());
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        server.count_connection();
        let (server, exchanges) = (server.clone(), exchanges.clone());
        connections.spawn(async move {
            let service = service_fn(|request| {
                let (server, exchanges) = (server.clone(), exchanges.clone());
                async move { handle_request(server, exchanges, request).await }
            });
            // A client that disconnects is not an error.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle_request(
    server: Arc<FakeServer>,
    exchanges: Arc<Exchanges>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ConnectionClosed> {
    let (parts, body) = request.into_parts();
    if let Some(rule) = server.next_rule(parts.method.as_str())
        && let Some(outcome) = server.apply_rule(rule, "null").await
    {
        if parts.method != Method::POST {
            server.count_method(parts.method.as_str());
        }
        return plain_response(outcome);
    }
    let behavior = server.script().http;
    if let Some(expected) = &behavior.authorization
        && header_text(&parts.headers, AUTHORIZATION.as_str()) != Some(expected)
    {
        let mut response = status_response(401);
        response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().unwrap());
        return Ok(response);
    }
    match parts.method {
        Method::POST => {
            server.record_posted_path(parts.uri.path());
            check_accept(&server, &parts.headers, "application/json");
            check_accept(&server, &parts.headers, "text/event-stream");
            let bytes = body.collect().await.map_err(|_| ConnectionClosed)?.to_bytes();
            if behavior.sse {
                return handle_sse_post(server, &exchanges.sse_sessions, &parts, bytes).await;
            }
            match behavior.polling.map(Duration::from_millis) {
                Some(retry) => {
                    handle_polled_post(server, &exchanges.polled_calls, parts.headers, bytes, retry).await
                }
                None => handle_post(server, parts.headers, bytes, behavior.answers).await,
            }
        }
        Method::GET => {
            server.count_method("GET");
            let session = header_text(&parts.headers, "mcp-session-id");
            check_accept(&server, &parts.headers, "text/event-stream");
            if behavior.sse {
                return Ok(stream_response(sse_stream(&server, &exchanges.sse_sessions)));
            }
            if !behavior.get_stream || server.is_modern_only() {
                return Ok(method_not_allowed());
            }
            if behavior.sessions && !server.has_session(session) {
                return Ok(status_response(if session.is_some() {
                    behavior.unknown_session.0.max(400)
                } else {
                    400
                }));
            }
            let last_event_id = header_text(&parts.headers, "last-event-id");
            let Some((event_id, retry)) = last_event_id.zip(behavior.polling) else {
                return Ok(stream_response(legacy_stream(&server)));
            };
            match exchanges.polled_calls.poll(event_id, Duration::from_millis(retry)) {
                Poll::Stream(events) => {
                    Ok(stream_response(Box::pin(stream::once(async move { Ok(events) }))))
                }
                Poll::UnknownEvent => Ok(status_response(400)),
                Poll::TooEarly => {
                    server.record_violation("polled before the delay of the stream".into());
                    Ok(status_response(429))
                }
            }
        }
        Method::DELETE => {
            server.count_method("DELETE");
            if !behavior.delete || server.is_modern_only() {
                return Ok(method_not_allowed());
            }
            let existed = server.end_session(header_text(&parts.headers, "mcp-session-id"));
            Ok(status_response(if existed { 200 } else { 404 }))
        }
        _ => Ok(method_not_allowed()),
    }
}

async fn handle_post(
    server: Arc<FakeServer>,
    headers: HeaderMap,
    bytes: Bytes,
    format: ResponseFormat,
) -> Result<Response<Body>, ConnectionClosed> {
    let priming = server.script().http.priming;
    let (mut handler, mut events) = start_handler(&server, headers, bytes);
    let first = tokio::select! {
        biased;
        Some(event) = events.recv() => Ok(event),
        outcome = &mut handler => Err(outcome),
    };
    let opening = if priming { "id: 0\ndata:\n\n" } else { ":\n\n" };
    match first {
        // The stream drives the handler: if the client disconnects, the request is dropped too.
        Ok(event) => {
            let opened = stream::once(async move { Ok(opening.to_owned()) });
            let rest = stream::unfold(Some((handler, events)), |state| async move {
                let (mut handler, mut events) = state?;
                tokio::select! {
                    biased;
                    Some(event) = events.recv() => Some((Ok(notice_event(event)), Some((handler, events)))),
                    outcome = &mut handler => {
                        let remaining = std::iter::from_fn(|| events.try_recv().ok());
                        let remaining = remaining.map(notice_event).collect::<String>();
                        Some((final_chunk(outcome).map(|last| remaining + &last), None))
                    }
                }
            });
            let first = stream::once(async move { Ok(notice_event(event)) });
            Ok(stream_response(Box::pin(opened.chain(first).chain(rest))))
        }
        Err(Outcome::Listen(listen)) => Ok(stream_response(listen_stream(&server, listen))),
        Err(Outcome::Response { status: 200, text, session }) if format == ResponseFormat::Stream => {
            let chunk = opening.to_owned() + &sse_event(&text);
            let mut response = stream_response(Box::pin(stream::once(async move { Ok(chunk) })));
            set_session_header(&mut response, session.as_deref());
            Ok(response)
        }
        Err(outcome) => plain_response(outcome),
    }
}

/// Handles a message whose response, if it is that to a call, the client polls for.
async fn handle_polled_post(
    server: Arc<FakeServer>,
    polled_calls: &Arc<PolledCalls>,
    headers: HeaderMap,
    bytes: Bytes,
    retry: Duration,
) -> Result<Response<Body>, ConnectionClosed> {
    let (mut handler, mut events) = start_handler(&server, headers, bytes);
    let first = tokio::select! {
        biased;
        Some(event) = events.recv() => event,
        outcome = &mut handler => return plain_response(outcome),
    };
    let (number, opening) = polled_calls.add(retry);
    let polled_calls = polled_calls.clone();
    tokio::spawn(async move {
        let outcome = handler.await;
        let interim: String = std::iter::once(first)
            .chain(std::iter::from_fn(|| events.try_recv().ok()))
            .map(notice_event)
            .collect();
        if let Ok(last) = final_chunk(outcome) {
            polled_calls.finish(number, interim + &last);
        }
    });
    Ok(stream_response(Box::pin(stream::once(async move { Ok(opening) }))))
}

/// Handles a message of HTTP+SSE: its response goes to the event stream of its session.
async fn handle_sse_post(
    server: Arc<FakeServer>,
    sessions: &SseSessions,
    parts: &Parts,
    bytes: Bytes,
) -> Result<Response<Body>, ConnectionClosed> {
    let Some(stream) = sessions.find(&parts.uri) else { return Ok(status_response(404)) };
    let (mut handler, mut events) = start_handler(&server, parts.headers.clone(), bytes);
    let first = tokio::select! {
        biased;
        Some(event) = events.recv() => event,
        outcome = &mut handler => return match outcome {
            outcome @ Outcome::Http { .. } => plain_response(outcome),
            outcome => {
                let _ = stream.send(final_chunk(outcome)?);
                Ok(status_response(202))
            }
        },
    };
    tokio::spawn(async move {
        let _ = stream.send(notice_event(first));
        let outcome = loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => drop(stream.send(notice_event(event))),
                outcome = &mut handler => break outcome,
            }
        };
        if let Ok(last) = final_chunk(outcome) {
            let _ = stream.send(last);
        }
    });
    Ok(status_response(202))
}

/// Returns the event stream of a new session of HTTP+SSE.
fn sse_stream(server: &Arc<FakeServer>, sessions: &SseSessions) -> Chunks {
    let (endpoint, messages) = sessions.open();
    let open = (server.subscribe_events(), server.open_stream(), messages);
    let opened = stream::once(async move { Ok(format!("event: endpoint\ndata: {endpoint}\n\n")) });
    Box::pin(opened.chain(stream::unfold(open, |(mut events, open, mut messages)| async move {
        let chunk = tokio::select! {
            Some(chunk) = messages.recv() => chunk,
            event = events.recv() => match event {
                Ok(ServerEvent::CloseStreams) | Err(_) => return None,
                Ok(event) => {
                    let messages = open.server().legacy_messages(&event);
                    messages.iter().map(|message| sse_event(message)).collect()
                }
            },
        };
        Some((Ok(chunk), (events, open, messages)))
    })))
}

type OutcomeFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Returns the handler of a message, which runs as it is polled, and the events before its outcome.
fn start_handler(
    server: &Arc<FakeServer>,
    headers: HeaderMap,
    bytes: Bytes,
) -> (OutcomeFuture, mpsc::UnboundedReceiver<InterimEvent>) {
    let (sender, events) = mpsc::unbounded_channel();
    let server = server.clone();
    (Box::pin(async move { server.handle_message(&bytes, Some(&headers), sender).await }), events)
}

fn notice_event(event: InterimEvent) -> String {
    match event {
        InterimEvent::Started => String::new(),
        InterimEvent::Message(message) => sse_event(&message),
    }
}

fn sse_event(message: &str) -> String {
    format!("event: message\ndata: {}\n\n", message.replace('\n', "\ndata: "))
}

/// Returns the last chunk of a stream that has begun.
fn final_chunk(outcome: Outcome) -> Result<String, ConnectionClosed> {
    match outcome {
        Outcome::Response { text, .. } => Ok(sse_event(&text)),
        Outcome::Junk(text) => Ok(text),
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::Accepted | Outcome::NoResponse => Ok(String::new()),
        Outcome::CloseStdin | Outcome::CloseStdout => {
            panic!("the script closes stdin or stdout, but this server has no process of its own")
        }
        Outcome::Http { .. } | Outcome::Drop | Outcome::Cut | Outcome::Endless | Outcome::Listen(_) => {
            Err(ConnectionClosed)
        }
    }
}

/// Returns a response that is not part of an open stream.
fn plain_response(outcome: Outcome) -> Result<Response<Body>, ConnectionClosed> {
    Ok(match outcome {
        Outcome::Response { status: code, text, session } => {
            let mut response = json_response(code, text);
            set_session_header(&mut response, session.as_deref());
            response
        }
        Outcome::Accepted | Outcome::NoResponse => status_response(202),
        Outcome::Http { status: code, headers, body } => {
            let mut response = status_response(code);
            for (name, value) in &headers {
                response.headers_mut().insert(
                    hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
            *response.body_mut() = full_body(body);
            response
        }
        Outcome::Junk(text) => json_response(200, text),
        Outcome::Endless => {
            let opened = stream::once(async { Ok(":\n\n".to_owned()) });
            stream_response(Box::pin(opened.chain(stream::pending())))
        }
        Outcome::Cut => {
            let beginning = stream::once(async { Ok("event: message\ndata: {".to_owned()) });
            let end = stream::once(async {
                // Lets hyper send the first chunk.
                tokio::task::yield_now().await;
                Err(ConnectionClosed)
            });
            stream_response(Box::pin(beginning.chain(end)))
        }
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::CloseStdin | Outcome::CloseStdout => {
            panic!("the script closes stdin or stdout, but this server has no process of its own")
        }
        Outcome::Drop | Outcome::Listen(_) => return Err(ConnectionClosed),
    })
}

/// Returns the GET stream of a legacy client.
fn legacy_stream(server: &Arc<FakeServer>) -> Chunks {
    let open = (server.subscribe_events(), server.open_stream());
    let opened = stream::once(async { Ok(":\n\n".to_owned()) });
    let comments = server.script().http.comments.map_or(Duration::MAX, Duration::from_millis);
    Box::pin(opened.chain(stream::unfold(open, move |(mut events, open)| async move {
        loop {
            let Ok(event) = tokio::time::timeout(comments, events.recv()).await else {
                return Some((Ok(": still here\n\n".to_owned()), (events, open)));
            };
            match event {
                Ok(ServerEvent::CloseStreams) | Err(_) => return None,
                Ok(event) => {
                    let messages = open.server().legacy_messages(&event);
                    if !messages.is_empty() {
                        let events_text = messages.iter().map(|message| sse_event(message)).collect();
                        return Some((Ok(events_text), (events, open)));
                    }
                }
            }
        }
    })))
}

/// Returns the stream of a `subscriptions/listen` request.
fn listen_stream(server: &Arc<FakeServer>, listen: ListenStream) -> Chunks {
    let open = (server.subscribe_events(), server.open_stream(), listen);
    let acknowledgement = sse_event(&open.2.acknowledgement());
    let opened = stream::once(async move { Ok(acknowledgement) });
    Box::pin(opened.chain(stream::unfold(open, |(mut events, open, listen)| async move {
        loop {
            match events.recv().await {
                Ok(ServerEvent::CloseStreams) | Err(_) => return None,
                Ok(event) => {
                    if let Some(message) = listen.message_for(&event) {
                        return Some((Ok(sse_event(&message)), (events, open, listen)));
                    }
                }
            }
        }
    })))
}

/// Records a violation if the `Accept` header does not include a media type.
fn check_accept(server: &FakeServer, headers: &HeaderMap, kind: &str) {
    if !header_text(headers, ACCEPT.as_str())
        .is_some_and(|accept| accept.contains(kind) || accept.contains("*/*"))
    {
        server.record_violation(format!("Accept lacks {kind}"));
    }
}

fn set_session_header(response: &mut Response<Body>, session: Option<&str>) {
    if let Some(session) = session {
        response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
    }
}

fn stream_response(chunks: Chunks) -> Response<Body> {
    let frames = chunks.map(|chunk| chunk.map(|text| Frame::data(Bytes::from(text))));
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
    response.headers_mut().insert("x-accel-buffering", "no".parse().unwrap());
    response
}

fn json_response(code: u16, text: String) -> Response<Body> {
    let mut response = status_response(code);
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    *response.body_mut() = full_body(text);
    response
}

fn status_response(code: u16) -> Response<Body> {
    let mut response = Response::new(full_body(String::new()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn method_not_allowed() -> Response<Body> {
    let mut response = status_response(405);
    response.headers_mut().insert(ALLOW, "POST".parse().unwrap());
    response
}

fn full_body(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}
