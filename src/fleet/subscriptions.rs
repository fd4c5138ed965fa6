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
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to acknowledge that it listens.
const ACKNOWLEDGED: Duration = Duration::from_secs(1);
/// Shortest and longest wait before a request that failed is made again.
const AGAIN: Delays = Delays { initial: Duration::from_secs(1), max: Duration::from_mins(1) };
/// A stream that lasted so long is opened again without delay.
const STABLE: Duration = Duration::from_secs(10);

/// True if this server can be asked to tell anything.
pub(super) fn are_offered(link: &Connection) -> bool {
    let peer = link.peer();
    peer.capabilities.subscribe || (peer.capabilities.logging && peer.era == Era::Legacy)
}

/// Asks a server to tell what agents want to hear, and keeps that so: a new connection is asked for all of it
/// again. Never ends, since there is nothing to do with its end.
pub(super) async fn keep(link: Connection, listeners: Subscriptions, server: ObjectKey) -> Infallible {
    let mut changes = listeners.changes(&server);
    let mut desk =
        UpstreamSubscriptions { link, server, asked: RequestedNotifications::default(), stream: None };
    // What was wanted before may have changed while nobody was asked for it.
    let mut missed = listeners.wanted(&desk.server).uris;
    let mut backoff = Backoff::default();
    loop {
        changes.mark_seen();
        let wanted = desk.possible(listeners.wanted(&desk.server));
        let result = match timeout(PATIENCE, Box::pin(desk.ask(&wanted))).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        if let Err(why) = result {
            debug!(server = %desk.server, why, "the server could not be asked to tell what agents want to hear");
            sleep(backoff.fail(AGAIN, jitter(), None)).await;
            continue;
        }
        let since = Instant::now();
        for uri in std::mem::take(&mut missed) {
            listeners.updated(&desk.server, &uri);
        }
        tokio::select! {
            () = changes.next() => {}
            () = ended(&mut desk.stream) => {
                desk.stream = None;
                missed = std::mem::take(&mut desk.asked.uris);
                backoff.ended(since.elapsed(), STABLE);
                sleep(backoff.fail(AGAIN, jitter(), None)).await;
                continue;
            }
        }
        backoff.reset();
    }
}

/// What one connection's server was asked for.
struct UpstreamSubscriptions {
    link: Connection,
    server: ObjectKey,
    asked: RequestedNotifications,
    /// The request on which a modern server tells of resources.
    stream: Option<UpstreamExchange>,
}

impl UpstreamSubscriptions {
    /// What of this the server can be asked for.
    fn possible(&self, wanted: RequestedNotifications) -> RequestedNotifications {
        let peer = self.link.peer();
        RequestedNotifications {
            // A modern server is told the level with each request.
            level: wanted.level.filter(|_| peer.capabilities.logging && peer.era == Era::Legacy),
            uris: if peer.capabilities.subscribe { wanted.uris } else { BTreeSet::new() },
        }
    }

    async fn ask(&mut self, wanted: &RequestedNotifications) -> Result<(), String> {
        if let Some(level) = wanted.level.filter(|level| self.asked.level != Some(*level)) {
            request(&self.link, "logging/setLevel", "level", level.name()).await?;
            self.asked.level = Some(level);
        }
        if self.asked.uris == wanted.uris {
            return Ok(());
        }
        if self.link.peer().era == Era::Modern {
            self.stream = if wanted.uris.is_empty() {
                None
            } else {
                Some(listen(&self.link, &wanted.uris).await.map_err(|error| error.to_string())?)
            };
            self.asked.uris.clone_from(&wanted.uris);
            return Ok(());
        }
        let before = self.asked.uris.clone();
        for uri in wanted.uris.difference(&before) {
            request(&self.link, "resources/subscribe", "uri", uri).await?;
            self.asked.uris.insert(uri.clone());
        }
        for uri in before.difference(&wanted.uris) {
            request(&self.link, "resources/unsubscribe", "uri", uri).await?;
            self.asked.uris.remove(uri);
        }
        Ok(())
    }
}

/// A request whose answer is nothing. A server that refuses it would do so again.
async fn request(link: &Connection, method: &str, key: &str, value: &str) -> Result<(), String> {
    let value = json_string(value);
    let edits = &[JsonEdit::Set(key, &value)];
    let request = UpstreamRequest { edits, ..UpstreamRequest::new(method) };
    let reply = async { link.call(request).await?.answer().await };
    if let RpcResponse::Error(raw) = reply.await.map_err(|error: ConnectionError| error.to_string())? {
        debug!(method, answer = link.words(&String::from_utf8_lossy(&raw), 200), "the server refused");
    }
    Ok(())
}

async fn listen(link: &Connection, uris: &BTreeSet<Arc<str>>) -> Result<UpstreamExchange, ConnectionError> {
    let uris: Vec<&Arc<str>> = uris.iter().collect();
    let filter = serde_json::json!({ "resourceSubscriptions": uris }).to_string();
    let mut exchange = link.listen(&filter).await?;
    // Its acknowledgement; a server that takes its time may tell all the same.
    let _ = timeout(ACKNOWLEDGED, exchange.next()).await;
    Ok(exchange)
}

/// Reads the stream, whose notices go elsewhere, to its end.
async fn ended(stream: &mut Option<UpstreamExchange>) {
    let Some(stream) = stream else {
        return pending().await;
    };
    while let Ok(ResponseMessage::Notice(_) | ResponseMessage::Progress(_)) = stream.next().await {}
}
