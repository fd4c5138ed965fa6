use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, UpstreamExchange};
use super::error::ConnectionError;
use super::notifications::NotificationDispatcher;
use super::response::RpcResponse;
use super::response_message::ResponseMessage;
use super::server_message;
use crate::net::{Backoff, Delays, jitter};

/// The shortest and longest delay before a subscription that ended is renewed.
const RESUBSCRIBE_DELAYS: Delays =
    Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// The lifetime of a subscription after which its end resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The subscription (`subscriptions/listen`) to list changes of a modern server over stdio.
///
/// Renews itself with a backoff whenever the server ends it, and then the lists count as changed. Stops if the server does not implement the method.
#[derive(Debug, Default)]
pub(super) struct ListenSubscription {
    exchange: Option<UpstreamExchange>,
    started_at: Option<Instant>,
    /// The time of the renewal. `None` while the subscription lasts, or if there is to be none.
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl ListenSubscription {
    /// Subscribes, if the server sends list changes, and waits at most `ack_timeout` for the acknowledgement. After the
    /// timeout the subscription continues: a slow server may still send changes.
    pub(super) async fn subscribe(
        &mut self,
        connection: &Connection,
        ack_timeout: Duration,
    ) -> Result<(), ConnectionError> {
        let Some(filter) = connection.handshake().listen_filter() else { return Ok(()) };
        let mut exchange = connection.listen(&filter).await?;
        match timeout(ack_timeout, exchange.next()).await {
            Ok(Ok(ResponseMessage::Response(response))) => self.schedule_retry(connection, Some(&response)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {
                (self.exchange, self.started_at) = (Some(exchange), Some(Instant::now()));
            }
        }
        Ok(())
    }

    /// Reads the subscription and renews it when it ends. Never returns. Cancel safe.
    pub(super) async fn run(
        &mut self,
        connection: &Connection,
        dispatcher: &NotificationDispatcher,
    ) -> std::convert::Infallible {
        loop {
            match (&mut self.exchange, self.retry_at) {
                (Some(exchange), _) => match exchange.next().await {
                    Ok(ResponseMessage::Response(response)) => {
                        self.schedule_retry(connection, Some(&response));
                    }
                    Ok(_) => {}
                    Err(_) => self.schedule_retry(connection, None),
                },
                (None, Some(retry_at)) => {
                    sleep_until(retry_at).await;
                    let filter = connection.handshake().listen_filter().unwrap_or_default();
                    match connection.listen(&filter).await {
                        Ok(exchange) => {
                            (self.exchange, self.started_at) = (Some(exchange), Some(Instant::now()));
                            self.retry_at = None;
                            // Changes in between were not notified.
                            connection
                                .handshake()
                                .capabilities
                                .offered_lists()
                                .for_each(|list| dispatcher.mark_list_changed(list));
                        }
                        Err(_) => self.schedule_retry(connection, None),
                    }
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Schedules the renewal, unless the server does not implement the method.
    fn schedule_retry(&mut self, connection: &Connection, response: Option<&RpcResponse>) {
        self.exchange = None;
        self.retry_at = match response {
            Some(RpcResponse::Error(error)) if server_message::is_unknown_method(error) => {
                let why = "the server declares listChanged, but does not implement subscriptions/listen";
                connection.report_unheard(why);
                None
            }
            _ => {
                if let Some(started_at) = self.started_at.take() {
                    self.backoff.record_end(started_at.elapsed(), STABLE_AFTER);
                }
                Some(Instant::now() + self.backoff.record_failure(RESUBSCRIBE_DELAYS, jitter(), None))
            }
        };
    }
}
