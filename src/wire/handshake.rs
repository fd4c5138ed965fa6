//! The MCP handshake. rmcp runs it over the same raw requests that calls use; afterwards rmcp is not involved.
//!
//! rmcp implements the revisions and negotiates between the eras. Its running service is not kept: measured, its
//! idle channels alone cost 25 KiB per connection, and the remaining work (notifications, pings) is raw JSON anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientJsonRpcMessage, ErrorData, Implementation, JsonRpcMessage,
    ProtocolVersion, RequestId, ServerJsonRpcMessage,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService,
    RxJsonRpcMessage,
};
use rmcp::transport::Transport;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::{Connection, UpstreamExchange};
use super::error::{ConnectionError, FailureSource};
use super::response::{ResponseMessage, RpcResponse};
use super::{
    Envelope, Era, HandshakeResult, LoopKind, ServerCapabilities, ServerDescription, server_message,
};
use crate::resource::{Reason, ServerInfo};

/// The timeout of a second `server/discover`, to a server that has just responded.
const SECOND_DISCOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of a server's instructions that is kept, in characters.
const MAX_INSTRUCTIONS_CHARS: usize = 4_096;
/// The maximum length of the server's name and version, in characters.
const MAX_NAME_CHARS: usize = 256;

/// Performs the handshake. A cached era makes the `server/discover` probe unnecessary, to which some legacy servers
/// never respond.
pub(super) async fn negotiate(
    connection: &Connection,
    cached_era: Option<Era>,
) -> Result<HandshakeResult, ConnectionError> {
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let discover = ClientLifecycleMode::Discover { preferred_versions: modern.clone() };
    let mode = match cached_era {
        Some(Era::Legacy) => ClientLifecycleMode::Initialize,
        Some(Era::Modern) => discover.clone(),
        None => ClientLifecycleMode::Auto {
            preferred_versions: modern,
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    };
    let running = match run_rmcp_handshake(connection, mode).await {
        Ok(running) => running,
        Err(HandshakeError { error, probe_timed_out }) => {
            // A modern server that started more slowly than the probe's timeout is ready by now.
            let second_discover = async {
                timeout(SECOND_DISCOVER_TIMEOUT, run_rmcp_handshake(connection, discover)).await.ok()?.ok()
            };
            let running = if probe_timed_out { second_discover.await } else { None };
            running.ok_or(error)?
        }
    };
    let server = running
        .peer_info()
        .ok_or_else(|| handshake_failed(connection, "the server sent no description of itself"))?;
    let era = if server.protocol_version.has_initialize() { Era::Legacy } else { Era::Modern };
    let info = server.server_info.as_ref().map(|info| ServerInfo {
        name: connection.redacted_line(&info.name, MAX_NAME_CHARS),
        version: connection.redacted_line(&info.version, MAX_NAME_CHARS),
    });
    let offered = &server.capabilities;
    let capabilities = ServerCapabilities {
        tools: offered.tools.as_ref().map(|tools| tools.list_changed == Some(true)),
        prompts: offered.prompts.as_ref().map(|prompts| prompts.list_changed == Some(true)),
        resources: offered.resources.as_ref().map(|resources| resources.list_changed == Some(true)),
        subscribe: offered.resources.as_ref().is_some_and(|resources| resources.subscribe == Some(true)),
        completions: offered.completions.is_some(),
        logging: offered.logging.is_some(),
    };
    let instructions = server.instructions.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let instructions = instructions.map(|text| {
        connection.mask().redact(text).chars().take(MAX_INSTRUCTIONS_CHARS).collect::<String>().into()
    });
    let version = server.protocol_version.to_string();
    if !ProtocolVersion::KNOWN_VERSIONS.contains(&server.protocol_version) {
        let supported = ProtocolVersion::KNOWN_VERSIONS.iter().map(ProtocolVersion::as_str);
        let supported = supported.collect::<Vec<_>>().join(", ");
        return Err(handshake_failed(
            connection,
            &format!("the server selected MCP version {version:?}; supported are {supported}"),
        ));
    }
    let description =
        ServerDescription { server_info: info.unwrap_or_default(), protocol_version: version, instructions };
    let handshake = HandshakeResult::new(era, description, capabilities);
    drop(server);
    // Ends rmcp's task. Closing its transport does not close the connection.
    let _ = running.cancel().await;
    Ok(handshake)
}

/// The error of one handshake.
struct HandshakeError {
    error: ConnectionError,
    /// True if the server did not respond to the probe in time and then rejected `initialize`.
    probe_timed_out: bool,
}

/// Runs rmcp's handshake in one lifecycle mode.
async fn run_rmcp_handshake(
    connection: &Connection,
    mode: ClientLifecycleMode,
) -> Result<RunningService<RoleClient, ClientConfig>, HandshakeError> {
    let (first_error, probe_unanswered) = (FirstError::default(), Arc::new(AtomicBool::new(false)));
    let (request_sender, request_receiver) = mpsc::unbounded_channel();
    let transport = HandshakeTransport {
        connection: connection.clone(),
        request_sender,
        request_receiver,
        current: None,
        first_error: first_error.clone(),
        probe_unanswered: probe_unanswered.clone(),
    };
    let mut config = ClientConfig::default();
    config.protocol_version = ProtocolVersion::V_2025_11_25;
    config.capabilities = ClientCapabilities::default();
    config.client_info = Implementation::new("evenkeel", env!("CARGO_PKG_VERSION"));
    Box::pin(config.serve_with_lifecycle(transport, mode)).await.map_err(|error| {
        let transport_error = first_error.take();
        let rejected = transport_error.as_ref().is_none_or(rejects_method);
        HandshakeError {
            probe_timed_out: rejected && probe_unanswered.load(Ordering::Relaxed),
            error: transport_error.unwrap_or_else(|| handshake_failed(connection, &describe_error(&error))),
        }
    })
}

/// The first transport error of the handshake, which is more precise than rmcp's.
#[derive(Clone, Default)]
struct FirstError(Arc<Mutex<Option<ConnectionError>>>);

impl FirstError {
    fn set(&self, error: ConnectionError) {
        self.0.lock().get_or_insert(error);
    }

    fn take(&self) -> Option<ConnectionError> {
        self.0.lock().take()
    }
}

fn describe_error(error: &ClientInitializeError) -> String {
    use ClientInitializeError as InitializeError;
    match error {
        InitializeError::JsonRpcError(error) => format!("the server returned an error: {}", error.message),
        InitializeError::LegacyFallbackFailed { discover, fallback } => {
            let (discover, fallback) = (describe_error(discover), describe_error(fallback));
            // Most servers implement one of the two and reject the other as an unknown method.
            let is_unknown_method =
                discover == fallback || discover.to_lowercase().contains("method not found");
            if is_unknown_method {
                fallback
            } else {
                format!("{discover} (server/discover), and {fallback} (initialize)")
            }
        }
        InitializeError::ExpectedInitResponse(_) | InitializeError::ExpectedInitResult(_) => {
            "the response is not one of an MCP server".to_owned()
        }
        other => other.to_string(),
    }
}

fn handshake_failed(connection: &Connection, reason: &str) -> ConnectionError {
    ConnectionError::new(
        Reason::HandshakeFailed,
        format!("the MCP handshake failed: {}", connection.redacted_line(reason, 300)),
    )
}

/// The transport that rmcp uses. Sends rmcp's requests as raw requests of the connection.
struct HandshakeTransport {
    connection: Connection,
    request_sender: mpsc::UnboundedSender<PendingHandshakeRequest>,
    request_receiver: mpsc::UnboundedReceiver<PendingHandshakeRequest>,
    current: Option<PendingHandshakeRequest>,
    first_error: FirstError,
    /// Set if the probe got no response.
    probe_unanswered: Arc<AtomicBool>,
}

/// A request in flight.
struct PendingHandshakeRequest {
    id: RequestId,
    exchange: UpstreamExchange,
    /// True for `server/discover`, which only a modern server implements.
    is_probe: bool,
}

impl Transport<RoleClient> for HandshakeTransport {
    type Error = ConnectionError;

    fn send(
        &mut self,
        item: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (connection, request_sender, first_error) =
            (self.connection.clone(), self.request_sender.clone(), self.first_error.clone());
        async move {
            let result = send_message(&connection, item, &request_sender).await;
            result.inspect_err(|error| first_error.set(error.clone()))
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            tokio::select! {
                // A new request comes first: it replaces one without a response (the probe of a silent server).
                biased;
                request = self.request_receiver.recv() => {
                    if let Some(unanswered) = self.current.replace(request?) {
                        self.probe_unanswered.fetch_or(unanswered.is_probe, Ordering::Relaxed);
                        unanswered.exchange.abandon();
                    }
                }
                response = next_response(&self.connection, &mut self.current) => {
                    self.current = None;
                    return response.inspect_err(|error| self.first_error.set(error.clone())).ok();
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), ConnectionError> {
        Ok(())
    }
}

/// Sends a message of rmcp. A request is handed to [`HandshakeTransport`], which waits for its response.
async fn send_message(
    connection: &Connection,
    item: ClientJsonRpcMessage,
    request_sender: &mpsc::UnboundedSender<PendingHandshakeRequest>,
) -> Result<(), ConnectionError> {
    let text =
        serde_json::to_string(&item).map_err(|error| handshake_failed(connection, &error.to_string()))?;
    let envelope =
        Envelope::parse(text.as_bytes()).map_err(|error| handshake_failed(connection, &error.to_string()))?;
    let Some(method) = envelope.method.as_deref() else {
        return Ok(());
    };
    let params = envelope.params.map(RawValue::get);
    let JsonRpcMessage::Request(request) = &item else {
        return connection.notify(method, params).await;
    };
    let id = request.id.clone();
    let request_id = connection.next_id();
    let params = connection.with_via(params.unwrap_or("{}"))?;
    let message = server_message::message(Some(request_id), method, Some(&params));
    let exchange = connection.dispatch(request_id, None, method, None, Vec::new(), message).await?;
    let request = PendingHandshakeRequest { id, exchange, is_probe: method == "server/discover" };
    // The receiver is dropped only with the handshake.
    let _ = request_sender.send(request);
    Ok(())
}

/// True for a client error by which an HTTP server may reject an unknown method; not for 401, 403, 408, 425 and 429.
fn rejects_method(error: &ConnectionError) -> bool {
    let FailureSource::Status(status) = error.failure_source else { return false };
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 408 | 425 | 429)
}

/// Waits for the response to the current request.
async fn next_response(
    connection: &Connection,
    current: &mut Option<PendingHandshakeRequest>,
) -> Result<ServerJsonRpcMessage, ConnectionError> {
    let Some(PendingHandshakeRequest { id, exchange, is_probe }) = current else {
        return std::future::pending().await;
    };
    let (member, raw) = loop {
        match exchange.next().await {
            Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_)) => {}
            Ok(ResponseMessage::Response(RpcResponse::Result(raw))) => break ("result", raw),
            Ok(ResponseMessage::Response(RpcResponse::Error(raw))) => match LoopKind::from_error(&raw) {
                Some(loop_kind) => return Err(loop_kind.connection_error()),
                None => break ("error", raw),
            },
            // A client error without a JSON-RPC body: the server does not implement the probe.
            Err(error) if *is_probe && rejects_method(&error) => {
                let error = ErrorData::invalid_request(error.problem.message, None);
                return Ok(ServerJsonRpcMessage::error(error, Some(id.clone())));
            }
            Err(error) => return Err(error),
        }
    };
    let id = serde_json::to_string(id).unwrap_or_default();
    let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{}}}"#, String::from_utf8_lossy(&raw));
    serde_json::from_str(&text)
        .map_err(|error| handshake_failed(connection, &format!("cannot parse the response: {error}")))
}
