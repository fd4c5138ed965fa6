use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Connection, ConnectionEvent, ConnectionTransport};
use super::connection_context::ConnectionContext;
use super::error::{ConnectionEnd, ConnectionError};
use super::notifications::NotificationDispatcher;
use super::secret_mask::SecretMask;
use super::subscription::ListenSubscription;
use super::{Era, HandshakeResult, handshake, http, stdio};
use crate::resource::{Endpoint, Transport as Declared};

/// How long a server may take to open its notice stream before its lists are read all the same.
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// What a connection tells without being asked. Owned by one task, which must keep asking.
#[derive(Debug)]
pub struct ConnectionEvents {
    connection: Connection,
    notifications: NotificationDispatcher,
    source: NotificationSource,
}

#[derive(Debug)]
enum NotificationSource {
    Stdio(ListenSubscription),
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
    let ears = NotificationDispatcher::new(
        host.log.clone(),
        host.notifications.clone(),
        SecretMask::for_endpoint(endpoint),
    );
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
        peer = handshake::negotiate(&link, remembered) => peer,
        error = lost.wait() => Err(error),
    };
    match peer {
        Ok(peer) => link.set_handshake(peer),
        Err(error) => {
            // How the process ended says more than that it did not answer.
            link.close().await;
            return Err(error);
        }
    }
    let source = match link.transport() {
        ConnectionTransport::Stdio(_) => NotificationSource::Stdio(ListenSubscription::default()),
        ConnectionTransport::Http(client) => {
            NotificationSource::Http(http::NotificationStream::new(client.clone(), link.handshake()))
        }
    };
    Ok((link.clone(), ConnectionEvents { connection: link, notifications: ears, source }))
}

impl ConnectionEvents {
    /// Makes sure that changes are told from now on, so that lists read afterwards miss none.
    pub async fn subscribe(&mut self) -> Result<(), ConnectionError> {
        let stream = match &mut self.source {
            NotificationSource::Http(stream) => stream,
            NotificationSource::Stdio(subscription) => {
                return subscription.subscribe(&self.connection, STREAM_OPEN_TIMEOUT).await;
            }
        };
        let opening = stream.open(self.connection.handshake(), || self.connection.next_id());
        // Slow: it goes on opening, and then the lists are read again.
        timeout(STREAM_OPEN_TIMEOUT, opening).await.unwrap_or(Ok(()))?;
        stream.mark_lists_read();
        Ok(())
    }

    /// The next event. Cancel safe. After [`ConnectionEvent::Lost`] nothing more comes.
    pub async fn next(&mut self) -> ConnectionEvent {
        let lost = self.connection.end().clone();
        let peer: &HandshakeResult = self.connection.handshake();
        let broken = async {
            match &mut self.source {
                NotificationSource::Stdio(subscription) => {
                    match subscription.run(&self.connection, &self.notifications).await {}
                }
                NotificationSource::Http(stream) => stream.run(peer, || self.connection.next_id()).await,
            }
        };
        tokio::select! {
            biased;
            error = lost.wait() => ConnectionEvent::Lost(error),
            list = self.notifications.next_changed_list() => ConnectionEvent::ListChanged(list),
            error = broken => ConnectionEvent::Lost(error),
        }
    }
}
