//! The rules of the state machine as tables: given these events, what follows from the next one.

mod fixture;
mod list_rules;
mod loss_rules;
mod on_demand_rules;
mod replacement_rules;
mod retry_rules;
mod rules;
