//! Posts what waits in the outbox.

use std::any::Any;

use bytes::Bytes;
use tracing::debug;

use super::client::{BACKGROUND_REQUEST_TIMEOUT, HttpClient};
use super::post_queue::{PostMessage, QueueResult};

impl HttpClient {
    /// Posts a notification, or an answer to a request of the server, in the background, after those before it. Does
    /// not wait; `held` is dropped after it. It is dropped if the server is too far behind with those before it.
    pub(in crate::wire) fn post_in_background(
        &self,
        method: &'static str,
        body: Bytes,
        held: Option<Box<dyn Any + Send>>,
    ) {
        match self.0.post_queue.push(PostMessage { method, body, drop_after_post: held }) {
            QueueResult::Queued => {}
            QueueResult::Dropped => debug!(method, "too many messages wait for the server; one was dropped"),
            QueueResult::StartPosting => {
                let client = self.clone();
                self.0.tasks.spawn(async move { client.drain_post_queue().await });
            }
        }
    }

    async fn drain_post_queue(&self) {
        while let Some(PostMessage { method, body, drop_after_post: held }) = self.0.post_queue.pop() {
            match tokio::time::timeout(BACKGROUND_REQUEST_TIMEOUT, self.notify(method, body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(method, %error, "a notification was not taken"),
                Err(_) => {
                    debug!(method, "a notification was not taken in time; those behind it are dropped");
                    self.0.post_queue.clear();
                }
            }
            drop(held);
        }
    }
}
