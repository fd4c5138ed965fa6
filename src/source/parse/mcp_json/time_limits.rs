//! The time limits in the JSON files of agents. Pure.
//!
//! Claude Code, Gemini CLI and opencode read `timeout` as milliseconds, Cline and Roo Code as seconds (1 to 3600). The
//! other keys have their unit in their names: those of Codex (`startup_timeout_sec`, `tool_timeout_sec`) and of Kimi
//! Code (`startupTimeoutMs`, `toolTimeoutMs`).

use crate::resource::{BoundedDuration, McpServerSpec};

/// The limit that a key sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// The time for a call.
    Call,
    /// The time from the start until the lists were read.
    Startup,
}

/// The keys that have a unit: the unit in milliseconds, and the limit.
const KEYS_WITH_UNIT: [(&str, u32, Limit); 6] = [
    ("startupTimeoutMs", 1, Limit::Startup),
    ("startup_timeout_ms", 1, Limit::Startup),
    ("startup_timeout_sec", 1000, Limit::Startup),
    ("requestTimeoutMs", 1, Limit::Call),
    ("toolTimeoutMs", 1, Limit::Call),
    ("tool_timeout_sec", 1000, Limit::Call),
];
/// The key without a unit. It yields to a key that has one.
const TIMEOUT_KEY: &str = "timeout";

/// The number below which `timeout` is in seconds: nobody limits a call to less than a second.
const MIN_MILLISECONDS: f64 = 1000.0;
/// The longest `timeout` in seconds that a tool accepts (an hour, in Cline and Roo Code).
const MAX_SECONDS: f64 = 3600.0;

/// Returns the keys that set a time limit.
pub fn time_limit_keys() -> impl Iterator<Item = &'static str> {
    KEYS_WITH_UNIT.iter().map(|(key, ..)| *key).chain([TIMEOUT_KEY])
}

/// The time limits of an entry, in milliseconds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TimeLimits {
    call: Option<u64>,
    call_without_unit: Option<u64>,
    startup: Option<u64>,
}

impl TimeLimits {
    /// Sets the limit of a key. Returns a warning for the author of the file, if there is one.
    pub fn set(&mut self, key: &str, number: &str) -> Option<String> {
        let number = number.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        let Some(number) = number else {
            return Some(format!("{key}: expected a number above 0; it has no effect"));
        };
        if let Some((_, unit, limit)) = KEYS_WITH_UNIT.iter().find(|(name, ..)| *name == key) {
            let millis = Some(to_millis(number, *unit));
            match limit {
                Limit::Call => self.call = millis,
                Limit::Startup => self.startup = millis,
            }
            return None;
        }
        let unit = if number < MIN_MILLISECONDS { 1000 } else { 1 };
        self.call_without_unit = Some(to_millis(number, unit));
        let is_ambiguous = (MIN_MILLISECONDS..=MAX_SECONDS).contains(&number);
        is_ambiguous.then(|| {
            format!(
                "{key}: {number} is read as milliseconds, but some tools mean seconds; write toolTimeoutMs or \
                 tool_timeout_sec instead"
            )
        })
    }

    /// Applies the limits to a spec. Returns a warning for each limit that is out of range.
    pub fn apply(&self, spec: &mut McpServerSpec) -> Vec<String> {
        let mut warnings = Vec::new();
        let timeouts = &mut spec.timeouts;
        set_clamped(&mut timeouts.call, self.call.or(self.call_without_unit), "call", &mut warnings);
        set_clamped(&mut timeouts.connect, self.startup, "connect", &mut warnings);
        if spec.stdio.is_some() {
            set_clamped(&mut timeouts.start, self.startup, "start", &mut warnings);
        }
        warnings
    }
}

fn set_clamped<const MIN: u64, const MAX: u64>(
    field: &mut BoundedDuration<MIN, MAX>,
    millis: Option<u64>,
    name: &str,
    warnings: &mut Vec<String>,
) {
    let Some(millis) = millis else { return };
    *field = BoundedDuration::from_millis_clamped(millis);
    if !(MIN..=MAX).contains(&millis) {
        warnings.push(format!("the time limit is out of range; timeouts.{name} is {field}"));
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive; too large a number saturates"
)]
fn to_millis(number: f64, unit: u32) -> u64 {
    (number * f64::from(unit)).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the limits of a stdio server, and whether there are warnings when the keys are read and applied.
    fn limits(keys: &[(&str, &str)]) -> (String, bool, bool) {
        let mut spec: McpServerSpec =
            serde_json::from_value(serde_json::json!({ "stdio": { "command": "c" } })).unwrap();
        let mut limits = TimeLimits::default();
        let is_warned = keys.iter().filter_map(|(key, number)| limits.set(key, number)).count() > 0;
        let is_clamped = !limits.apply(&mut spec).is_empty();
        let timeouts = &spec.timeouts;
        (format!("{} {} {}", timeouts.start, timeouts.connect, timeouts.call), is_warned, is_clamped)
    }

    #[test]
    fn units_are_those_of_the_tools() {
        for (keys, expected, is_warned, is_clamped) in [
            (&[][..], "5m 30s 10m", false, false),
            (&[("timeout", "60")], "5m 30s 1m", false, false),
            (&[("timeout", "0.5")], "5m 30s 1s", false, true),
            (&[("timeout", "999")], "5m 30s 16m39s", false, false),
            (&[("timeout", "1000")], "5m 30s 1s", true, false),
            (&[("timeout", "1800")], "5m 30s 1s800ms", true, false),
            (&[("timeout", "3601")], "5m 30s 3s601ms", false, false),
            (&[("timeout", "60000")], "5m 30s 1m", false, false),
            (&[("timeout", "2147483647")], "5m 30s 24h", false, true),
            (&[("timeout", "1e300")], "5m 30s 24h", false, true),
            (&[("timeout", "0")], "5m 30s 10m", true, false),
            (&[("timeout", "-5")], "5m 30s 10m", true, false),
            (&[("timeout", "soon")], "5m 30s 10m", true, false),
            (&[("timeout", "NaN")], "5m 30s 10m", true, false),
            (&[("tool_timeout_sec", "60.5")], "5m 30s 1m500ms", false, false),
            (&[("toolTimeoutMs", "1500")], "5m 30s 1s500ms", false, false),
            (&[("timeout", "5000"), ("toolTimeoutMs", "7000")], "5m 30s 7s", false, false),
            (&[("toolTimeoutMs", "7000"), ("timeout", "5000")], "5m 30s 7s", false, false),
            (&[("startup_timeout_sec", "20")], "20s 20s 10m", false, false),
            (&[("startupTimeoutMs", "1200000")], "20m 10m 10m", false, true),
        ] {
            assert_eq!(limits(keys), (expected.to_owned(), is_warned, is_clamped), "{keys:?}");
        }
        assert!(time_limit_keys().any(|key| key == TIMEOUT_KEY));
    }
}
