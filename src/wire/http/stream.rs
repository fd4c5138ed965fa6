use std::time::Duration;

use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::super::inbound::{self, Inbound};
use super::super::link::{Event, LISTEN, LISTEN_METHOD, LinkError};
use super::super::{Id, List, MESSAGE_LIMIT, Peer, sse};
use super::answer::next_event;
use super::client::Client;
use super::connection::Body;
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
    /// True if lists were read while the stream was closed, so that a change may have been missed.
    missed: bool,
    /// Lists that changed and were not told of yet, each once.
    changed: Vec<List>,
}

#[derive(Debug)]
enum State {
    Closed,
    Open(Box<(Body, sse::Events)>),
    /// The server offers none.
    None,
}

impl Stream {
    /// A stream for a server; not opened yet.
    pub(in crate::wire) fn new(client: Client, peer: &Peer) -> Self {
        let wanted = peer.tools_list_changed || peer.era == Era::Legacy;
        let state = if wanted { State::Closed } else { State::None };
        Self { client, state, wait: REOPEN.0, missed: false, changed: Vec::new() }
    }

    /// Opens the stream, so that lists read afterwards miss no change. Cancel safe.
    pub(in crate::wire) async fn open(&mut self, peer: &Peer, id: u64) -> Result<(), LinkError> {
        if !matches!(self.state, State::Closed) {
            return Ok(());
        }
        let opened = match peer.era {
            Era::Legacy => self.client.get().await,
            Era::Modern => return self.listen(id, peer).await,
        };
        let response = opened?;
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        match response.status() {
            status if status.is_success() && is_stream => {
                self.opened(response.into_body());
                Ok(())
            }
            StatusCode::NOT_FOUND => Err(LinkError::new(
                crate::resource::Reason::ConnectFailed,
                "the server forgot the session (HTTP 404)",
            )),
            status if status.is_server_error() => {
                let message = format!("the notice stream was answered with HTTP {status}");
                Err(LinkError::new(crate::resource::Reason::ConnectFailed, message).dispatched())
            }
            // 405 and its like: there are no notices to be had.
            _ => {
                self.state = State::None;
                Ok(())
            }
        }
    }

    async fn listen(&mut self, id: u64, peer: &Peer) -> Result<(), LinkError> {
        let (meta, _) = peer.meta(None, &Id::number(id)).unwrap_or_default();
        let meta = meta.unwrap_or_else(|| "{}".into());
        let params =
            super::super::rewrite(LISTEN, &[super::super::Edit::Set("_meta", &meta)]).unwrap_or_default();
        let message = inbound::message(Some(&Id::number(id)), LISTEN_METHOD, Some(&params));
        let answering = self.client.request(LISTEN_METHOD, None, Vec::new(), message, None);
        match answering.into_stream().await? {
            Some(stream) => {
                self.state = State::Open(Box::new(stream));
            }
            None => self.state = State::None,
        }
        Ok(())
    }

    fn opened(&mut self, body: Body) {
        self.state = State::Open(Box::new((body, sse::Events::new(MESSAGE_LIMIT))));
    }

    /// Says that the lists were read now: if the stream is closed, they are to be read again once it opens.
    pub(in crate::wire) fn lists_were_read(&mut self) {
        self.missed = matches!(self.state, State::Closed);
    }

    /// The next thing that the server tells. Cancel safe. Pending for good if there is no stream.
    pub(in crate::wire) async fn next(&mut self, peer: &Peer, mut next_id: impl FnMut() -> u64) -> Event {
        loop {
            if let Some(list) = self.changed.pop() {
                return Event::Changed(list);
            }
            match &mut self.state {
                State::None => loop {
                    tokio::time::sleep(HOUSEKEEPING).await;
                    self.client.prune();
                },
                State::Closed => match self.open(peer, next_id()).await {
                    Ok(()) if std::mem::take(&mut self.missed) => return Event::Changed(List::Tools),
                    Ok(()) => {}
                    Err(error) if !error.dispatched => return Event::Lost(error),
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
                            self.client.prune();
                            continue;
                        }
                    };
                    if let Ok(Some(chunk)) = chunk {
                        events.push(&chunk);
                        self.wait = REOPEN.0;
                        match changed(events, &self.client) {
                            Ok(lists) => {
                                self.changed = lists;
                                continue;
                            }
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

/// The lists that changed according to the events that have come whole, each once: one refresh answers a
/// burst of notices.
fn changed(events: &mut sse::Events, client: &Client) -> Result<Vec<List>, LinkError> {
    let mut lists = Vec::new();
    while let Some(message) = next_event(events)? {
        match inbound::classify(&message) {
            Ok(Inbound::Changed(list)) if !lists.contains(&list) => lists.push(list),
            Ok(Inbound::Question(id, method)) => client.notify_soon("", inbound::answer(&id, &method), ()),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an event that is not MCP was skipped"),
        }
    }
    Ok(lists)
}
