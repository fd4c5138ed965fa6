use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// The step of an attempt to connect, for the message of one that takes too long. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AttemptStep(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The address to which a connection is being opened.
    opening: Option<String>,
    /// The last request.
    method: String,
    /// The number of requests for it so far: the pages of a list.
    pages: u32,
}

impl AttemptStep {
    /// Records a request. Requests for the pages of a list are counted.
    pub(super) fn record_request(&self, method: &str) {
        let mut state = self.0.lock();
        if state.method == method {
            state.pages = state.pages.saturating_add(1);
        } else {
            method.clone_into(&mut state.method);
            state.pages = 1;
        }
    }

    /// Records that a connection to an address is being opened; `None` when it is open.
    pub(super) fn record_opening(&self, address: Option<&str>) {
        self.0.lock().opening = address.map(str::to_owned);
    }
}

/// Formats what the attempt waits for.
impl fmt::Display for AttemptStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { opening, method, pages } = &*self.0.lock();
        match (opening, pages) {
            (Some(address), _) => write!(f, "a connection to {address}"),
            (None, 0) => f.write_str("the start of the server"),
            (None, 1) => write!(f, "the response to {method}"),
            (None, page) => write!(f, "the response to {method}, page {page}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_names_the_connection_or_the_request() {
        let step = AttemptStep::default();
        let mut texts = vec![step.to_string()];
        step.record_request("initialize");
        step.record_opening(Some("a:1"));
        texts.push(step.to_string());
        step.record_opening(None);
        texts.push(step.to_string());
        step.record_request("tools/list");
        texts.push(step.to_string());
        step.record_request("tools/list");
        texts.push(step.to_string());
        assert_eq!(
            texts,
            [
                "the start of the server",
                "a connection to a:1",
                "the response to initialize",
                "the response to tools/list",
                "the response to tools/list, page 2"
            ]
        );
    }
}
