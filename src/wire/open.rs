use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::error::{LinkError, Lost};
use super::host::Host;
use super::link::{Event, Link, Transport};
use super::mask::Mask;
use super::subscription::Subscription;
use super::unasked::Unasked;
use super::{Era, Peer, handshake, http, stdio};
use crate::resource::{Endpoint, Transport as Declared};

/// How long a server may take to open its notice stream before its lists are read all the same.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);

/// What a connection tells without being asked. Owned by one task, which must keep asking.
#[derive(Debug)]
pub struct Events {
    link: Link,
    ears: Unasked,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Stdio(Subscription),
    Http(http::Stream),
}

/// Connects to a server and agrees on a protocol with it.
///
/// The caller bounds the time. Dropping the future closes what was opened; what that takes runs on the host's
/// tasks, to be waited for before evenkeel ends.
pub async fn open(
    endpoint: &Endpoint,
    remembered: Option<Era>,
    host: &Host,
) -> Result<(Link, Events), LinkError> {
    let lost = Arc::new(Lost::default());
    let ears = Unasked::new(host.log.clone(), host.notices.clone(), Mask::of(endpoint));
    let transport = match &endpoint.transport {
        Declared::Stdio(endpoint) => Transport::Stdio(stdio::start(endpoint, &lost, ears.clone(), host)?),
        Declared::Http(endpoint) => Transport::Http(http::Client::new(endpoint, ears.clone(), host)?),
    };
    let link = Link::new(transport, lost.clone(), ears.clone(), host);
    let peer = tokio::select! {
        peer = handshake::shake(&link, remembered) => peer,
        error = lost.wait() => Err(error),
    };
    match peer {
        Ok(peer) => link.set_peer(peer),
        Err(error) => {
            // How the process ended says more than that it did not answer.
            link.close().await;
            return Err(error);
        }
    }
    let source = match link.transport() {
        Transport::Stdio(_) => Source::Stdio(Subscription::default()),
        Transport::Http(client) => Source::Http(http::Stream::new(client.clone(), link.peer())),
    };
    Ok((link.clone(), Events { link, ears, source }))
}

impl Events {
    /// Makes sure that changes are told from now on, so that lists read afterwards miss none.
    pub async fn begin(&mut self) -> Result<(), LinkError> {
        let stream = match &mut self.source {
            Source::Http(stream) => stream,
            Source::Stdio(subscription) => return subscription.begin(&self.link, STREAM_PATIENCE).await,
        };
        let opening = stream.open(self.link.peer(), || self.link.next_id());
        // Slow: it goes on opening, and then the lists are read again.
        timeout(STREAM_PATIENCE, opening).await.unwrap_or(Ok(()))?;
        stream.lists_were_read();
        Ok(())
    }

    /// The next event. Cancel safe. After [`Event::Lost`] nothing more comes.
    pub async fn next(&mut self) -> Event {
        let lost = self.link.lost().clone();
        let peer: &Peer = self.link.peer();
        let broken = async {
            match &mut self.source {
                Source::Stdio(subscription) => match subscription.keep(&self.link, &self.ears).await {},
                Source::Http(stream) => stream.read(peer, || self.link.next_id()).await,
            }
        };
        tokio::select! {
            biased;
            error = lost.wait() => Event::Lost(error),
            list = self.ears.next_change() => Event::Changed(list),
            error = broken => Event::Lost(error),
        }
    }
}
