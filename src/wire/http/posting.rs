//! Posts the messages of the post queue in the background.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use super::super::error::ConnectionEnd;
use super::super::pending_calls::{CallKind, PendingCall};
use super::super::server_message::{self, ServerMessage};
use super::client::{BACKGROUND_REQUEST_TIMEOUT, HttpClient};
use super::post_queue::{PostMessage, QueueResult};

impl HttpClient {
    /// Handles a message that belongs to no request: responds to a request of the server, and dispatches a notification.
    pub(super) fn dispatch(&self, kind: &ServerMessage, message: &Bytes) {
        match kind {
            ServerMessage::Request(id, method) => {
                self.post_in_background("", server_message::response_to(id, method), None);
            }
            ServerMessage::InputRequest(id, request) => {
                let refused = match &self.0.caller_calls {
                    Some(calls) => calls.receive_input_request(id.clone(), request.clone()),
                    // It belongs to no call, so no agent is responsible for it.
                    None => Some((id.clone(), request.clone())),
                };
                if let Some((id, request)) = refused {
                    let response = server_message::response_message(&id, &request.declined());
                    self.post_in_background("", response, None);
                }
            }
            ServerMessage::Cancelled(id) if let Some(calls) = &self.0.caller_calls => {
                calls.receive_cancelled(id);
            }
            ServerMessage::Response(..) => debug!("a response to no request in flight was skipped"),
            kind => self.notifications().dispatch(kind, message),
        }
    }

    /// Returns the requests of the server that belong to no exchange, for a call of the one caller that uses the
    /// connection. `None` if all callers share it.
    pub(in crate::wire) fn receive_other_inputs(
        &self,
        id: u64,
        end: &Arc<ConnectionEnd>,
    ) -> Option<Box<PendingCall>> {
        let calls = self.0.caller_calls.as_ref()?;
        Some(Box::new(calls.add(id, CallKind::Agent, false, end.clone())))
    }

    /// Queues a notification, or a response to a request of the server, and returns at once. Messages are posted in
    /// order. `drop_after_post` is dropped after the post. The message is dropped if the queue is full.
    pub(in crate::wire) fn post_in_background(
        &self,
        method: &'static str,
        body: Bytes,
        drop_after_post: Option<Box<dyn Any + Send>>,
    ) {
        match self.0.post_queue.push(PostMessage { method, body, drop_after_post }) {
            QueueResult::Queued => {}
            QueueResult::Dropped => {
                debug!(method, "the queue of messages for the server is full; one is dropped");
            }
            QueueResult::StartPosting => {
                let client = self.clone();
                self.0.tasks.spawn(async move { client.drain_post_queue().await });
            }
        }
    }

    /// Posts messages until the queue is empty. After a timeout all queued messages are dropped.
    async fn drain_post_queue(&self) {
        while let Some(PostMessage { method, body, drop_after_post }) = self.0.post_queue.pop() {
            match tokio::time::timeout(BACKGROUND_REQUEST_TIMEOUT, self.notify(method, body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(method, %error, "posting a message in the background failed"),
                Err(_) => {
                    debug!(
                        method,
                        "posting a message in the background timed out; the messages queued after it are dropped"
                    );
                    self.0.post_queue.clear();
                }
            }
            drop(drop_after_post);
        }
    }
}
