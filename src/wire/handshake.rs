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
    Envelope, Era, HandshakeResult, LoopDetection, ServerCapabilities, ServerDescription, server_message,
};
use crate::resource::{Reason, ServerInfo};

/// How long a server that has just answered may take to answer again.
const AWAKE: Duration = Duration::from_secs(5);
/// So much of a server's instructions is kept, in characters.
const INSTRUCTIONS: usize = 4_096;
/// The same of each of its names.
const NAME: usize = 256;

/// Opens the conversation. A remembered era spares the probe, which a silent legacy server lets run out.
pub(super) async fn shake(
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
    let running = match converse(link, mode).await {
        Ok(running) => running,
        Err(HandshakeError { error, slow }) => {
            // A modern server that took longer to start than the probe waits is there now.
            let again = async { timeout(AWAKE, converse(link, discover)).await.ok()?.ok() };
            let running = if slow { again.await } else { None };
            running.ok_or(error)?
        }
    };
    let known = running.peer_info().ok_or_else(|| failed(link, "the server told nothing of itself"))?;
    let era = if known.protocol_version.has_initialize() { Era::Legacy } else { Era::Modern };
    let info = known.server_info.as_ref().map(|info| ServerInfo {
        name: link.words(&info.name, NAME),
        version: link.words(&info.version, NAME),
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
    let instructions =
        instructions.map(|text| link.mask().text(text).chars().take(INSTRUCTIONS).collect::<String>().into());
    let version = known.protocol_version.to_string();
    if !ProtocolVersion::KNOWN_VERSIONS.contains(&known.protocol_version) {
        let known = ProtocolVersion::KNOWN_VERSIONS.iter().map(ProtocolVersion::as_str);
        let known = known.collect::<Vec<_>>().join(", ");
        return Err(failed(link, &format!("it speaks MCP {version:?}, which is none of {known}")));
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
    slow: bool,
}

/// Has rmcp open the conversation in one way.
async fn converse(
    link: &Connection,
    mode: ClientLifecycleMode,
) -> Result<RunningService<RoleClient, ClientConfig>, HandshakeError> {
    let (failure, missed) = (Failure::default(), Arc::new(AtomicBool::new(false)));
    let (sent, pending) = mpsc::unbounded_channel();
    let stage = Stage {
        link: link.clone(),
        sent,
        pending,
        waiting: None,
        failure: failure.clone(),
        missed: missed.clone(),
    };
    let mut config = ClientConfig::default();
    config.protocol_version = ProtocolVersion::V_2025_11_25;
    config.capabilities = ClientCapabilities::default();
    config.client_info = Implementation::new("evenkeel", env!("CARGO_PKG_VERSION"));
    Box::pin(config.serve_with_lifecycle(stage, mode)).await.map_err(|error| {
        let failure = failure.take();
        let refused = failure.as_ref().is_none_or(is_unknown);
        HandshakeError {
            slow: refused && missed.load(Ordering::Relaxed),
            error: failure.unwrap_or_else(|| failed(link, &told(&error))),
        }
    })
}

/// Why the handshake failed, where it is known better than rmcp can say.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<ConnectionError>>>);

impl Failure {
    fn set(&self, error: ConnectionError) {
        self.0.lock().get_or_insert(error);
    }

    fn take(&self) -> Option<ConnectionError> {
        self.0.lock().take()
    }
}

fn told(error: &ClientInitializeError) -> String {
    use ClientInitializeError as Failed;
    match error {
        Failed::JsonRpcError(error) => format!("the server answered: {}", error.message),
        Failed::LegacyFallbackFailed { discover, fallback } => {
            let (discover, fallback) = (told(discover), told(fallback));
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

fn failed(link: &Connection, why: &str) -> ConnectionError {
    ConnectionError::new(
        Reason::HandshakeFailed,
        format!("the MCP handshake failed: {}", link.words(why, 300)),
    )
}

/// What rmcp takes for a transport: its requests go out as raw requests of the link.
struct Stage {
    link: Connection,
    sent: mpsc::UnboundedSender<Asked>,
    pending: mpsc::UnboundedReceiver<Asked>,
    waiting: Option<Asked>,
    failure: Failure,
    /// Set when the probe went unanswered.
    missed: Arc<AtomicBool>,
}

/// A request under way.
struct Asked {
    id: RequestId,
    exchange: UpstreamExchange,
    /// The question that only a modern server knows.
    probe: bool,
}

impl Transport<RoleClient> for Stage {
    type Error = ConnectionError;

    fn send(
        &mut self,
        item: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (link, sent, failure) = (self.link.clone(), self.sent.clone(), self.failure.clone());
        async move {
            let result = pass_on(&link, item, &sent).await;
            result.inspect_err(|error| failure.set(error.clone()))
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            tokio::select! {
                // A request that replaces an unanswered one (the probe of a silent server) comes first.
                biased;
                asked = self.pending.recv() => {
                    if let Some(unanswered) = self.waiting.replace(asked?) {
                        self.missed.fetch_or(unanswered.probe, Ordering::Relaxed);
                        unanswered.exchange.abandon();
                    }
                }
                answer = answered(&self.link, &mut self.waiting) => {
                    self.waiting = None;
                    return answer.inspect_err(|error| self.failure.set(error.clone())).ok();
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), ConnectionError> {
        Ok(())
    }
}

async fn pass_on(
    link: &Connection,
    item: ClientJsonRpcMessage,
    sent: &mpsc::UnboundedSender<Asked>,
) -> Result<(), ConnectionError> {
    let text = serde_json::to_string(&item).map_err(|error| failed(link, &error.to_string()))?;
    let envelope = Envelope::parse(text.as_bytes()).map_err(|error| failed(link, &error.to_string()))?;
    let Some(method) = envelope.method.as_deref() else {
        return Ok(());
    };
    let params = envelope.params.map(RawValue::get);
    let JsonRpcMessage::Request(request) = &item else {
        return link.notify(method, params).await;
    };
    let id = request.id.clone();
    let number = link.next_id();
    let params = link.introduced(params.unwrap_or("{}"))?;
    let message = server_message::message(Some(number), method, Some(&params));
    let exchange = link.dispatch(number, None, method, None, Vec::new(), message).await?;
    let request = Asked { id, exchange, probe: method == "server/discover" };
    // The stage is dropped only with the handshake.
    let _ = sent.send(request);
    Ok(())
}

fn is_unknown(error: &ConnectionError) -> bool {
    let FailureSource::Status(status) = error.sign else { return false };
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 408 | 425 | 429)
}

/// The answer to what was asked last.
async fn answered(
    link: &Connection,
    waiting: &mut Option<Asked>,
) -> Result<ServerJsonRpcMessage, ConnectionError> {
    let Some(Asked { id, exchange, probe }) = waiting else {
        return std::future::pending().await;
    };
    let (member, raw) = loop {
        match exchange.next().await {
            Ok(ResponseMessage::Notice(_) | ResponseMessage::Progress(_)) => {}
            Ok(ResponseMessage::Answer(RpcResponse::Result(raw))) => break ("result", raw),
            Ok(ResponseMessage::Answer(RpcResponse::Error(raw))) => match LoopDetection::of(&raw) {
                Some(ring) => return Err(ring.error()),
                None => break ("error", raw),
            },
            // A client error that is no JSON-RPC: whatever stands there does not know the probe.
            Err(error) if *probe && is_unknown(&error) => {
                let unknown = ErrorData::invalid_request(error.problem.message, None);
                return Ok(ServerJsonRpcMessage::error(unknown, Some(id.clone())));
            }
            Err(error) => return Err(error),
        }
    };
    let id = serde_json::to_string(id).unwrap_or_default();
    let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"{member}":{}}}"#, String::from_utf8_lossy(&raw));
    serde_json::from_str(&text)
        .map_err(|error| failed(link, &format!("its answer could not be read: {error}")))
}
