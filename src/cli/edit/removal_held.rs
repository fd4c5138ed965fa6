use serde_json::Value;

use super::super::query::{text_at, value_at};
use crate::resource::Reason;

/// True if a source holds a removal back because its last declarations disappeared.
pub(super) fn holds_removal(source: &Value) -> bool {
    let reason = Reason::RemovalHeld.to_string();
    let faults = value_at(source, "/status/faults").as_array();
    faults.is_some_and(|faults| faults.iter().any(|fault| text_at(fault, "/reason") == reason))
}
