use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Connection, ConnectionEvent, ConnectionTransport};
use super::connection_context::ConnectionContext;
use super::error::{ConnectionEnd, ConnectionError};
use super::notifications::{DispatchedEvent, NotificationDispatcher};
use super::secret_mask::SecretMask;
use super::subscription::ListenSubscription;
use super::{Era, HandshakeResult, handshake, http, stdio};
use crate::resource::{Endpoint, HttpTransportKind, ProtocolMode, Transport as DeclaredTransport};

/// The time to wait for a server to open its notification stream. After it the lists are read without one.
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The events of a connection. Owned by one task, which must keep calling [`Self::next`].
#[derive(Debug)]
pub struct ConnectionEvents {
    connection: Connection,
    notifications: NotificationDispatcher,
    source: NotificationSource,
}

#[derive(Debug)]
enum NotificationSource {
    /// All messages of the server arrive on one stream.
    SharedStream(ListenSubscription),
    Http(http::NotificationStream),
}

/// Connects to a server and performs the handshake.
///
/// A server whose era is neither declared nor given as `era` is probed; it counts as legacy if it does not respond to the
/// probe within `probe_timeout`.
///
/// Sets no other time limit; the caller does. Dropping the future closes what was opened. The cleanup runs on
/// [`ConnectionContext::tasks`], which must be waited for before evenkeel exits.
pub async fn open(
    endpoint: &Endpoint,
    era: Option<Era>,
    probe_timeout: Duration,
    context: &ConnectionContext,
) -> Result<(Connection, ConnectionEvents), ConnectionError> {
    if let DeclaredTransport::Http(endpoint) = &endpoint.transport
        && let Some(problem) = context.access_token.wait_until_known(&endpoint.url).await
    {
        return Err(ConnectionError::from_problem(problem));
    }
    let end = Arc::new(ConnectionEnd::default());
    let unreadable_level = if endpoint.transport.is_stdio() { "stdout" } else { "http" };
    let notifications = NotificationDispatcher::new(
        context.log.clone(),
        unreadable_level,
        context.notifications.clone(),
        SecretMask::for_endpoint(endpoint, &context.child_environment)
            .await
            .with_token(&context.access_token),
    );
    let transport = match &endpoint.transport {
        DeclaredTransport::Stdio(endpoint) => {
            ConnectionTransport::Stdio(stdio::start(endpoint, &end, notifications.clone(), context)?)
        }
        DeclaredTransport::Http(endpoint) if endpoint.kind == HttpTransportKind::Sse => {
            let opening = http::SseConnection::open(endpoint, &end, &notifications, context);
            ConnectionTransport::Sse(opening.await?)
        }
        DeclaredTransport::Http(endpoint) => {
            ConnectionTransport::Http(http::HttpClient::new(endpoint, notifications.clone(), context)?)
        }
    };
    let connection = Connection::new(transport, end.clone(), notifications.clone(), context);
    let era = match endpoint.protocol {
        // HTTP+SSE is older than the modern era.
        _ if matches!(connection.transport(), ConnectionTransport::Sse(_)) => Some(Era::Legacy),
        ProtocolMode::Auto => era,
        ProtocolMode::Legacy => Some(Era::Legacy),
        ProtocolMode::Modern => Some(Era::Modern),
    };
    let handshake = tokio::select! {
        handshake = handshake::negotiate(&connection, era, probe_timeout) => handshake,
        error = end.wait() => Err(error),
    };
    match handshake {
        Ok(handshake) => connection.set_handshake(handshake),
        Err(error) => {
            // Waits until the process has ended, so that its stderr output is complete.
            connection.close().await;
            return Err(error);
        }
    }
    let source = match connection.transport() {
        ConnectionTransport::Stdio(_) | ConnectionTransport::Sse(_) => {
            NotificationSource::SharedStream(ListenSubscription::default())
        }
        ConnectionTransport::Http(client) => {
            NotificationSource::Http(http::NotificationStream::new(client.clone(), connection.handshake()))
        }
    };
    Ok((connection.clone(), ConnectionEvents { connection, notifications, source }))
}

impl ConnectionEvents {
    /// Subscribes to list changes, so that none is missed for lists that are read afterwards.
    pub async fn subscribe(&mut self) -> Result<(), ConnectionError> {
        let stream = match &mut self.source {
            NotificationSource::Http(stream) => stream,
            NotificationSource::SharedStream(subscription) => {
                return subscription.subscribe(&self.connection, STREAM_OPEN_TIMEOUT).await;
            }
        };
        let opening = stream.open(self.connection.handshake(), || self.connection.next_id());
        // After a timeout the stream continues to open, and then the lists count as changed.
        timeout(STREAM_OPEN_TIMEOUT, opening).await.unwrap_or(Ok(()))?;
        stream.mark_lists_read();
        Ok(())
    }

    /// Returns the next event. Nothing follows [`ConnectionEvent::Lost`]. Cancel safe.
    pub async fn next(&mut self) -> ConnectionEvent {
        let end = self.connection.end().clone();
        let handshake: &HandshakeResult = self.connection.handshake();
        let broken = async {
            match &mut self.source {
                NotificationSource::SharedStream(subscription) => {
                    match subscription.run(&self.connection, &self.notifications).await {}
                }
                NotificationSource::Http(stream) => stream.run(handshake, || self.connection.next_id()).await,
            }
        };
        tokio::select! {
            biased;
            error = end.wait() => ConnectionEvent::Lost(error),
            event = self.notifications.next_event() => match event {
                DispatchedEvent::ListChanged(list) => ConnectionEvent::ListChanged(list),
                DispatchedEvent::DescriptionChanged(description) => {
                    ConnectionEvent::DescriptionChanged(description)
                }
                DispatchedEvent::ProtocolViolation(violation) => ConnectionEvent::ProtocolViolation(violation),
                DispatchedEvent::ChangesUnheard(why) => ConnectionEvent::ChangesUnheard(why),
            },
            error = broken => ConnectionEvent::Lost(error),
        }
    }
}
