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

/// The longest line of a stream, in bytes. An object with its status is far smaller.
const MAX_LINE_BYTES: usize = 16 << 20;

/// The longest time to wait for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of a running instance, over the socket in its state directory. Sends one request at a time.
#[derive(Debug)]
pub(super) struct StatusClient {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    /// The process id of the instance, where the system reports it.
    peer_pid: Option<i32>,
}

/// An error response of the instance.
#[derive(Debug)]
pub(super) struct ErrorStatus {
    /// The message, one sentence.
    pub message: String,
}

impl From<ErrorStatus> for CommandError {
    fn from(error: ErrorStatus) -> Self {
        Self::Failed(error.message)
    }
}

impl StatusClient {
    /// Connects to an instance. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// Returns [`CommandError::Interrupted`] if none is running: it may be restarting.
    pub async fn connect(instance: &Instance) -> Result<Self, CommandError> {
        match Self::connect_if_running(instance).await? {
            Some(client) => Ok(client),
            None => Err(CommandError::Interrupted(format!(
                "no evenkeel instance is running for {instance}; start one with: {}",
                instance.start_command
            ))),
        }
    }

    /// Connects to an instance; `None` if none is running. Must be called within a runtime.
    pub async fn connect_if_running(instance: &Instance) -> Result<Option<Self>, CommandError> {
        let Some(stream) = instance.connect()? else { return Ok(None) };
        let peer_pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(connection_lost)?;
        let connection = tokio::spawn(async move {
            // An error here also fails the request in flight, which reports it.
            let _ = connection.await;
        });
        Ok(Some(Self { sender, connection, peer_pid }))
    }

    /// Requests a JSON document.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CommandError> {
        let body = self.send(Method::GET, path, "application/json", None).await?;
        read_json(body).await
    }

    /// Requests a scan of the files, and waits until the status API shows its result.
    pub async fn scan(&mut self) -> Result<(), CommandError> {
        self.post_and_wait(SCAN_PATH).await.map(drop)
    }

    /// Sends a POST request and waits for its response without a time limit.
    pub async fn post_and_wait(&mut self, path: &str) -> Result<Incoming, CommandError> {
        // The instance must respond at all before an unlimited wait.
        drop(self.send(Method::GET, "/livez", "text/plain", None).await?);
        Ok(self.exchange(Method::POST, path, "application/json", None).await??)
    }

    /// Returns the error for an instance that does not respond.
    pub fn unresponsive_error(&self) -> CommandError {
        let pid = self.peer_pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        CommandError::Interrupted(format!("evenkeel{pid} does not respond"))
    }

    /// Sends a request with an optional JSON body and its content type. An error response is an error.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Incoming, CommandError> {
        Ok(self.request(method, path, accept, body).await??)
    }

    /// Sends a request like [`Self::send`], but returns an error response to the caller.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Result<Incoming, ErrorStatus>, CommandError> {
        let response = timeout(RESPONSE_TIMEOUT, self.exchange(method, path, accept, body)).await;
        response.unwrap_or_else(|_| Err(self.unresponsive_error()))
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
        if let Some((content_type, _)) = body {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let body = body.map(|(_, value)| value.to_string()).unwrap_or_default();
        let request = request.body(Full::new(body.into())).map_err(CommandError::failed)?;
        self.sender.ready().await.map_err(connection_lost)?;
        let response = self.sender.send_request(request).await.map_err(connection_lost)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Ok(response.into_body()));
        }
        let text = read_text(response.into_body()).await?;
        let status_object = serde_json::from_str::<Value>(&text).ok();
        let message = status_object
            .as_ref()
            .and_then(|status_object| status_object.get("message")?.as_str())
            .unwrap_or_else(|| text.trim());
        match (message, status) {
            // This is the response to requests that a shutting down instance no longer handles.
            ("", StatusCode::SERVICE_UNAVAILABLE) => Err(disconnected_error()),
            ("", status) => Ok(Err(ErrorStatus { message: format!("evenkeel returned HTTP {status}") })),
            (message, _) => Ok(Err(ErrorStatus { message: message.to_owned() })),
        }
    }
}

impl Drop for StatusClient {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Reads a JSON body to its end.
pub(super) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, CommandError> {
    let text = read_text(body).await?;
    serde_json::from_str(&text)
        .map_err(|error| CommandError::Failed(format!("cannot parse evenkeel's response: {error}")))
}

async fn read_text(body: Incoming) -> Result<String, CommandError> {
    let bytes = timeout(RESPONSE_TIMEOUT, body.collect()).await;
    let bytes =
        bytes.map_err(|_| CommandError::Interrupted("evenkeel did not complete its response".into()))?;
    let bytes = bytes.map_err(connection_lost)?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of a streamed response body.
#[derive(Debug)]
pub(super) struct ResponseLines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl ResponseLines {
    /// Reads the lines of a response body.
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new() }
    }

    /// Returns the next line without its line end; `None` at the end of the body. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<String>, CommandError> {
        let mut scanned = 0;
        loop {
            let unscanned = self.buffer.get(scanned..).unwrap_or_default();
            if let Some(end) = unscanned.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=scanned + end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned()));
            }
            scanned = self.buffer.len();
            if scanned > MAX_LINE_BYTES {
                return Err(CommandError::Failed("evenkeel sent a line that is too long".into()));
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

/// Returns the error for a stream that was interrupted.
pub(super) fn disconnected_error() -> CommandError {
    CommandError::Interrupted("evenkeel shut down; run the command again".into())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err needs")]
fn connection_lost(error: hyper::Error) -> CommandError {
    CommandError::Interrupted(format!("evenkeel closed the connection before it responded: {error}"))
}
