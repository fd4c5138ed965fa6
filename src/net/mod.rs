//! Small tools for whatever talks over a network.
//!
//! Promises one backoff for everything that is tried again. Knows no protocol and does no I/O of its own.

mod backoff;

pub use backoff::{Backoff, Delays, jitter};
