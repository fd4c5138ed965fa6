use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use crate::wire::ListKind;

/// A request of the users of a handle to the connection actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleRequest {
    /// A call waits for the connection of an idle server.
    Connect,
    /// The server did not know an item of this list: the list may have changed without a notification.
    CheckList(ListKind),
}

/// The requests that the connection actor has not taken yet. Equal ones count once.
#[derive(Debug, Default)]
pub(super) struct HandleRequests {
    /// One bit for each request.
    pending: AtomicU8,
    added: Notify,
}

impl HandleRequest {
    /// Returns all requests, those to connect first.
    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Connect).chain(ListKind::ALL.map(Self::CheckList))
    }

    fn bit(self) -> u8 {
        match self {
            Self::Connect => 1,
            Self::CheckList(list) => 2 << list as u8,
        }
    }
}

impl HandleRequests {
    pub(super) fn add(&self, request: HandleRequest) {
        self.pending.fetch_or(request.bit(), Ordering::AcqRel);
        self.added.notify_one();
    }

    pub(super) fn remove(&self, request: HandleRequest) {
        self.pending.fetch_and(!request.bit(), Ordering::AcqRel);
    }

    /// Waits for the next request. Cancel safe; only one task may wait.
    pub(super) async fn next(&self) -> HandleRequest {
        loop {
            let pending = self.pending.load(Ordering::Acquire);
            if let Some(request) = HandleRequest::all().find(|request| pending & request.bit() != 0) {
                self.remove(request);
                return request;
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::HandleRequest::{CheckList, Connect};
    use super::*;

    #[test]
    fn equal_requests_count_once() {
        let requests = HandleRequests::default();
        for list in [ListKind::Resources, ListKind::Tools, ListKind::Tools] {
            requests.add(CheckList(list));
        }
        requests.add(Connect);
        let next = || requests.next().now_or_never();
        let expected = [Connect, CheckList(ListKind::Tools), CheckList(ListKind::Resources)];
        assert_eq!(
            [next(), next(), next(), next()],
            [Some(expected[0]), Some(expected[1]), Some(expected[2]), None]
        );
        requests.add(CheckList(ListKind::Templates));
        assert_eq!(next(), Some(CheckList(ListKind::Templates)));
        requests.add(Connect);
        requests.remove(Connect);
        assert_eq!(next(), None);
    }
}
