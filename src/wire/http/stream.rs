use std::time::Duration;

use bytes::Bytes;

use super::super::error::LinkError;
use super::super::inbound::{self, Inbound};
use super::super::link::LISTEN_METHOD;
use super::super::{Edit, MESSAGE_LIMIT, Peer, rewrite, sse};
use super::answer::next_event;
use super::client::Client;
use super::trickle::Trickle;
use crate::wire::Era;

/// Shortest and longest wait before a stream that ended is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often idle connections are looked through.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// The stream on which a server tells that its lists changed: GET in the legacy era,
/// `subscriptions/listen` in the modern one. Opened again whenever it ends.
#[derive(Debug)]
pub(in crate::wire) struct Stream {
    client: Client,
    state: State,
    wait: Duration,
    /// True if the server has opened it before.
    offered: bool,
    /// True if lists were read while the stream was closed, so that a change may have been missed.
    missed: bool,
}

#[derive(Debug)]
enum State {
    Closed,
    Open(Box<(Trickle, sse::Events)>),
    /// The server offers none.
    None,
}

impl Stream {
    /// A stream for a server; not opened yet.
    pub(in crate::wire) fn new(client: Client, peer: &Peer) -> Self {
        let wanted = peer.era == Era::Legacy || peer.changes_told().is_some();
        let state = if wanted { State::Closed } else { State::None };
        Self { client, state, wait: REOPEN.0, offered: false, missed: false }
    }

    /// Opens the stream, so that lists read afterwards miss no change. Cancel safe.
    pub(in crate::wire) async fn open(&mut self, peer: &Peer, id: u64) -> Result<(), LinkError> {
        if !matches!(self.state, State::Closed) {
            return Ok(());
        }
        let request = peer.changes_told().map(|filter| listen_request(peer, &filter, id));
        self.state = match self.client.listen(request, self.offered).await? {
            Some(stream) => {
                self.offered = true;
                State::Open(Box::new((stream, sse::Events::new(MESSAGE_LIMIT))))
            }
            None => State::None,
        };
        Ok(())
    }

    /// The same once the server may be asked.
    async fn open_in_time(&mut self, peer: &Peer, id: u64) -> Result<(), LinkError> {
        self.client.pause().over().await;
        self.open(peer, id).await
    }

    /// Says that the lists were read now: if the stream is closed, they are to be read again once it opens.
    pub(in crate::wire) fn lists_were_read(&mut self) {
        self.missed = matches!(self.state, State::Closed);
    }

    /// Reads what the server tells, for as long as it is there: ends with why it is not. Cancel safe.
    pub(in crate::wire) async fn read(&mut self, peer: &Peer, mut next_id: impl FnMut() -> u64) -> LinkError {
        loop {
            match &mut self.state {
                State::None => loop {
                    tokio::time::sleep(HOUSEKEEPING).await;
                    self.client.rest(Duration::ZERO);
                },
                State::Closed => match self.open_in_time(peer, next_id()).await {
                    Ok(()) if std::mem::take(&mut self.missed) => {
                        peer.capabilities.lists().for_each(|list| self.client.ears().changed(list));
                    }
                    Ok(()) => {}
                    Err(error) if self.client.is_lost(&error) => return error,
                    Err(error) => {
                        tracing::debug!(%error, "the notice stream could not be opened");
                        tokio::time::sleep(self.wait).await;
                        self.wait = (self.wait * 2).min(REOPEN.1);
                    }
                },
                State::Open(stream) => {
                    let (body, events) = &mut **stream;
                    let chunk = tokio::select! {
                        chunk = body.chunk() => chunk,
                        () = tokio::time::sleep(HOUSEKEEPING) => {
                            self.client.rest(Duration::ZERO);
                            continue;
                        }
                    };
                    if let Ok(Some(chunk)) = chunk {
                        events.push(&chunk);
                        self.wait = REOPEN.0;
                        match take(events, &self.client) {
                            Ok(()) => continue,
                            Err(error) => tracing::debug!(%error, "the notice stream is not usable"),
                        }
                    }
                    // What was told while it was closed is lost: read the lists again then.
                    self.missed = true;
                    self.state = State::Closed;
                    tokio::time::sleep(self.wait).await;
                    self.wait = (self.wait * 2).min(REOPEN.1);
                }
            }
        }
    }
}

fn listen_request(peer: &Peer, filter: &str, id: u64) -> Bytes {
    let (meta, _) = peer.meta(None, id, None);
    let meta = meta.unwrap_or_else(|| "{}".into());
    let params = [Edit::Set("notifications", filter), Edit::Set("_meta", &meta)];
    let params = rewrite("{}", &params).unwrap_or_default();
    inbound::message(Some(id), LISTEN_METHOD, Some(&params))
}

/// Takes up the events that have come whole.
fn take(events: &mut sse::Events, client: &Client) -> Result<(), LinkError> {
    while let Some(message) = next_event(events)? {
        client.ears().heard();
        match inbound::classify(&message) {
            Ok(Inbound::Question(id, method)) => client.notify_soon("", inbound::answer(&id, &method), ()),
            Ok(unasked) => client.ears().take(&unasked, &message),
            Err(error) => client.ears().skipped(&error),
        }
    }
    Ok(())
}
