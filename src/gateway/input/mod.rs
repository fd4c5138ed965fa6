//! Requests of servers for input from agents (elicitation, sampling, roots), in every pairing of eras.
//!
//! A legacy agent gets a JSON-RPC request on the stream of its call, and posts the response. A modern agent gets a
//! result that asks for input, and repeats its request with the responses (2026-07-28, Multi Round-Trip Requests); the
//! call to a legacy server stays open meanwhile.
//!
//! Promises that every request of a server gets exactly one response, and that an agent gets requests only for its own
//! calls. Never asks for what the agent has not declared.

mod input_required;
mod limits;
mod open_inputs;
mod process_ref;
mod request_state;
mod sent_requests;
mod suspended_calls;

pub(super) use input_required::{InputRequired, input_required_result, required_url_elicitations};
pub(super) use limits::{MAX_INPUT_ROUNDS, MAX_OPEN_INPUTS, input_timeout};
pub(super) use open_inputs::OpenInputs;
pub(super) use process_ref::{OwnProcess, ProcessRef};
pub(super) use request_state::{RequestBinding, RequestStates, StateContent};
pub(super) use sent_requests::SentInputRequests;
pub(super) use suspended_calls::{SuspendedCall, SuspendedCalls};
