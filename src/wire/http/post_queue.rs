use std::any::Any;
use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use parking_lot::Mutex;

/// The maximum number of queued messages.
const MAX_MESSAGES: usize = 1024;
/// The maximum bytes of queued messages. A response repeats the id that the server chose, which determines its size.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// The queue of messages of one connection that are posted one at a time in the background: cancellations, and
/// responses to the server's requests.
///
/// Promises that at most one of them is in flight per server, and at most [`MAX_MESSAGES`] and [`MAX_QUEUED_BYTES`] are
/// in memory. Further ones are dropped. Costs nothing while it is empty: the posting task and the queue are created for
/// the first message and end with the last.
#[derive(Debug, Default)]
pub(super) struct PostQueue(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    /// A task is posting these messages.
    Posting(Box<Queue>),
    /// The connection has ended.
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<PostMessage>,
    bytes: usize,
}

/// A notification, or a response to a request of the server.
pub(super) struct PostMessage {
    /// The method of a notification; empty for a response.
    pub(super) method: &'static str,
    /// The whole JSON-RPC message.
    pub(super) body: Bytes,
    /// A value that is dropped once the message was posted or discarded.
    pub(super) drop_after_post: Option<Box<dyn Any + Send>>,
}

/// The result of adding a message to the queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueueResult {
    /// The message is queued for the running posting task.
    Queued,
    /// The message is queued, and the caller must start the posting task.
    StartPosting,
    /// The queue is full or the connection is closed.
    Dropped,
}

impl PostQueue {
    /// Adds a message, if there is room.
    pub(super) fn push(&self, message: PostMessage) -> QueueResult {
        let mut state = self.0.lock();
        let (queue, queued) = match &mut *state {
            State::Closed => return QueueResult::Dropped,
            State::Posting(queue) => (queue, QueueResult::Queued),
            empty @ State::Empty => {
                *empty = State::Posting(Box::default());
                let State::Posting(queue) = empty else { return QueueResult::Dropped };
                (queue, QueueResult::StartPosting)
            }
        };
        let bytes = queue.bytes + message.body.len();
        // The first message is always accepted, so that the posting task has one.
        if queued == QueueResult::Queued && (queue.messages.len() >= MAX_MESSAGES || bytes > MAX_QUEUED_BYTES)
        {
            return QueueResult::Dropped;
        }
        queue.bytes = bytes;
        queue.messages.push_back(message);
        queued
    }

    /// Removes the next message to post. `None` ends the posting task.
    pub(super) fn pop(&self) -> Option<PostMessage> {
        let mut state = self.0.lock();
        let State::Posting(queue) = &mut *state else { return None };
        let message = queue.messages.pop_front();
        match &message {
            Some(message) => queue.bytes -= message.body.len(),
            None => *state = State::Empty,
        }
        message
    }

    /// Drops all queued messages.
    pub(super) fn clear(&self) {
        let dropped = match &mut *self.0.lock() {
            State::Posting(queue) => std::mem::take(&mut **queue),
            State::Empty | State::Closed => Queue::default(),
        };
        // Dropped outside the lock: dropping a message may take other locks.
        drop(dropped);
    }

    /// Drops all queued messages and rejects later ones.
    pub(super) fn close(&self) {
        let dropped = std::mem::replace(&mut *self.0.lock(), State::Closed);
        drop(dropped);
    }
}

impl fmt::Debug for PostMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostMessage({:?}, {} bytes)", self.method, self.body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> PostMessage {
        PostMessage { method: "", body: Bytes::from(vec![b' '; size]), drop_after_post: None }
    }

    #[test]
    fn messages_are_posted_in_order_by_one_task() {
        let queue = PostQueue::default();
        assert_eq!(queue.push(message(1)), QueueResult::StartPosting);
        assert_eq!(queue.push(message(2)), QueueResult::Queued);
        assert_eq!(queue.pop().unwrap().body.len(), 1);
        assert_eq!(queue.push(message(3)), QueueResult::Queued, "the task is still posting");
        assert_eq!([queue.pop().unwrap().body.len(), queue.pop().unwrap().body.len()], [2, 3]);
        assert!(queue.pop().is_none());
        assert_eq!(queue.push(message(4)), QueueResult::StartPosting, "the task has ended");
    }

    #[test]
    fn messages_beyond_the_limits_are_dropped() {
        let queue = PostQueue::default();
        let pushed = (0..MAX_MESSAGES * 3).filter(|_| queue.push(message(1)) != QueueResult::Dropped).count();
        assert_eq!(pushed, MAX_MESSAGES);
        queue.clear();
        assert!(queue.pop().is_none());
        assert_eq!(queue.push(message(MAX_QUEUED_BYTES)), QueueResult::StartPosting, "there is room again");
        assert_eq!(queue.push(message(1)), QueueResult::Dropped);
        queue.pop();
        assert_eq!(queue.push(message(1)), QueueResult::Queued);
        queue.close();
        assert_eq!(queue.push(message(1)), QueueResult::Dropped, "closed");
    }
}
