use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, UpstreamExchange};
use super::error::ConnectionError;
use super::notifications::NotificationDispatcher;
use super::response::{ResponseMessage, RpcResponse};
use super::server_message;
use crate::net::{Backoff, Delays, jitter};

/// Shortest and longest wait before a subscription that ended is made again.
const RESUBSCRIBE_DELAYS: Delays =
    Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// A subscription that lasted so long is made again without delay.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The `subscriptions/listen` request on which a modern server tells over stdio that its lists changed.
///
/// Makes it again whenever the server ends it, with a backoff, and then counts the lists as changed; a server that does
/// not know the method is not asked again.
#[derive(Debug, Default)]
pub(super) struct ListenSubscription {
    exchange: Option<UpstreamExchange>,
    started_at: Option<Instant>,
    /// When it is made again; `None` while it lasts, or if it is not wanted.
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl ListenSubscription {
    /// Subscribes, if the server tells of changes at all, and waits for at most `patience` for its acknowledgement: a
    /// server that is slow may tell all the same.
    pub(super) async fn subscribe(
        &mut self,
        link: &Connection,
        patience: Duration,
    ) -> Result<(), ConnectionError> {
        let Some(filter) = link.handshake().listen_filter() else { return Ok(()) };
        let mut exchange = link.listen(&filter).await?;
        match timeout(patience, exchange.next()).await {
            Ok(Ok(ResponseMessage::Response(reply))) => self.schedule_retry(Some(&reply)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_))) | Err(_) => {
                (self.exchange, self.started_at) = (Some(exchange), Some(Instant::now()));
            }
        }
        Ok(())
    }

    /// Keeps the subscription for as long as it is polled. Never ends. Cancel safe.
    pub(super) async fn run(
        &mut self,
        link: &Connection,
        ears: &NotificationDispatcher,
    ) -> std::convert::Infallible {
        loop {
            match (&mut self.exchange, self.retry_at) {
                (Some(exchange), _) => match exchange.next().await {
                    Ok(ResponseMessage::Notification(_) | ResponseMessage::Progress(_)) => {}
                    Ok(ResponseMessage::Response(reply)) => self.schedule_retry(Some(&reply)),
                    Err(_) => self.schedule_retry(None),
                },
                (None, Some(again)) => {
                    sleep_until(again).await;
                    let filter = link.handshake().listen_filter().unwrap_or_default();
                    match link.listen(&filter).await {
                        Ok(exchange) => {
                            (self.exchange, self.started_at) = (Some(exchange), Some(Instant::now()));
                            self.retry_at = None;
                            // What changed meanwhile was told to nobody.
                            link.handshake()
                                .capabilities
                                .offered_lists()
                                .for_each(|list| ears.mark_list_changed(list));
                        }
                        Err(_) => self.schedule_retry(None),
                    }
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    fn schedule_retry(&mut self, reply: Option<&RpcResponse>) {
        self.exchange = None;
        self.retry_at = match reply {
            Some(RpcResponse::Error(error)) if server_message::is_unknown_method(error) => None,
            _ => {
                if let Some(since) = self.started_at.take() {
                    self.backoff.record_end(since.elapsed(), STABLE_AFTER);
                }
                Some(Instant::now() + self.backoff.record_failure(RESUBSCRIBE_DELAYS, jitter(), None))
            }
        };
    }
}
