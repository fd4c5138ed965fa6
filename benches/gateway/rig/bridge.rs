//! The floor of the stdio part: serves a stdio server over HTTP with the least work. It replaces each request's id by a
//! unique one, writes the line, and returns the line with that id as the response.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::ChildStdin;
use tokio::sync::oneshot;

use super::Result;
use super::process::role_command;

/// The state that the requests in flight share.
struct StdioServer {
    stdin: tokio::sync::Mutex<ChildStdin>,
    pending: Mutex<HashMap<u64, oneshot::Sender<String>>>,
    last_id: AtomicU64,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// Starts the server, which is this program in another role, and serves until the process ends.
pub async fn serve(listener: TcpListener, role: &[String]) -> Result<()> {
    let mut child = role_command(role)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().ok_or("no stdin")?.into();
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    let server = Arc::new(StdioServer { stdin, pending: Mutex::default(), last_id: AtomicU64::default() });
    let server_reader = server.clone();
    tokio::spawn(async move {
        while let Some(line) = lines.next_line().await? {
            let id = serde_json::from_str::<Envelope<'_>>(&line)?.id.map_or("", RawValue::get).parse()?;
            let sender = server_reader.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(sender) = sender {
                // The caller may have disconnected.
                let _ = sender.send(line);
            }
        }
        Result::Ok(())
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let server = server.clone();
        let service = service_fn(move |request| forward(server.clone(), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn forward(server: Arc<StdioServer>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await?.to_bytes();
    let text = std::str::from_utf8(&body)?;
    let Some(id) = serde_json::from_str::<Envelope<'_>>(text)?.id else {
        server.write(format!("{text}\n")).await?;
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::ACCEPTED;
        return Ok(response);
    };
    let unique = server.last_id.fetch_add(1, Ordering::Relaxed);
    let (sender, receiver) = oneshot::channel();
    server.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(unique, sender);
    server.write(with_id(text, id, &unique.to_string(), "\n")?).await?;
    let line = receiver.await?;
    let unique_id = serde_json::from_str::<Envelope<'_>>(&line)?.id.ok_or("a response without an id")?;
    let mut response = Response::new(Full::new(Bytes::from(with_id(&line, unique_id, id.get(), "")?)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Replaces the id, which must borrow from the text.
fn with_id(text: &str, id: &RawValue, new: &str, end: &str) -> Result<String> {
    let start = id.get().as_ptr().addr() - text.as_ptr().addr();
    let (before, rest) = text.split_at_checked(start).ok_or("the id is not in the text")?;
    let after = rest.get(id.get().len()..).ok_or("the id is not in the text")?;
    Ok([before, new, after, end].concat())
}

impl StdioServer {
    async fn write(&self, line: String) -> Result<()> {
        Ok(self.stdin.lock().await.write_all(line.as_bytes()).await?)
    }
}
