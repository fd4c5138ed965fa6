use std::time::Duration;

use crate::wire::InputMethod;

/// The maximum number of requests for input that one call waits for. A server's further ones are declined.
pub(in crate::gateway) const MAX_OPEN_INPUTS: usize = 16;
/// The maximum number of times that one call to a modern server asks a legacy agent for input.
pub(in crate::gateway) const MAX_INPUT_ROUNDS: usize = 10;

/// Returns the time that an agent has for its response: a person may have to be found for an elicitation.
pub(in crate::gateway) fn input_timeout(method: InputMethod) -> Duration {
    match method {
        InputMethod::Elicitation => Duration::from_hours(1),
        InputMethod::Sampling | InputMethod::Roots => Duration::from_mins(10),
    }
}
