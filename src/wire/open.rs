use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Connection, ConnectionEvent, ConnectionTransport};
use super::connection_context::ConnectionContext;
use super::error::{ConnectionEnd, ConnectionError};
use super::notifications::NotificationDispatcher;
use super::secret_mask::SecretMask;
use super::subscription::ListenRequest;
use super::{Era, HandshakeResult, handshake, http, stdio};
use crate::resource::{Endpoint, Transport as Declared};

/// How long a server may take to open its notice stream before its lists are read all the same.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);

/// What a connection tells without being asked. Owned by one task, which must keep asking.
#[derive(Debug)]
pub struct ConnectionEvents {
    link: Connection,
    ears: NotificationDispatcher,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Stdio(ListenRequest),
    Http(http::NotificationStream),
}

/// Connects to a server and agrees on a protocol with it.
///
/// The caller bounds the time. Dropping the future closes what was opened; what that takes runs on the host's
/// tasks, to be waited for before evenkeel ends.
pub async fn open(
    endpoint: &Endpoint,
    remembered: Option<Era>,
    host: &ConnectionContext,
) -> Result<(Connection, ConnectionEvents), ConnectionError> {
    let lost = Arc::new(ConnectionEnd::default());
    let ears = NotificationDispatcher::new(host.log.clone(), host.notices.clone(), SecretMask::of(endpoint));
    let transport = match &endpoint.transport {
        Declared::Stdio(endpoint) => {
            ConnectionTransport::Stdio(stdio::start(endpoint, &lost, ears.clone(), host)?)
        }
        Declared::Http(endpoint) => {
            ConnectionTransport::Http(http::HttpClient::new(endpoint, ears.clone(), host)?)
        }
    };
    let link = Connection::new(transport, lost.clone(), ears.clone(), host);
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
        ConnectionTransport::Stdio(_) => Source::Stdio(ListenRequest::default()),
        ConnectionTransport::Http(client) => {
            Source::Http(http::NotificationStream::new(client.clone(), link.peer()))
        }
    };
    Ok((link.clone(), ConnectionEvents { link, ears, source }))
}

impl ConnectionEvents {
    /// Makes sure that changes are told from now on, so that lists read afterwards miss none.
    pub async fn begin(&mut self) -> Result<(), ConnectionError> {
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

    /// The next event. Cancel safe. After [`ConnectionEvent::Lost`] nothing more comes.
    pub async fn next(&mut self) -> ConnectionEvent {
        let lost = self.link.lost().clone();
        let peer: &HandshakeResult = self.link.peer();
        let broken = async {
            match &mut self.source {
                Source::Stdio(subscription) => match subscription.keep(&self.link, &self.ears).await {},
                Source::Http(stream) => stream.read(peer, || self.link.next_id()).await,
            }
        };
        tokio::select! {
            biased;
            error = lost.wait() => ConnectionEvent::Lost(error),
            list = self.ears.next_change() => ConnectionEvent::Changed(list),
            error = broken => ConnectionEvent::Lost(error),
        }
    }
}
