//! The MCP handshake. rmcp runs it over the same raw requests that calls use; afterwards rmcp is not involved.
//!
//! rmcp implements the revisions and negotiates between the eras. Its running service is not kept: measured, its
//! idle channels alone cost 25 KiB per connection, and the remaining work (notifications, pings) is raw JSON anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rmcp::model::{
    ClientConfig, ClientJsonRpcMessage, ErrorCode, ErrorData, Implementation, JsonRpcMessage,
    ProtocolVersion, RequestId, ServerJsonRpcMessage,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService,
    RxJsonRpcMessage,
};
use rmcp::transport::Transport;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, OutgoingRequest, UpstreamExchange};
use super::error::{ConnectionError, FailureSource};
use super::handshake_response::{
    HandshakeResponse, ProbeOutcome, discover_result, initialize_result, probe_error_outcome,
    probe_failure_outcome, probe_result_outcome,
};
use super::response::RpcResponse;
use super::response_message::ResponseMessage;
use super::{
    Envelope, Era, HandshakeResult, LoopKind, ProtocolViolation, ServerCapabilities, ServerDescription,
    server_message,
};
use crate::resource::Reason;

/// The timeout of a second `server/discover`, to a server that has just responded.
const SECOND_DISCOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Performs the handshake in an era; `None` for a probe (`server/discover`), to which some legacy servers never respond.
/// A server that does not respond to the probe within `probe_timeout` counts as legacy.
pub(super) async fn negotiate(
    connection: &Connection,
    era: Option<Era>,
    probe_timeout: Duration,
) -> Result<HandshakeResult, ConnectionError> {
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let discover = ClientLifecycleMode::Discover { preferred_versions: modern.clone() };
    let mode = match era {
        Some(Era::Legacy) => ClientLifecycleMode::Initialize,
        Some(Era::Modern) => discover.clone(),
        None => ClientLifecycleMode::Auto {
            preferred_versions: modern,
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    };
    let probe_timeout = era.is_none().then_some(probe_timeout);
    let running = match run_rmcp_handshake(connection, mode, probe_timeout).await {
        Ok(running) => running,
        Err(HandshakeError { error, probe_timed_out }) => {
            // A modern server that started more slowly than the probe's timeout is ready by now.
            let second_discover = async {
                let discover = run_rmcp_handshake(connection, discover, None);
                timeout(SECOND_DISCOVER_TIMEOUT, discover).await.ok()?.ok()
            };
            let running = if probe_timed_out { second_discover.await } else { None };
            running.ok_or(error)?
        }
    };
    let server = running
        .peer_info()
        .ok_or_else(|| handshake_failed(connection, "the server sent no description of itself"))?;
    let era = if server.protocol_version.has_initialize() { Era::Legacy } else { Era::Modern };
    let offered = &server.capabilities;
    let capabilities = ServerCapabilities {
        tools: offered.tools.as_ref().map(|tools| tools.list_changed == Some(true)),
        prompts: offered.prompts.as_ref().map(|prompts| prompts.list_changed == Some(true)),
        resources: offered.resources.as_ref().map(|resources| resources.list_changed == Some(true)),
        subscribe: offered.resources.as_ref().is_some_and(|resources| resources.subscribe == Some(true)),
        completions: offered.completions.is_some(),
        logging: offered.logging.is_some(),
    };
    let version = server.protocol_version.to_string();
    if !ProtocolVersion::KNOWN_VERSIONS.contains(&server.protocol_version) {
        let supported = ProtocolVersion::KNOWN_VERSIONS.iter().map(ProtocolVersion::as_str);
        let supported = supported.collect::<Vec<_>>().join(", ");
        return Err(handshake_failed(
            connection,
            &format!("the server selected MCP version {version:?}; supported are {supported}"),
        ));
    }
    let info = server.server_info.as_ref().map(|info| (&*info.name, &*info.version));
    let instructions = server.instructions.as_deref();
    let description = ServerDescription::new(connection.mask(), version, info, instructions);
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
    probe_timeout: Option<Duration>,
) -> Result<RunningService<RoleClient, ClientConfig>, HandshakeError> {
    let (first_error, probe_error) = (FirstError::default(), FirstError::default());
    let probe_unanswered = Arc::new(AtomicBool::new(false));
    let (request_sender, request_receiver) = mpsc::unbounded_channel();
    let transport = HandshakeTransport {
        connection: connection.clone(),
        request_sender,
        request_receiver,
        current: None,
        probe_timeout,
        first_error: first_error.clone(),
        probe_error: probe_error.clone(),
        probe_unanswered: probe_unanswered.clone(),
    };
    let mut config = ClientConfig::default();
    config.protocol_version = ProtocolVersion::V_2025_11_25;
    // It is valid.
    config.capabilities =
        serde_json::from_str(&connection.callers().declared_capabilities().to_json()).unwrap_or_default();
    config.client_info = Implementation::new("evenkeel", env!("CARGO_PKG_VERSION"));
    Box::pin(config.serve_with_lifecycle(transport, mode)).await.map_err(|error| {
        let transport_error = first_error.take();
        let rejected = transport_error
            .as_ref()
            .is_none_or(|error| probe_failure_outcome(error) == Some(ProbeOutcome::Legacy));
        HandshakeError {
            probe_timed_out: rejected && probe_unanswered.load(Ordering::Relaxed),
            // A server that broke at the probe and then rejects `initialize` is a modern one that is broken.
            error: transport_error
                .or_else(|| probe_error.take())
                .unwrap_or_else(|| handshake_failed(connection, &describe_error(&error))),
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
    /// The time for the response to the probe; `None` if no request is a probe.
    probe_timeout: Option<Duration>,
    first_error: FirstError,
    /// The error of a probe at which the server or its connection broke.
    probe_error: FirstError,
    /// Set if the probe got no response.
    probe_unanswered: Arc<AtomicBool>,
}

/// A request in flight.
struct PendingHandshakeRequest {
    id: RequestId,
    exchange: UpstreamExchange,
    method: HandshakeMethod,
    sent_at: Instant,
}

/// The requests of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandshakeMethod {
    Initialize,
    Discover,
    Other,
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
            let probe_ends_at = self.current.as_ref().zip(self.probe_timeout).and_then(|(current, limit)| {
                (current.method == HandshakeMethod::Discover).then(|| current.sent_at + limit)
            });
            tokio::select! {
                // A new request comes first: it replaces one without a response.
                biased;
                request = self.request_receiver.recv() => {
                    if let Some(unanswered) = self.current.replace(request?) {
                        unanswered.exchange.abandon();
                    }
                }
                response = next_response(
                    &self.connection,
                    &mut self.current,
                    self.probe_timeout.map(|_| &self.probe_error),
                ) => {
                    self.current = None;
                    return response.inspect_err(|error| self.first_error.set(error.clone())).ok();
                }
                () = sleep_until(probe_ends_at.unwrap_or_else(Instant::now)), if probe_ends_at.is_some() => {
                    let silent = self.current.take()?;
                    self.probe_unanswered.store(true, Ordering::Relaxed);
                    let id = silent.id.clone();
                    silent.exchange.abandon();
                    return Some(legacy_rejection(&id, "no response to server/discover"));
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
        // Some servers reject `notifications/initialized` and accept all requests: the next one decides.
        return match connection.notify(method, params).await {
            Err(error) if matches!(error.failure_source, FailureSource::Status(_)) => {
                connection.record_violation(ProtocolViolation::NotificationRejected);
                Ok(())
            }
            result => result,
        };
    };
    let id = request.id.clone();
    let request_id = connection.next_id();
    connection.attempt_step().record_request(method);
    let params = connection.with_via(params.unwrap_or("{}"))?;
    let message = server_message::message(Some(request_id), method, Some(&params));
    let request = OutgoingRequest {
        id: request_id,
        method,
        name: None,
        progress_token: None,
        param_headers: Vec::new(),
        is_agent_call: false,
        message,
    };
    let exchange = connection.dispatch(request).await?;
    let method = match method {
        "initialize" => HandshakeMethod::Initialize,
        "server/discover" => HandshakeMethod::Discover,
        _ => HandshakeMethod::Other,
    };
    let request = PendingHandshakeRequest { id, exchange, method, sent_at: Instant::now() };
    // The receiver is dropped only with the handshake.
    let _ = request_sender.send(request);
    Ok(())
}

/// Waits for the response to the current request. `probe_error` is `Some` if `server/discover` is a probe: then a response
/// that identifies a legacy server is passed on as the rejection of an unknown method, which makes rmcp send `initialize`.
async fn next_response(
    connection: &Connection,
    current: &mut Option<PendingHandshakeRequest>,
    probe_error: Option<&FirstError>,
) -> Result<ServerJsonRpcMessage, ConnectionError> {
    let Some(PendingHandshakeRequest { id, exchange, method, sent_at: _ }) = current else {
        return std::future::pending().await;
    };
    let probe_error = probe_error.filter(|_| *method == HandshakeMethod::Discover);
    let response = loop {
        match exchange.next().await {
            Ok(ResponseMessage::Response(response)) => break response,
            Ok(_) => {}
            Err(error)
                if let Some(probe_error) = probe_error
                    && probe_failure_outcome(&error) == Some(ProbeOutcome::Legacy) =>
            {
                if error.dispatched && error.failure_source != FailureSource::Response {
                    probe_error.set(error.clone());
                }
                return Ok(legacy_rejection(id, &error.problem.message));
            }
            Err(error) if error.failure_source == FailureSource::Response => {
                return Err(handshake_failed(connection, &error.problem.message));
            }
            Err(error) => return Err(error),
        }
    };
    let (member, value) = match &response {
        RpcResponse::Error(raw) => {
            if let Some(loop_kind) = LoopKind::from_error(raw) {
                return Err(loop_kind.connection_error());
            }
            if probe_error.is_some() && probe_error_outcome(raw) == ProbeOutcome::Legacy {
                let why = server_message::error_message(raw).unwrap_or_default();
                return Ok(legacy_rejection(id, &why));
            }
            ("error", serde_json::from_slice(raw).unwrap_or_default())
        }
        RpcResponse::Result(raw) => {
            if probe_error.is_some() && probe_result_outcome(raw) == ProbeOutcome::Legacy {
                return Ok(legacy_rejection(id, "the result of server/discover is that of another method"));
            }
            let read = match method {
                HandshakeMethod::Initialize => initialize_result(raw),
                HandshakeMethod::Discover => discover_result(raw),
                HandshakeMethod::Other => None,
            };
            let Some(HandshakeResponse { result, was_invalid }) = read else {
                let excerpt = String::from_utf8_lossy(raw);
                let message = format!("the response is not that of an MCP server: {excerpt}");
                return Err(handshake_failed(connection, &message));
            };
            if was_invalid {
                connection.record_violation(ProtocolViolation::InvalidHandshake);
            }
            if *method == HandshakeMethod::Initialize
                && let Some(version) = result.get("protocolVersion").and_then(Value::as_str)
            {
                connection.set_protocol_version(version);
            }
            ("result", result)
        }
    };
    serde_json::from_value(json!({ "jsonrpc": "2.0", "id": id, member: value }))
        .map_err(|_| handshake_failed(connection, "the response is not that of an MCP server"))
}

/// Returns the response by which rmcp recognizes a legacy server.
fn legacy_rejection(id: &RequestId, why: &str) -> ServerJsonRpcMessage {
    let error = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, why.to_owned(), None);
    ServerJsonRpcMessage::error(error, Some(id.clone()))
}
