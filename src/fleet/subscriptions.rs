use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::net::{Backoff, Delays, jitter};
use crate::resource::ObjectKey;
use crate::upstream::{RequestedNotifications, Subscriptions};
use crate::wire::{
    Connection, ConnectionError, Era, JsonEdit, ResponseMessage, RpcResponse, UpstreamExchange,
    UpstreamRequest, json_string,
};

/// How long a server may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to acknowledge that it listens.
const LISTEN_ACK_TIMEOUT: Duration = Duration::from_secs(1);
/// Shortest and longest wait before a request that failed is made again.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };
/// A stream that lasted so long is opened again without delay.
const STABLE_STREAM_AGE: Duration = Duration::from_secs(10);

/// True if this server can be asked to tell anything.
pub(super) fn are_supported(link: &Connection) -> bool {
    let peer = link.handshake();
    peer.capabilities.subscribe || (peer.capabilities.logging && peer.era == Era::Legacy)
}

/// Asks a server to tell what agents want to hear, and keeps that so: a new connection is asked for all of it
/// again. Never ends, since there is nothing to do with its end.
pub(super) async fn maintain(link: Connection, listeners: Subscriptions, server: ObjectKey) -> Infallible {
    let mut changes = listeners.changes(&server);
    let mut desk = UpstreamSubscriptions {
        connection: link,
        server,
        active: RequestedNotifications::default(),
        stream: None,
    };
    // What was wanted before may have changed while nobody was asked for it.
    let mut missed = listeners.requested(&desk.server).resource_uris;
    let mut backoff = Backoff::default();
    loop {
        changes.mark_seen();
        let wanted = desk.supported_part(listeners.requested(&desk.server));
        let result = match timeout(REQUEST_TIMEOUT, Box::pin(desk.apply(&wanted))).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
        };
        if let Err(why) = result {
            debug!(server = %desk.server, why, "the server could not be asked to tell what agents want to hear");
            sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
            continue;
        }
        let since = Instant::now();
        for uri in std::mem::take(&mut missed) {
            listeners.publish_resource_update(&desk.server, &uri);
        }
        tokio::select! {
            () = changes.changed() => {}
            () = read_to_end(&mut desk.stream) => {
                desk.stream = None;
                missed = std::mem::take(&mut desk.active.resource_uris);
                backoff.record_end(since.elapsed(), STABLE_STREAM_AGE);
                sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
                continue;
            }
        }
        backoff.reset();
    }
}

/// What one connection's server was asked for.
struct UpstreamSubscriptions {
    connection: Connection,
    server: ObjectKey,
    active: RequestedNotifications,
    /// The request on which a modern server tells of resources.
    stream: Option<UpstreamExchange>,
}

impl UpstreamSubscriptions {
    /// What of this the server can be asked for.
    fn supported_part(&self, wanted: RequestedNotifications) -> RequestedNotifications {
        let peer = self.connection.handshake();
        RequestedNotifications {
            // A modern server is told the level with each request.
            log_level: wanted.log_level.filter(|_| peer.capabilities.logging && peer.era == Era::Legacy),
            resource_uris: if peer.capabilities.subscribe { wanted.resource_uris } else { BTreeSet::new() },
        }
    }

    async fn apply(&mut self, wanted: &RequestedNotifications) -> Result<(), String> {
        if let Some(level) = wanted.log_level.filter(|level| self.active.log_level != Some(*level)) {
            send_request(&self.connection, "logging/setLevel", "level", level.as_str()).await?;
            self.active.log_level = Some(level);
        }
        if self.active.resource_uris == wanted.resource_uris {
            return Ok(());
        }
        if self.connection.handshake().era == Era::Modern {
            self.stream = if wanted.resource_uris.is_empty() {
                None
            } else {
                Some(
                    listen(&self.connection, &wanted.resource_uris)
                        .await
                        .map_err(|error| error.to_string())?,
                )
            };
            self.active.resource_uris.clone_from(&wanted.resource_uris);
            return Ok(());
        }
        let before = self.active.resource_uris.clone();
        for uri in wanted.resource_uris.difference(&before) {
            send_request(&self.connection, "resources/subscribe", "uri", uri).await?;
            self.active.resource_uris.insert(uri.clone());
        }
        for uri in before.difference(&wanted.resource_uris) {
            send_request(&self.connection, "resources/unsubscribe", "uri", uri).await?;
            self.active.resource_uris.remove(uri);
        }
        Ok(())
    }
}

/// A request whose answer is nothing. A server that refuses it would do so again.
async fn send_request(link: &Connection, method: &str, key: &str, value: &str) -> Result<(), String> {
    let value = json_string(value);
    let edits = &[JsonEdit::Set(key, &value)];
    let request = UpstreamRequest { edits, ..UpstreamRequest::new(method) };
    let reply = async { link.call(request).await?.response().await };
    if let RpcResponse::Error(raw) = reply.await.map_err(|error: ConnectionError| error.to_string())? {
        debug!(
            method,
            answer = link.redacted_line(&String::from_utf8_lossy(&raw), 200),
            "the server refused"
        );
    }
    Ok(())
}

async fn listen(link: &Connection, uris: &BTreeSet<Arc<str>>) -> Result<UpstreamExchange, ConnectionError> {
    let uris: Vec<&Arc<str>> = uris.iter().collect();
    let filter = serde_json::json!({ "resourceSubscriptions": uris }).to_string();
    let mut exchange = link.listen(&filter).await?;
    // Its acknowledgement; a server that takes its time may tell all the same.
    let _ = timeout(LISTEN_ACK_TIMEOUT, exchange.next()).await;
    Ok(exchange)
}

/// Reads the stream, whose notices go elsewhere, to its end.
async fn read_to_end(stream: &mut Option<UpstreamExchange>) {
    let Some(stream) = stream else {
        return pending().await;
    };
    while let Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_)) = stream.next().await {}
}
