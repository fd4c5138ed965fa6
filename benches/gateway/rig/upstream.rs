//! Any number of fake MCP servers on one port, selected by path: `/legacy/17/mcp`, `/modern/17/mcp`, and `/hang/0/mcp`,
//! which accepts requests and never responds. Each server has one tool, `echo`.
//!
//! The servers do the least possible work and count their requests; `/counts` returns the counts.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead as _, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::TcpListener;

use super::{Era, Result, unix_nanos};

const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");

/// The request counts of all servers together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Requests of any kind.
    pub requests: u64,
    /// Tool lists sent.
    pub listed: u64,
    /// Streams opened.
    pub streams: u64,
    /// The time of the first request to the server that listed its tools last, in nanoseconds since the Unix epoch.
    pub last_opened: i128,
    /// The time at which it sent that list.
    pub last_listed: i128,
}

#[derive(Default)]
struct State {
    counts: RequestCounts,
    /// The time of each server's first request.
    opened_at: HashMap<(Era, u32), i128>,
}

type SharedState = Arc<Mutex<State>>;
type HttpResponse = Response<Either<Full<Bytes>, OpenBody>>;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener) -> Result<()> {
    let state = SharedState::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let state = state.clone();
        let service = service_fn(move |request| handle_request(state.clone(), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn handle_request(
    state: SharedState,
    request: Request<Incoming>,
) -> std::result::Result<HttpResponse, Infallible> {
    let mut segments = request.uri().path().split('/').skip(1);
    let era = match segments.next() {
        Some("legacy") => Era::Legacy,
        Some("modern") => Era::Modern,
        Some("counts") => {
            let counts = state.lock().unwrap_or_else(PoisonError::into_inner).counts.clone();
            return Ok(json_response(StatusCode::OK, serde_json::to_string(&counts).unwrap_or_default()));
        }
        Some("hang") => std::future::pending().await,
        _ => return Ok(status_response(StatusCode::NOT_FOUND)),
    };
    let number = segments.next().and_then(|number| number.parse().ok()).unwrap_or_default();
    let has_session = request.headers().contains_key(SESSION_HEADER);
    let server_counts = ServerCounts { state, server: (era, number) };
    server_counts.update(|state| state.counts.requests += 1);
    Ok(match (request.method(), era) {
        (&Method::GET, Era::Legacy) if has_session => {
            server_counts.update(|state| state.counts.streams += 1);
            stream_response(Bytes::from_static(b": open\n\n"))
        }
        (&Method::DELETE, Era::Legacy) => status_response(StatusCode::OK),
        (&Method::POST, _) => match request.into_body().collect().await {
            Ok(body) => http_response(handle_message(&server_counts, has_session, &body.to_bytes())),
            Err(_) => status_response(StatusCode::BAD_REQUEST),
        },
        _ => status_response(StatusCode::METHOD_NOT_ALLOWED),
    })
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: &'a str,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CallParams<'a> {
    #[serde(borrow)]
    arguments: Arguments<'a>,
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    text: &'a RawValue,
}

/// The reply to one message, for either transport.
enum ServerReply {
    /// The message is not JSON-RPC.
    Malformed,
    /// The message is a notification.
    Accepted,
    Result {
        json: String,
        session: Option<String>,
    },
    Error {
        json: String,
        code: i32,
    },
    /// The first message of a stream that stays open.
    Stream(String),
}

/// Serves one server over stdin and stdout, one message a line, until stdin closes.
pub fn serve_stdio(era: Era) -> Result<()> {
    let server_counts = ServerCounts { state: SharedState::default(), server: (era, 0) };
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let (ServerReply::Result { mut json, .. }
        | ServerReply::Error { mut json, .. }
        | ServerReply::Stream(mut json)) = handle_message(&server_counts, true, line?.as_bytes())
        else {
            continue;
        };
        json.push('\n');
        stdout.write_all(json.as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}

fn http_response(reply: ServerReply) -> HttpResponse {
    match reply {
        ServerReply::Malformed => status_response(StatusCode::BAD_REQUEST),
        ServerReply::Accepted => status_response(StatusCode::ACCEPTED),
        ServerReply::Result { json: text, session } => {
            let mut response = json_response(StatusCode::OK, text);
            if let Some(session) = session.and_then(|session| session.try_into().ok()) {
                response.headers_mut().insert(SESSION_HEADER, session);
            }
            response
        }
        ServerReply::Error { json: text, code: -32601 } => json_response(StatusCode::NOT_FOUND, text),
        ServerReply::Error { json: text, .. } => json_response(StatusCode::BAD_REQUEST, text),
        ServerReply::Stream(first) => stream_response(Bytes::from(format!("data: {first}\n\n"))),
    }
}

fn handle_message(server_counts: &ServerCounts, has_session: bool, body: &[u8]) -> ServerReply {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(body) else {
        return ServerReply::Malformed;
    };
    let Some(id) = message.id.map(RawValue::get) else {
        return ServerReply::Accepted;
    };
    let era = server_counts.server.0;
    // The members that the modern era adds to results.
    let complete = if era == Era::Modern { r#","resultType":"complete""# } else { "" };
    let caching = if era == Era::Modern { r#","ttlMs":0,"cacheScope":"private""# } else { "" };
    let result = match (message.method, era) {
        ("tools/call", _) => {
            let params =
                message.params.and_then(|raw| serde_json::from_str::<CallParams<'_>>(raw.get()).ok());
            let Some(params) = params else {
                return error_reply(id, -32602, "echo needs a text");
            };
            let text = params.arguments.text.get();
            format!(r#"{{"content":[{{"type":"text","text":{text}}}]{complete}}}"#)
        }
        ("tools/list", _) => {
            server_counts.record_listed();
            format!(r#"{{"tools":[{TOOL_DESCRIPTOR}]{complete}{caching}}}"#)
        }
        ("initialize", Era::Legacy) => {
            let opened = server_counts.record_opened();
            let version = era.version();
            let result = format!(
                r#"{{"protocolVersion":"{version}","capabilities":{{"tools":{{"listChanged":true}}}},"serverInfo":{SERVER_INFO}}}"#
            );
            let session = Some(format!("session-{}-{opened}", server_counts.server.1));
            return ServerReply::Result { json: result_message(id, &result), session };
        }
        ("server/discover", Era::Modern) => {
            server_counts.record_opened();
            let version = era.version();
            format!(
                r#"{{"supportedVersions":["{version}"],"capabilities":{{"tools":{{"listChanged":true}}}},"_meta":{{"io.modelcontextprotocol/serverInfo":{SERVER_INFO}}}{complete}{caching}}}"#
            )
        }
        ("subscriptions/listen", Era::Modern) => {
            server_counts.update(|state| state.counts.streams += 1);
            return ServerReply::Stream(format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\",\"params\":\
                 {{\"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{id}}},\
                 \"notifications\":{{\"toolsListChanged\":true}}}}}}"
            ));
        }
        ("ping", Era::Legacy) => "{}".to_owned(),
        (_, Era::Legacy) if !has_session => {
            server_counts.record_opened();
            return error_reply(id, -32000, "Bad Request: no valid session ID provided");
        }
        _ => return error_reply(id, -32601, "Method not found"),
    };
    ServerReply::Result { json: result_message(id, &result), session: None }
}

const SERVER_INFO: &str = r#"{"name":"fake","version":"1"}"#;
const TOOL_DESCRIPTOR: &str = r#"{"name":"echo","description":"Gives back the text that it is given, word for word.","inputSchema":{"type":"object","properties":{"text":{"type":"string","description":"Any text."}},"required":["text"]}}"#;

fn result_message(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

fn error_reply(id: &str, code: i32, text: &str) -> ServerReply {
    let json = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{text}"}}}}"#);
    ServerReply::Error { json, code }
}

fn json_response(status: StatusCode, body: String) -> HttpResponse {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn status_response(status: StatusCode) -> HttpResponse {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

fn stream_response(first: Bytes) -> HttpResponse {
    let mut response = Response::new(Either::Right(OpenBody(Some(first))));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    response
}

/// A body that stays open after its first bytes.
struct OpenBody(Option<Bytes>);

impl Body for OpenBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Poll::Pending,
        }
    }
}

/// One server's access to the counts.
struct ServerCounts {
    state: SharedState,
    server: (Era, u32),
}

impl ServerCounts {
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a server's first request. Returns the number of servers with a first request.
    fn record_opened(&self) -> usize {
        let now = unix_nanos();
        self.update(|state| {
            state.opened_at.entry(self.server).or_insert(now);
            state.opened_at.len()
        })
    }

    fn record_listed(&self) {
        let now = unix_nanos();
        self.update(|state| {
            state.counts.listed += 1;
            state.counts.last_opened = state.opened_at.get(&self.server).copied().unwrap_or(now);
            state.counts.last_listed = now;
        });
    }
}
