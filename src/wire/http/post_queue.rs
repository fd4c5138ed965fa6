use std::any::Any;
use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use parking_lot::Mutex;

/// The most messages that wait at once.
const MAX_MESSAGES: usize = 1024;
/// The most bytes of messages that wait at once: an answer repeats the id that the server chose.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Messages of one connection that are posted one after another, with nobody waiting: cancellations and answers to
/// the server's requests.
///
/// Promises that a server cannot have more than one of them under way, nor more than [`MESSAGES`] or [`BYTES`] of them
/// in memory: what is beyond is dropped. Costs nothing while it is empty: the task that posts and the queue are made for
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

/// A notification, or an answer to a request of the server.
pub(super) struct PostMessage {
    /// The method of a notification; empty for an answer.
    pub(super) method: &'static str,
    /// The whole JSON-RPC message.
    pub(super) body: Bytes,
    /// Dropped once the message was posted or given up.
    pub(super) drop_after_post: Option<Box<dyn Any + Send>>,
}

/// Tells whether a message was queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueueResult {
    /// It waits for the task that is posting.
    Queued,
    /// It waits, and a task must be started to post it.
    StartPosting,
    /// There is no room, or the connection is closed.
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
        // The first is always taken, so that the task that posts has one.
        if queued == QueueResult::Queued && (queue.messages.len() >= MAX_MESSAGES || bytes > MAX_QUEUED_BYTES)
        {
            return QueueResult::Dropped;
        }
        queue.bytes = bytes;
        queue.messages.push_back(message);
        queued
    }

    /// Takes the next message to post. `None` ends the posting task.
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

    /// Drops the messages that wait.
    pub(super) fn clear(&self) {
        let dropped = match &mut *self.0.lock() {
            State::Posting(queue) => std::mem::take(&mut **queue),
            State::Empty | State::Closed => Queue::default(),
        };
        // Outside the lock: what a message holds may take locks of its own when it is dropped.
        drop(dropped);
    }

    /// Drops the messages that wait and all that would come.
    pub(super) fn close(&self) {
        let dropped = std::mem::replace(&mut *self.0.lock(), State::Closed);
        drop(dropped);
    }
}

impl fmt::Debug for PostMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({:?}, {} bytes)", self.method, self.body.len())
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
        let outbox = PostQueue::default();
        assert_eq!(outbox.push(message(1)), QueueResult::StartPosting);
        assert_eq!(outbox.push(message(2)), QueueResult::Queued);
        assert_eq!(outbox.pop().unwrap().body.len(), 1);
        assert_eq!(outbox.push(message(3)), QueueResult::Queued, "the task is still posting");
        assert_eq!([outbox.pop().unwrap().body.len(), outbox.pop().unwrap().body.len()], [2, 3]);
        assert!(outbox.pop().is_none());
        assert_eq!(outbox.push(message(4)), QueueResult::StartPosting, "the task has ended");
    }

    #[test]
    fn messages_beyond_the_limits_are_dropped() {
        let outbox = PostQueue::default();
        let pushed =
            (0..MAX_MESSAGES * 3).filter(|_| outbox.push(message(1)) != QueueResult::Dropped).count();
        assert_eq!(pushed, MAX_MESSAGES);
        outbox.clear();
        assert!(outbox.pop().is_none());
        assert_eq!(
            outbox.push(message(MAX_QUEUED_BYTES)),
            QueueResult::StartPosting,
            "the room is free again"
        );
        assert_eq!(outbox.push(message(1)), QueueResult::Dropped);
        outbox.pop();
        assert_eq!(outbox.push(message(1)), QueueResult::Queued);
        outbox.close();
        assert_eq!(outbox.push(message(1)), QueueResult::Dropped, "closed");
    }
}
