//! The rules of the state machine as tables: given these events, what follows from the next one.

mod fixture;
mod rules;
