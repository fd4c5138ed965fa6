//! The opening handshake: rmcp speaks it, over the raw requests that calls use too, and then steps aside.
//!
//! rmcp knows the revisions and negotiates between the eras. Its running service is not kept: measured, its
//! idle channels alone cost 25 KiB per connection, and what is left to do (notices, pings) is raw JSON anyway.

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

/// How long a server that has just answered may take to answer again.
const SECOND_DISCOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// So much of a server's instructions is kept, in characters.
const MAX_INSTRUCTIONS_CHARS: usize = 4_096;
/// The same of each of its names.
const MAX_NAME_CHARS: usize = 256;

/// Opens the conversation. A remembered era spares the probe, which a silent legacy server lets run out.
pub(super) async fn negotiate(
    link: &Connection,
    remembered: Option<Era>,
) -> Result<HandshakeResult, ConnectionError> {
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let discover = ClientLifecycleMode::Discover { preferred_versions: modern.clone() };
    let mode = match remembered {
        Some(Era::Legacy) => ClientLifecycleMode::Initialize,
        Some(Era::Modern) => discover.clone(),
        None => ClientLifecycleMode::Auto {
            preferred_versions: modern,
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    };
    let running = match run_rmcp_handshake(link, mode).await {
        Ok(running) => running,
        Err(HandshakeError { error, probe_timed_out: slow }) => {
            // A modern server that took longer to start than the probe waits is there now.
            let again = async {
                timeout(SECOND_DISCOVER_TIMEOUT, run_rmcp_handshake(link, discover)).await.ok()?.ok()
            };
            let running = if slow { again.await } else { None };
            running.ok_or(error)?
        }
    };
    let known =
        running.peer_info().ok_or_else(|| handshake_failed(link, "the server told nothing of itself"))?;
    let era = if known.protocol_version.has_initialize() { Era::Legacy } else { Era::Modern };
    let info = known.server_info.as_ref().map(|info| ServerInfo {
        name: link.redacted_line(&info.name, MAX_NAME_CHARS),
        version: link.redacted_line(&info.version, MAX_NAME_CHARS),
    });
    let offered = &known.capabilities;
    let capabilities = ServerCapabilities {
        tools: offered.tools.as_ref().map(|tools| tools.list_changed == Some(true)),
        prompts: offered.prompts.as_ref().map(|prompts| prompts.list_changed == Some(true)),
        resources: offered.resources.as_ref().map(|resources| resources.list_changed == Some(true)),
        subscribe: offered.resources.as_ref().is_some_and(|resources| resources.subscribe == Some(true)),
        completions: offered.completions.is_some(),
        logging: offered.logging.is_some(),
    };
    let instructions = known.instructions.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let instructions = instructions
        .map(|text| link.mask().redact(text).chars().take(MAX_INSTRUCTIONS_CHARS).collect::<String>().into());
    let version = known.protocol_version.to_string();
    if !ProtocolVersion::KNOWN_VERSIONS.contains(&known.protocol_version) {
        let known = ProtocolVersion::KNOWN_VERSIONS.iter().map(ProtocolVersion::as_str);
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(handshake_failed(link, &format!("it speaks MCP {version:?}, which is none of {known}")));
    }
    let about =
        ServerDescription { server_info: info.unwrap_or_default(), protocol_version: version, instructions };
    let peer = HandshakeResult::new(era, about, capabilities);
    drop(known);
    // Ends rmcp's task; closing the stage closes nothing of ours.
    let _ = running.cancel().await;
    Ok(peer)
}

/// Why a conversation was not opened.
struct HandshakeError {
    error: ConnectionError,
    /// The server did not answer the probe in time, and then refused what a legacy server takes.
    probe_timed_out: bool,
}

/// Has rmcp open the conversation in one way.
async fn run_rmcp_handshake(
    link: &Connection,
    mode: ClientLifecycleMode,
) -> Result<RunningService<RoleClient, ClientConfig>, HandshakeError> {
    let (failure, missed) = (FirstError::default(), Arc::new(AtomicBool::new(false)));
    let (sent, pending) = mpsc::unbounded_channel();
    let stage = HandshakeTransport {
        connection: link.clone(),
        request_sender: sent,
        request_receiver: pending,
        current: None,
        first_error: failure.clone(),
        probe_unanswered: missed.clone(),
    };
    let mut config = ClientConfig::default();
    config.protocol_version = ProtocolVersion::V_2025_11_25;
    config.capabilities = ClientCapabilities::default();
    config.client_info = Implementation::new("evenkeel", env!("CARGO_PKG_VERSION"));
    Box::pin(config.serve_with_lifecycle(stage, mode)).await.map_err(|error| {
        let failure = failure.take();
        let refused = failure.as_ref().is_none_or(rejects_method);
        HandshakeError {
            probe_timed_out: refused && missed.load(Ordering::Relaxed),
            error: failure.unwrap_or_else(|| handshake_failed(link, &describe_error(&error))),
        }
    })
}

/// Why the handshake failed, where it is known better than rmcp can say.
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
    use ClientInitializeError as Failed;
    match error {
        Failed::JsonRpcError(error) => format!("the server answered: {}", error.message),
        Failed::LegacyFallbackFailed { discover, fallback } => {
            let (discover, fallback) = (describe_error(discover), describe_error(fallback));
            // Most servers know one of the two, and refuse the other as unknown.
            let unknown = discover == fallback || discover.to_lowercase().contains("method not found");
            if unknown {
                fallback
            } else {
                format!("{discover} (server/discover), and {fallback} (initialize)")
            }
        }
        Failed::ExpectedInitResponse(_) | Failed::ExpectedInitResult(_) => {
            "its answer is not one of an MCP server".to_owned()
        }
        other => other.to_string(),
    }
}

fn handshake_failed(link: &Connection, why: &str) -> ConnectionError {
    ConnectionError::new(
        Reason::HandshakeFailed,
        format!("the MCP handshake failed: {}", link.redacted_line(why, 300)),
    )
}

/// What rmcp takes for a transport: its requests go out as raw requests of the link.
struct HandshakeTransport {
    connection: Connection,
    request_sender: mpsc::UnboundedSender<PendingHandshakeRequest>,
    request_receiver: mpsc::UnboundedReceiver<PendingHandshakeRequest>,
    current: Option<PendingHandshakeRequest>,
    first_error: FirstError,
    /// Set when the probe went unanswered.
    probe_unanswered: Arc<AtomicBool>,
}

/// A request under way.
struct PendingHandshakeRequest {
    id: RequestId,
    exchange: UpstreamExchange,
    /// The question that only a modern server knows.
    is_probe: bool,
}

impl Transport<RoleClient> for HandshakeTransport {
    type Error = ConnectionError;

    fn send(
        &mut self,
        item: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (link, sent, failure) =
            (self.connection.clone(), self.request_sender.clone(), self.first_error.clone());
        async move {
            let result = send_message(&link, item, &sent).await;
            result.inspect_err(|error| failure.set(error.clone()))
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            tokio::select! {
                // A request that replaces an unanswered one (the probe of a silent server) comes first.
                biased;
                asked = self.request_receiver.recv() => {
                    if let Some(unanswered) = self.current.replace(asked?) {
                        self.probe_unanswered.fetch_or(unanswered.is_probe, Ordering::Relaxed);
                        unanswered.exchange.abandon();
                    }
                }
                answer = next_response(&self.connection, &mut self.current) => {
                    self.current = None;
                    return answer.inspect_err(|error| self.first_error.set(error.clone())).ok();
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), ConnectionError> {
        Ok(())
    }
}

async fn send_message(
    link: &Connection,
    item: ClientJsonRpcMessage,
    sent: &mpsc::UnboundedSender<PendingHandshakeRequest>,
) -> Result<(), ConnectionError> {
    let text = serde_json::to_string(&item).map_err(|error| handshake_failed(link, &error.to_string()))?;
    let envelope =
        Envelope::parse(text.as_bytes()).map_err(|error| handshake_failed(link, &error.to_string()))?;
    let Some(method) = envelope.method.as_deref() else {
        return Ok(());
    };
    let params = envelope.params.map(RawValue::get);
    let JsonRpcMessage::Request(request) = &item else {
        return link.notify(method, params).await;
    };
    let id = request.id.clone();
    let number = link.next_id();
    let params = link.with_via(params.unwrap_or("{}"))?;
    let message = server_message::message(Some(number), method, Some(&params));
    let exchange = link.dispatch(number, None, method, None, Vec::new(), message).await?;
    let request = PendingHandshakeRequest { id, exchange, is_probe: method == "server/discover" };
    // The stage is dropped only with the handshake.
    let _ = sent.send(request);
    Ok(())
}

fn rejects_method(error: &ConnectionError) -> bool {
    let FailureSource::Status(status) = error.failure_source else { return false };
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 408 | 425 | 429)
}

/// The answer to what was asked last.
async fn next_response(
    link: &Connection,
    waiting: &mut Option<PendingHandshakeRequest>,
) -> Result<ServerJsonRpcMessage, ConnectionError> {
    let Some(PendingHandshakeRequest { id, exchange, is_probe: probe }) = waiting else {
        return std::future::pending().await;
    };
    let (member, raw) = loop {
        match exchange.next().await {
            Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_)) => {}
            Ok(ResponseMessage::Response(RpcResponse::Result(raw))) => break ("result", raw),
            Ok(ResponseMessage::Response(RpcResponse::Error(raw))) => match LoopKind::from_error(&raw) {
                Some(ring) => return Err(ring.connection_error()),
                None => break ("error", raw),
            },
            // A client error that is no JSON-RPC: whatever stands there does not know the probe.
            Err(error) if *probe && rejects_method(&error) => {
                let unknown = ErrorData::invalid_request(error.problem.message, None);
                return Ok(ServerJsonRpcMessage::error(unknown, Some(id.clone())));
            }
            Err(error) => return Err(error),
        }
    };
    let id = serde_json::to_string(id).unwrap_or_default();
    let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{}}}"#, String::from_utf8_lossy(&raw));
    serde_json::from_str(&text)
        .map_err(|error| handshake_failed(link, &format!("its answer could not be read: {error}")))
}
