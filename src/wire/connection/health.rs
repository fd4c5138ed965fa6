//! The requests that check the health of a server.

use std::sync::Arc;

use super::super::handshake_response::{DescribedServer, described_server};
use super::super::response::RpcResponse;
use super::super::server_message;
use super::super::{ClientCapabilities, ConnectionError, Era, ListKind, ServerDescription};
use super::{Connection, ConnectionTransport, UpstreamRequest};

/// A request that checks the health of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthRequest {
    /// `ping`, or `server/discover` in the modern era.
    Ping,
    /// A list that the server has, for servers that do not respond to `ping`.
    List,
}

impl Connection {
    /// Checks that the server responds. Any response counts as success, unless it says that the session is unknown.
    ///
    /// A modern server's response to `server/discover` also shows its version: if it changed, the server was replaced.
    pub async fn check_health(&self, check: HealthRequest) -> Result<(), ConnectionError> {
        let handshake = self.handshake();
        let method = match (check, handshake.era) {
            (HealthRequest::Ping, Era::Legacy) => "ping",
            (HealthRequest::Ping, Era::Modern) => "server/discover",
            (HealthRequest::List, _) => {
                handshake.capabilities.offered_lists().next().unwrap_or(ListKind::Tools).method()
            }
        };
        let response = match &self.0.transport {
            ConnectionTransport::Stdio(_) | ConnectionTransport::Sse(_) => {
                self.call(UpstreamRequest::new(method)).await?.response().await?
            }
            ConnectionTransport::Http(client) => {
                let id = self.next_id();
                let (meta, _) = handshake.request_meta(None, id, None, ClientCapabilities::NONE);
                let params = meta.map(|meta| format!(r#"{{"_meta":{meta}}}"#));
                let message = server_message::message(Some(id), method, params.as_deref());
                let response = client.check_health(method, &message).await?;
                self.0.notifications.mark_received();
                response
            }
        };
        if let (RpcResponse::Result(result), "server/discover") = (&response, method) {
            self.compare_description(result);
        }
        Ok(())
    }

    /// Reports a changed description of a modern server.
    fn compare_description(&self, discover_result: &[u8]) {
        let Some(DescribedServer { name, version, instructions }) = described_server(discover_result) else {
            return;
        };
        let protocol_version = self.handshake().description.protocol_version.clone();
        let description = Arc::new(ServerDescription::new(
            self.mask(),
            protocol_version,
            Some((&name, &version)),
            instructions.as_deref(),
        ));
        let mut last = self.0.last_description.lock();
        let previous = last.get_or_insert_with(|| self.handshake().description.clone());
        if *previous != description {
            *previous = description.clone();
            self.0.notifications.report_description(description);
        }
    }
}
