use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MILLIS_PER_HOUR: u64 = 3_600_000;
const MILLIS_PER_MINUTE: u64 = 60_000;
const MILLIS_PER_SECOND: u64 = 1_000;

/// The duration pattern of the Gateway API (GEP-2257): one to four numbers of at most five digits, each followed by the
/// unit `h`, `m`, `s` or `ms`.
pub(super) const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// `timeouts.connect`: 1s to 10m.
pub type ConnectTimeout = BoundedDuration<MILLIS_PER_SECOND, { 10 * MILLIS_PER_MINUTE }>;
/// `timeouts.start`: 1s to 1h.
pub type StartTimeout = BoundedDuration<MILLIS_PER_SECOND, MILLIS_PER_HOUR>;
/// `timeouts.call`: 1s to 24h.
pub type CallTimeout = BoundedDuration<MILLIS_PER_SECOND, { 24 * MILLIS_PER_HOUR }>;
/// `stdio.stop`: 0s to 10m.
pub type StopTimeout = BoundedDuration<0, { 10 * MILLIS_PER_MINUTE }>;
/// `timeouts.drain`: 0s to 10m.
pub type DrainTimeout = BoundedDuration<0, { 10 * MILLIS_PER_MINUTE }>;
/// `timeouts.idle`: 10s to 24h.
pub type IdleTimeout = BoundedDuration<{ 10 * MILLIS_PER_SECOND }, { 24 * MILLIS_PER_HOUR }>;
/// `retry.initial` and `retry.max`: 100ms to 24h.
pub type RetryDelay = BoundedDuration<100, { 24 * MILLIS_PER_HOUR }>;
/// `health.interval`: 0s (off), or 5s to 1h. A separate rule excludes the values in between.
pub type HealthInterval = BoundedDuration<0, MILLIS_PER_HOUR>;
/// `gracePeriod`: 0s to 1h.
pub type GracePeriod = BoundedDuration<0, MILLIS_PER_HOUR>;

/// A duration written as `1h30m`, `20s` or `500ms`, from `MIN` to `MAX` milliseconds, both included.
///
/// Promises that a value outside its bounds cannot exist: parsing a file rejects it, and the CRD contains the same
/// bounds as a CEL rule.
///
/// ```
/// use evenkeel::resource::ConnectTimeout;
///
/// assert_eq!(ConnectTimeout::parse("1m30s")?.get().as_secs(), 90);
/// assert!(ConnectTimeout::parse("11m").unwrap_err().contains("must be from 1s to 10m"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BoundedDuration<const MIN: u64, const MAX: u64>(Duration);

impl<const MIN: u64, const MAX: u64> BoundedDuration<MIN, MAX> {
    /// Parses the text form. The error message says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let millis = parse_millis(text).ok_or_else(|| {
            format!("{text:?} is not a duration; write numbers with h, m, s or ms, such as 30s or 1h30m")
        })?;
        if (MIN..=MAX).contains(&millis) {
            Ok(Self(Duration::from_millis(millis)))
        } else {
            Err(format!(
                "{text:?} is out of range; must be from {} to {}",
                format_millis(MIN),
                format_millis(MAX)
            ))
        }
    }

    /// Returns the duration.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Creates a default value from milliseconds, clamped to the bounds.
    pub(crate) const fn from_millis_clamped(millis: u64) -> Self {
        let clamped = if millis < MIN {
            MIN
        } else if millis > MAX {
            MAX
        } else {
            millis
        };
        Self(Duration::from_millis(clamped))
    }
}

impl<const MIN: u64, const MAX: u64> fmt::Display for BoundedDuration<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_millis(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for BoundedDuration<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for BoundedDuration<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for BoundedDuration<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Duration_{MIN}_{MAX}").into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let (min, max) = (format_millis(MIN), format_millis(MAX));
        schemars::json_schema!({
            "type": "string",
            "pattern": DURATION_PATTERN,
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"),
                "message": format!("must be from {min} to {max}"),
            }],
        })
    }
}

/// Parses a text that matches [`DURATION_PATTERN`] into milliseconds, without a regex; `None` if it does not match.
fn parse_millis(text: &str) -> Option<u64> {
    let mut remaining = text;
    let mut total: u64 = 0;
    for _ in 0..4 {
        let digits = remaining.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 5 {
            return None;
        }
        let (number, tail) = remaining.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let (unit, tail) = if let Some(tail) = tail.strip_prefix("ms") {
            (1, tail)
        } else if let Some(tail) = tail.strip_prefix('h') {
            (MILLIS_PER_HOUR, tail)
        } else if let Some(tail) = tail.strip_prefix('m') {
            (MILLIS_PER_MINUTE, tail)
        } else if let Some(tail) = tail.strip_prefix('s') {
            (MILLIS_PER_SECOND, tail)
        } else {
            return None;
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        remaining = tail;
        if remaining.is_empty() {
            return Some(total);
        }
    }
    None
}

/// Formats milliseconds as the shortest duration text: `90000` becomes `1m30s`.
fn format_millis(mut millis: u64) -> String {
    if millis == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, unit_millis) in
        [("h", MILLIS_PER_HOUR), ("m", MILLIS_PER_MINUTE), ("s", MILLIS_PER_SECOND), ("ms", 1)]
    {
        if millis >= unit_millis {
            text.push_str(&(millis / unit_millis).to_string());
            text.push_str(unit);
            millis %= unit_millis;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_api_duration_pattern_is_parsed() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1h30m", Some(90 * MILLIS_PER_MINUTE)),
            ("1m1s1ms", Some(61_001)),
            ("", None),
            ("10", None),
            ("-1s", None),
            ("1.5s", None),
            ("NaN", None),
            ("1d", None),
            ("100000s", None),
            ("1h1m1s1ms1ms", None),
            ("1s ", None),
        ] {
            assert_eq!(parse_millis(text), expected, "{text:?}");
        }
    }

    #[test]
    fn out_of_range_error_names_the_bounds() {
        let error = ConnectTimeout::parse("0s").unwrap_err();
        assert_eq!(error, "\"0s\" is out of range; must be from 1s to 10m");
        assert!(ConnectTimeout::parse("601s").is_err());
        assert_eq!(ConnectTimeout::parse("600s").unwrap().to_string(), "10m");
        assert!(DrainTimeout::parse("0s").is_ok());
    }

    #[test]
    fn duration_survives_a_round_trip_through_text() {
        for text in ["1s", "1h30m", "2m500ms", "10s"] {
            assert_eq!(CallTimeout::parse(text).unwrap().to_string(), text);
        }
    }
}
