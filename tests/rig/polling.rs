//! Responses by polling (SEP-1699): the stream of a call ends at once, and the client asks for the rest with
//! `Last-Event-ID` after the delay that the stream named.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The calls whose response has not been fetched, by number.
#[derive(Default)]
pub(super) struct PolledCalls(Mutex<State>);

#[derive(Default)]
struct State {
    last_number: u64,
    calls: HashMap<u64, PolledCall>,
}

#[derive(Default)]
struct PolledCall {
    /// The number of the streams so far.
    streams: u64,
    /// When the last stream ended.
    ended_at: Option<Instant>,
    /// The events with the messages of the server, once the call has ended.
    events: Option<String>,
}

/// The response to a poll.
pub(super) enum Poll {
    /// The events of a whole stream.
    Stream(String),
    /// No call has this event id.
    UnknownEvent,
    /// The client polled before the delay had passed.
    TooEarly,
}

impl PolledCalls {
    /// Adds a call. Returns its number and the events of its first stream.
    pub(super) fn add(&self, retry: Duration) -> (u64, String) {
        let mut state = self.0.lock().unwrap();
        state.last_number += 1;
        let number = state.last_number;
        let call = state.calls.entry(number).or_default();
        (number, call.unfinished_stream(number, retry))
    }

    /// Records the events of a call that has ended.
    pub(super) fn finish(&self, number: u64, events: String) {
        if let Some(call) = self.0.lock().unwrap().calls.get_mut(&number) {
            call.events = Some(events);
        }
    }

    /// Returns the stream after the event with this id.
    pub(super) fn poll(&self, event_id: &str, retry: Duration) -> Poll {
        let mut state = self.0.lock().unwrap();
        let ids = event_id
            .split_once('-')
            .and_then(|(call, stream)| Some((call.parse::<u64>().ok()?, stream.parse::<u64>().ok()?)));
        let Some((number, _)) = ids
            .filter(|(number, stream)| state.calls.get(number).is_some_and(|call| call.streams == *stream))
        else {
            return Poll::UnknownEvent;
        };
        let Some(call) = state.calls.get_mut(&number) else { return Poll::UnknownEvent };
        if call.ended_at.is_some_and(|at| at.elapsed() < retry) {
            return Poll::TooEarly;
        }
        match call.events.take() {
            Some(events) => {
                state.calls.remove(&number);
                Poll::Stream(events)
            }
            None => Poll::Stream(call.unfinished_stream(number, retry)),
        }
    }
}

impl PolledCall {
    fn unfinished_stream(&mut self, number: u64, retry: Duration) -> String {
        self.streams += 1;
        self.ended_at = Some(Instant::now());
        format!("id: {number}-{}\nretry: {}\ndata:\n\n", self.streams, retry.as_millis())
    }
}
