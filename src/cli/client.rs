use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::CommandError;
use super::instance::Instance;
use crate::admin::SCAN_PATH;

/// The longest line of a stream: an object with its status is far smaller.
const MAX_LINE_BYTES: usize = 16 << 20;

/// A daemon that takes longer than this to answer does not answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon, over the socket in its state directory. One question at a time.
#[derive(Debug)]
pub(super) struct StatusClient {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    /// Its process, where the system tells.
    peer_pid: Option<i32>,
}

/// What the daemon said no with.
#[derive(Debug)]
pub(super) struct ErrorStatus {
    /// One sentence.
    pub message: String,
}

impl From<ErrorStatus> for CommandError {
    fn from(refused: ErrorStatus) -> Self {
        Self::Failed(refused.message)
    }
}

impl StatusClient {
    /// Finds a daemon; that none is running is [`CommandError::Interrupted`], since one may be starting again. Must be called
    /// within a runtime.
    pub async fn connect(whose: &Instance) -> Result<Self, CommandError> {
        match Self::connect_if_running(whose).await? {
            Some(client) => Ok(client),
            None => Err(CommandError::Interrupted(format!(
                "no evenkeel is running for {whose}; start it with: {}",
                whose.start_command
            ))),
        }
    }

    /// The same, where it is no failure that none is running.
    pub async fn connect_if_running(whose: &Instance) -> Result<Option<Self>, CommandError> {
        let Some(stream) = whose.connect()? else { return Ok(None) };
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(connection_lost)?;
        let connection = tokio::spawn(async move {
            // What goes wrong here is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Some(Self { sender, connection, peer_pid: process }))
    }

    /// Asks for a JSON document.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CommandError> {
        let body = self.send(Method::GET, path, "application/json", None).await?;
        read_json(body).await
    }

    /// Has it look at the files, and waits until what they hold is in what it tells.
    pub async fn scan(&mut self) -> Result<(), CommandError> {
        self.post_and_wait(SCAN_PATH).await.map(drop)
    }

    /// Has it do something, and waits until it is done, however long that takes.
    pub async fn post_and_wait(&mut self, path: &str) -> Result<Incoming, CommandError> {
        // It must be there for that.
        drop(self.send(Method::GET, "/livez", "text/plain", None).await?);
        Ok(self.exchange(Method::POST, path, "application/json", None).await??)
    }

    /// What is said of a daemon that does not answer.
    pub fn unresponsive_error(&self) -> CommandError {
        let process = self.peer_pid.map(|process| format!(" (process {process})")).unwrap_or_default();
        CommandError::Interrupted(format!("evenkeel{process} does not answer"))
    }

    /// Sends a request, with a JSON body of the content type given; an answer that is no success is a refusal.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Incoming, CommandError> {
        Ok(self.request(method, path, accept, body).await??)
    }

    /// The same, for those that look at refusals.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Result<Incoming, ErrorStatus>, CommandError> {
        let answer = timeout(RESPONSE_TIMEOUT, self.exchange(method, path, accept, body)).await;
        answer.unwrap_or_else(|_| Err(self.unresponsive_error()))
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Result<Incoming, ErrorStatus>, CommandError> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, "localhost").header(ACCEPT, accept);
        if let Some((kind, _)) = body {
            request = request.header(CONTENT_TYPE, kind);
        }
        let body = body.map(|(_, value)| value.to_string()).unwrap_or_default();
        let request = request.body(Full::new(body.into())).map_err(CommandError::failed)?;
        self.sender.ready().await.map_err(connection_lost)?;
        let answer = self.sender.send_request(request).await.map_err(connection_lost)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Ok(answer.into_body()));
        }
        let text = read_text(answer.into_body()).await?;
        let told = serde_json::from_str::<Value>(&text).ok();
        let message =
            told.as_ref().and_then(|told| told.get("message")?.as_str()).unwrap_or_else(|| text.trim());
        match (message, status) {
            // So it answers work that it does not do any more, since it ends.
            ("", StatusCode::SERVICE_UNAVAILABLE) => Err(disconnected_error()),
            ("", status) => Ok(Err(ErrorStatus { message: format!("evenkeel answered HTTP {status}") })),
            (message, _) => Ok(Err(ErrorStatus { message: message.to_owned() })),
        }
    }
}

impl Drop for StatusClient {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The whole of a JSON body.
pub(super) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, CommandError> {
    let text = read_text(body).await?;
    serde_json::from_str(&text)
        .map_err(|error| CommandError::Failed(format!("the daemon's answer is not understood: {error}")))
}

async fn read_text(body: Incoming) -> Result<String, CommandError> {
    let bytes = timeout(RESPONSE_TIMEOUT, body.collect()).await;
    let bytes = bytes.map_err(|_| CommandError::Interrupted("evenkeel does not answer to the end".into()))?;
    let bytes = bytes.map_err(connection_lost)?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of a body that goes on, until evenkeel ends.
#[derive(Debug)]
pub(super) struct ResponseLines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl ResponseLines {
    /// The lines of this body.
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new() }
    }

    /// The next line without its end; `None` where the body ends.
    pub async fn next(&mut self) -> Result<Option<String>, CommandError> {
        let mut looked = 0;
        loop {
            let rest = self.buffer.get(looked..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=looked + end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned()));
            }
            looked = self.buffer.len();
            if looked > MAX_LINE_BYTES {
                return Err(CommandError::Failed("the daemon sent a line that does not end".into()));
            }
            match self.body.frame().await {
                Some(frame) => {
                    self.buffer
                        .extend(frame.map_err(|_| disconnected_error())?.data_ref().into_iter().flatten());
                }
                None => return Ok(None),
            }
        }
    }
}

/// What is said when something that goes on was cut off.
pub(super) fn disconnected_error() -> CommandError {
    CommandError::Interrupted("evenkeel has ended; start the command again".into())
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn connection_lost(error: hyper::Error) -> CommandError {
    CommandError::Interrupted(format!("evenkeel ended before it had answered: {error}"))
}
