//! The requests in flight of one session, which the agent can cancel by their ids.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::wire::JsonRpcId;

/// The requests in flight of one session.
///
/// Each has a number of its own besides the id that the agent chose, so that the end of a request never affects a later
/// one with the same id.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlightRequests(Arc<Mutex<Registered>>);

#[derive(Debug, Default)]
struct Registered {
    next_number: u64,
    /// The newest request with each id.
    by_id: HashMap<JsonRpcId, Registration>,
    /// Detached requests whose id was used again: the agent can no longer cancel them.
    superseded: Vec<Registration>,
}

/// A registered request. Dropping it cancels the request.
#[derive(Debug)]
struct Registration {
    number: u64,
    /// True once the agent has disconnected from the response.
    detached: bool,
    _cancel: oneshot::Sender<()>,
}

/// The reason for which a request of a session is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnacceptedRequest {
    /// Another request with its id is in flight.
    DuplicateId,
    /// The maximum number of requests is in flight.
    TooMany,
}

impl InFlightRequests {
    /// Registers a request, unless `max` are in flight or the agent still waits for the response to another one with
    /// this id. A detached request with this id continues, and the agent can no longer cancel it: an agent that was
    /// restarted and resumed its session counts its ids from the start again.
    pub(super) fn begin(&self, id: JsonRpcId, max: usize) -> Result<InFlightRequest, UnacceptedRequest> {
        let (cancel, cancelled) = oneshot::channel();
        let mut registered = self.0.lock();
        if registered.by_id.get(&id).is_some_and(|earlier| !earlier.detached) {
            return Err(UnacceptedRequest::DuplicateId);
        }
        if registered.by_id.len() + registered.superseded.len() >= max {
            return Err(UnacceptedRequest::TooMany);
        }
        let number = registered.next_number;
        registered.next_number += 1;
        let registration = Registration { number, detached: false, _cancel: cancel };
        let earlier = registered.by_id.insert(id.clone(), registration);
        registered.superseded.extend(earlier);
        Ok(InFlightRequest { requests: self.clone(), id, number, cancelled })
    }

    /// Cancels the newest request with this id. Does nothing for other ids.
    pub(super) fn cancel(&self, id: &JsonRpcId) {
        self.0.lock().by_id.remove(id);
    }

    /// Cancels all requests.
    pub(super) fn cancel_all(&self) {
        let mut registered = self.0.lock();
        registered.by_id.clear();
        registered.superseded.clear();
    }

    /// Returns true if there are no requests.
    pub(super) fn is_empty(&self) -> bool {
        let registered = self.0.lock();
        registered.by_id.is_empty() && registered.superseded.is_empty()
    }

    fn mark_detached(&self, id: &JsonRpcId, number: u64) {
        let mut registered = self.0.lock();
        if let Some(registration) = registered.by_id.get_mut(id).filter(|found| found.number == number) {
            registration.detached = true;
        }
    }

    fn remove(&self, id: &JsonRpcId, number: u64) {
        let mut registered = self.0.lock();
        if registered.by_id.get(id).is_some_and(|found| found.number == number) {
            registered.by_id.remove(id);
        } else {
            registered.superseded.retain(|found| found.number != number);
        }
    }
}

/// A guard for a request in flight.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    requests: InFlightRequests,
    id: JsonRpcId,
    number: u64,
    cancelled: oneshot::Receiver<()>,
}

impl InFlightRequest {
    /// Completes when the agent has cancelled the request. Cancel safe. Must not be called again after that.
    pub(super) async fn cancelled(&mut self) {
        // Cancelling drops the sender; nothing is ever sent.
        let _ = (&mut self.cancelled).await;
    }

    /// Marks that the agent has disconnected from the response. It may then use the id for another request.
    pub(super) fn mark_detached(&self) {
        self.requests.mark_detached(&self.id, self.number);
    }
}

/// Completes when the agent has cancelled its request; never for a request that cannot be cancelled by an id.
pub(super) async fn wait_for_cancel(in_flight: &mut Option<InFlightRequest>) {
    match in_flight {
        Some(in_flight) => in_flight.cancelled().await,
        None => std::future::pending().await,
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.requests.remove(&self.id, self.number);
    }
}

#[cfg(test)]
mod tests {
    use oneshot::error::TryRecvError;

    use super::*;

    fn begin(requests: &InFlightRequests, id: u64) -> Option<InFlightRequest> {
        requests.begin(JsonRpcId::from_number(id), 100).ok()
    }

    fn is_cancelled(request: &mut InFlightRequest) -> bool {
        request.cancelled.try_recv() == Err(TryRecvError::Closed)
    }

    #[test]
    fn cancelled_request_frees_its_id_and_its_end_keeps_the_next_one() {
        let requests = InFlightRequests::default();
        let mut first = begin(&requests, 1).unwrap();
        assert!(begin(&requests, 1).is_none(), "the id is in use");
        requests.cancel(&JsonRpcId::from_number(2));
        assert!(!is_cancelled(&mut first));
        requests.cancel(&JsonRpcId::from_number(1));
        let mut second = begin(&requests, 1).unwrap();
        drop(first);
        assert!(begin(&requests, 1).is_none() && !is_cancelled(&mut second));
        drop(second);
        assert!(begin(&requests, 1).is_some());
        assert!(requests.is_empty());
    }

    #[test]
    fn detached_request_leaves_its_id_to_the_next_one() {
        let requests = InFlightRequests::default();
        let mut detached = begin(&requests, 1).unwrap();
        detached.mark_detached();
        let mut newer = begin(&requests, 1).unwrap();
        detached.mark_detached();
        assert!(begin(&requests, 1).is_none(), "the agent waits for the newer one");
        assert!(!is_cancelled(&mut detached), "the server still works on it");

        requests.cancel(&JsonRpcId::from_number(1));
        assert!(is_cancelled(&mut newer) && !is_cancelled(&mut detached));
        let mut newest = begin(&requests, 1).unwrap();
        drop((detached, newer));
        assert!(!is_cancelled(&mut newest));
        drop(newest);
        assert!(requests.is_empty(), "nothing stays registered");

        // Without another request with its id, a detached one can be cancelled.
        let mut detached = begin(&requests, 1).unwrap();
        detached.mark_detached();
        requests.cancel(&JsonRpcId::from_number(1));
        assert!(is_cancelled(&mut detached));
    }

    #[test]
    fn requests_beyond_the_maximum_are_refused_until_others_end() {
        let requests = InFlightRequests::default();
        let begin = |id: u64| requests.begin(JsonRpcId::from_number(id), 2);
        let (first, second) = (begin(1).unwrap(), begin(2).unwrap());
        assert_eq!(begin(1).unwrap_err(), UnacceptedRequest::DuplicateId);
        assert_eq!(begin(3).unwrap_err(), UnacceptedRequest::TooMany);
        // A detached request counts: its server still works on it.
        first.mark_detached();
        assert_eq!(begin(1).unwrap_err(), UnacceptedRequest::TooMany);
        drop(second);
        let again = begin(1).unwrap();
        assert_eq!(begin(3).unwrap_err(), UnacceptedRequest::TooMany);
        drop((first, again));
        assert!(begin(3).is_ok());
    }

    #[test]
    fn end_of_the_session_cancels_every_request() {
        let requests = InFlightRequests::default();
        let mut begun = [begin(&requests, 1), begin(&requests, 2)].map(Option::unwrap);
        begun[0].mark_detached();
        let mut newer = begin(&requests, 1).unwrap();
        requests.cancel_all();
        assert!(begun.iter_mut().all(is_cancelled) && is_cancelled(&mut newer));
    }
}
