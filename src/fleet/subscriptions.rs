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

/// The timeout of subscription requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait for the acknowledgement of `subscriptions/listen`.
const LISTEN_ACK_TIMEOUT: Duration = Duration::from_secs(1);
/// The delays before a failed request is retried.
const RETRY_DELAYS: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };
/// The stream age from which a lost stream is reopened without delay.
const STABLE_STREAM_AGE: Duration = Duration::from_secs(10);

/// Returns true if the server supports resource subscriptions or a log level.
pub(super) fn are_supported(connection: &Connection) -> bool {
    let handshake = connection.handshake();
    handshake.capabilities.subscribe || (handshake.capabilities.logging && handshake.era == Era::Legacy)
}

/// Maintains a connection's subscriptions: requests the notifications that agents requested, and follows changes. A new
/// connection requests all of them again. Never returns.
pub(super) async fn maintain(
    connection: Connection,
    requests: Subscriptions,
    server: ObjectKey,
) -> Infallible {
    let mut changes = requests.changes(&server);
    let mut upstream =
        UpstreamSubscriptions { connection, server, active: RequestedNotifications::default(), stream: None };
    // Resources may have changed while no connection was subscribed to them: report an update of each.
    let mut missed = requests.requested(&upstream.server).resource_uris;
    let mut backoff = Backoff::default();
    loop {
        changes.mark_seen();
        let requested = upstream.supported_part(requests.requested(&upstream.server));
        let result = match timeout(REQUEST_TIMEOUT, Box::pin(upstream.apply(&requested))).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
        };
        if let Err(why) = result {
            debug!(server = %upstream.server, why, "the subscriptions could not be updated");
            sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
            continue;
        }
        let subscribed_at = Instant::now();
        for uri in std::mem::take(&mut missed) {
            requests.publish_resource_update(&upstream.server, &uri);
        }
        tokio::select! {
            () = changes.changed() => {}
            () = read_to_end(&mut upstream.stream) => {
                // The stream is reopened after a delay, and updates of its resources may have been missed meanwhile.
                upstream.stream = None;
                missed = std::mem::take(&mut upstream.active.resource_uris);
                backoff.record_end(subscribed_at.elapsed(), STABLE_STREAM_AGE);
                sleep(backoff.record_failure(RETRY_DELAYS, jitter(), None)).await;
                continue;
            }
        }
        backoff.reset();
    }
}

/// The active subscriptions of one connection.
struct UpstreamSubscriptions {
    connection: Connection,
    server: ObjectKey,
    active: RequestedNotifications,
    /// The `subscriptions/listen` request on which a modern server sends resource updates.
    stream: Option<UpstreamExchange>,
}

impl UpstreamSubscriptions {
    /// Returns the part of the requested notifications that the server supports.
    fn supported_part(&self, requested: RequestedNotifications) -> RequestedNotifications {
        let handshake = self.connection.handshake();
        RequestedNotifications {
            // For a modern server each request carries the level.
            log_level: requested
                .log_level
                .filter(|_| handshake.capabilities.logging && handshake.era == Era::Legacy),
            resource_uris: if handshake.capabilities.subscribe {
                requested.resource_uris
            } else {
                BTreeSet::new()
            },
        }
    }

    async fn apply(&mut self, requested: &RequestedNotifications) -> Result<(), String> {
        if let Some(level) = requested.log_level.filter(|level| self.active.log_level != Some(*level)) {
            send_request(&self.connection, "logging/setLevel", "level", level.as_str()).await?;
            self.active.log_level = Some(level);
        }
        if self.active.resource_uris == requested.resource_uris {
            return Ok(());
        }
        if self.connection.handshake().era == Era::Modern {
            self.stream = if requested.resource_uris.is_empty() {
                None
            } else {
                Some(
                    listen(&self.connection, &requested.resource_uris)
                        .await
                        .map_err(|error| error.to_string())?,
                )
            };
            self.active.resource_uris.clone_from(&requested.resource_uris);
            return Ok(());
        }
        let active = self.active.resource_uris.clone();
        for uri in requested.resource_uris.difference(&active) {
            send_request(&self.connection, "resources/subscribe", "uri", uri).await?;
            self.active.resource_uris.insert(uri.clone());
        }
        for uri in active.difference(&requested.resource_uris) {
            send_request(&self.connection, "resources/unsubscribe", "uri", uri).await?;
            self.active.resource_uris.remove(uri);
        }
        Ok(())
    }
}

/// Sends a request whose result is empty. An error response is only logged: a retry would be rejected again.
async fn send_request(connection: &Connection, method: &str, key: &str, value: &str) -> Result<(), String> {
    let value = json_string(value);
    let edits = &[JsonEdit::Set(key, &value)];
    let request = UpstreamRequest { edits, ..UpstreamRequest::new(method) };
    let response = async { connection.call(request).await?.response().await };
    if let RpcResponse::Error(raw) = response.await.map_err(|error: ConnectionError| error.to_string())? {
        debug!(
            method,
            answer = connection.redacted_line(&String::from_utf8_lossy(&raw), 200),
            "the server rejected the request"
        );
    }
    Ok(())
}

async fn listen(
    connection: &Connection,
    uris: &BTreeSet<Arc<str>>,
) -> Result<UpstreamExchange, ConnectionError> {
    let uris: Vec<&Arc<str>> = uris.iter().collect();
    let filter = serde_json::json!({ "resourceSubscriptions": uris }).to_string();
    let mut exchange = connection.listen(&filter).await?;
    // The first message is the acknowledgement. A server that sends it late may still send updates.
    let _ = timeout(LISTEN_ACK_TIMEOUT, exchange.next()).await;
    Ok(exchange)
}

/// Reads a stream to its end. Its notifications are delivered elsewhere.
async fn read_to_end(stream: &mut Option<UpstreamExchange>) {
    let Some(stream) = stream else {
        return pending().await;
    };
    while !matches!(stream.next().await, Ok(ResponseMessage::Response(_)) | Err(_)) {}
}
