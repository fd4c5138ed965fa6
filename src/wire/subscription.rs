use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, UpstreamExchange};
use super::error::ConnectionError;
use super::notifications::NotificationDispatcher;
use super::response::{ResponseMessage, RpcResponse};
use super::server_message;
use crate::net::{Backoff, Delays, jitter};

/// Shortest and longest wait before a subscription that ended is made again.
const AGAIN: Delays = Delays { initial: Duration::from_millis(500), max: Duration::from_mins(5) };
/// A subscription that lasted so long is made again without delay.
const STABLE: Duration = Duration::from_secs(10);

/// The `subscriptions/listen` request on which a modern server tells over stdio that its lists changed.
///
/// Makes it again whenever the server ends it, with a backoff, and then counts the lists as changed; a server that does
/// not know the method is not asked again.
#[derive(Debug, Default)]
pub(super) struct ListenRequest {
    exchange: Option<UpstreamExchange>,
    since: Option<Instant>,
    /// When it is made again; `None` while it lasts, or if it is not wanted.
    again: Option<Instant>,
    backoff: Backoff,
}

impl ListenRequest {
    /// Subscribes, if the server tells of changes at all, and waits for at most `patience` for its acknowledgement: a
    /// server that is slow may tell all the same.
    pub(super) async fn begin(
        &mut self,
        link: &Connection,
        patience: Duration,
    ) -> Result<(), ConnectionError> {
        let Some(filter) = link.peer().changes_told() else { return Ok(()) };
        let mut exchange = link.listen(&filter).await?;
        match timeout(patience, exchange.next()).await {
            Ok(Ok(ResponseMessage::Answer(reply))) => self.ended(Some(&reply)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(ResponseMessage::Notice(_) | ResponseMessage::Progress(_))) | Err(_) => {
                (self.exchange, self.since) = (Some(exchange), Some(Instant::now()));
            }
        }
        Ok(())
    }

    /// Keeps the subscription for as long as it is polled. Never ends. Cancel safe.
    pub(super) async fn keep(
        &mut self,
        link: &Connection,
        ears: &NotificationDispatcher,
    ) -> std::convert::Infallible {
        loop {
            match (&mut self.exchange, self.again) {
                (Some(exchange), _) => match exchange.next().await {
                    Ok(ResponseMessage::Notice(_) | ResponseMessage::Progress(_)) => {}
                    Ok(ResponseMessage::Answer(reply)) => self.ended(Some(&reply)),
                    Err(_) => self.ended(None),
                },
                (None, Some(again)) => {
                    sleep_until(again).await;
                    let filter = link.peer().changes_told().unwrap_or_default();
                    match link.listen(&filter).await {
                        Ok(exchange) => {
                            (self.exchange, self.since) = (Some(exchange), Some(Instant::now()));
                            self.again = None;
                            // What changed meanwhile was told to nobody.
                            link.peer().capabilities.lists().for_each(|list| ears.changed(list));
                        }
                        Err(_) => self.ended(None),
                    }
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    fn ended(&mut self, reply: Option<&RpcResponse>) {
        self.exchange = None;
        self.again = match reply {
            Some(RpcResponse::Error(error)) if server_message::is_unknown_method(error) => None,
            _ => {
                if let Some(since) = self.since.take() {
                    self.backoff.ended(since.elapsed(), STABLE);
                }
                Some(Instant::now() + self.backoff.fail(AGAIN, jitter(), None))
            }
        };
    }
}
