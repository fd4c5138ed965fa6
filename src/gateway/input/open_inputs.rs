use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use tokio::time::Instant;

use super::sent_requests::SentInputRequest;
use crate::wire::RpcResponse;

/// The requests for input that a call waits for. Each has a source, which the response is for.
#[derive(Debug)]
pub(in crate::gateway) struct OpenInputs<S>(Vec<OpenInput<S>>);

#[derive(Debug)]
struct OpenInput<S> {
    source: S,
    request: SentInputRequest,
    expires_at: Instant,
}

impl<S> Default for OpenInputs<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> OpenInputs<S> {
    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::gateway) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::gateway) fn push(&mut self, source: S, request: SentInputRequest, expires_at: Instant) {
        self.0.push(OpenInput { source, request, expires_at });
    }

    /// Returns the time at which the first request expires.
    pub(in crate::gateway) fn expires_at(&self) -> Option<Instant> {
        self.0.iter().map(|input| input.expires_at).min()
    }

    /// Waits for the next response, and returns it with its source; `None` in place of the response if there will be
    /// none. Never returns if no request is open. Cancel safe.
    pub(in crate::gateway) async fn next(&mut self) -> (S, Option<RpcResponse>) {
        poll_fn(|context| {
            let responded = self.0.iter_mut().enumerate().find_map(|(index, input)| {
                match Future::poll(Pin::new(&mut input.request.response), context) {
                    Poll::Ready(response) => Some((index, response.ok())),
                    Poll::Pending => None,
                }
            });
            match responded {
                Some((index, response)) => Poll::Ready((self.0.remove(index).source, response)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Removes the first request of which `is_removed` is true. Returns its source, and the notification that cancels it
    /// at the agent.
    pub(in crate::gateway) fn remove(
        &mut self,
        is_removed: impl Fn(&S, Instant) -> bool,
    ) -> Option<(S, Bytes)> {
        let index = self.0.iter().position(|input| is_removed(&input.source, input.expires_at))?;
        let OpenInput { source, request, .. } = self.0.remove(index);
        Some((source, request.cancellation()))
    }
}
