//! Compares JSON values with what SDKs accept. Looks only at members that have a rule; other values are not parsed.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::Date;
use serde_json::value::RawValue;
use url::Url;

use crate::wire::{JsonEdit, Members, decode_json_string, parse_members};

/// The shape that a value must have.
#[derive(Debug)]
pub(super) enum Shape {
    /// Anything.
    Any,
    /// A string.
    Text,
    /// `true` or `false`.
    Flag,
    /// Any object.
    Object,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A number without a fraction.
    Integer,
    /// A number from 0 to 1.
    Fraction,
    /// A time of RFC 3339, with seconds and offset.
    Timestamp,
    /// An absolute URL.
    Url,
    /// A JSON Schema: an object or a boolean.
    Schema,
    /// An array of such values.
    List(&'static Shape),
    /// An object with such values.
    Map(&'static Shape),
    /// An object with these members, and any others.
    Members(&'static [MemberRule]),
}

/// A member of an object, and what it must be. An optional member that is null counts as absent.
#[derive(Debug)]
pub(super) struct MemberRule {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) required: bool,
}

/// The first value that is not what it must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ShapeFault {
    /// The path of the value, such as `annotations.title`.
    path: String,
    /// `None` if a required value is missing.
    expected: Option<String>,
}

impl fmt::Display for ShapeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.expected {
            Some(expected) => write!(f, "{} is not {expected}", self.path),
            None => write!(f, "{} is missing", self.path),
        }
    }
}

impl ShapeFault {
    fn within(mut self, parent: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{parent}{separator}{}", self.path);
        self
    }
}

/// Checks the members of an object. Returns the JSON without optional members that are null, if there are any.
pub(super) fn check_members(
    members: &Members<'_>,
    rules: &'static [MemberRule],
) -> Result<Option<String>, ShapeFault> {
    let mut changes: Vec<(&str, Option<String>)> = Vec::new();
    for MemberRule { name, shape, required } in rules {
        let value = members.get(name);
        match value {
            None if *required => return Err(ShapeFault { path: (*name).to_owned(), expected: None }),
            None => {}
            Some(value) if value.get() == "null" && !required => changes.push((name, None)),
            Some(value) => {
                let mended = check(value, shape).map_err(|fault| fault.within(name))?;
                changes.extend(mended.map(|json| (*name, Some(json))));
            }
        }
    }
    if changes.is_empty() {
        return Ok(None);
    }
    let edits: Vec<_> = changes
        .iter()
        .map(|(name, json)| json.as_deref().map_or(JsonEdit::Remove(name), |json| JsonEdit::Set(name, json)))
        .collect();
    Ok(Some(members.rewrite(&edits)))
}

/// Checks a value. Returns its JSON without optional members that are null, if there are any.
fn check(value: &RawValue, shape: &'static Shape) -> Result<Option<String>, ShapeFault> {
    let json = value.get();
    let fault = || ShapeFault { path: String::new(), expected: Some(shape.to_string()) };
    let require = |holds: bool| if holds { Ok(None) } else { Err(fault()) };
    match shape {
        Shape::Any => Ok(None),
        Shape::Text => require(json.starts_with('"')),
        Shape::Flag => require(matches!(json, "true" | "false")),
        Shape::Object => require(json.starts_with('{')),
        Shape::Schema => require(json.starts_with('{') || matches!(json, "true" | "false")),
        Shape::Choice(choices) => {
            require(decode_json_string(value).is_some_and(|text| choices.contains(&&*text)))
        }
        Shape::Integer => require(is_integer(json)),
        Shape::Fraction => require(number(json).is_some_and(|number| (0.0..=1.0).contains(&number))),
        Shape::Timestamp => require(decode_json_string(value).is_some_and(|text| is_timestamp(&text))),
        Shape::Url => require(decode_json_string(value).is_some_and(|text| Url::parse(&text).is_ok())),
        Shape::List(shape) => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| fault())?;
            let mut checked = Vec::with_capacity(elements.len());
            for (index, element) in elements.iter().enumerate() {
                let mended = check(element, shape).map_err(|fault| fault.within(&format!("[{index}]")))?;
                checked.push(mended.map_or(Cow::Borrowed(element.get()), Cow::Owned));
            }
            let is_mended = checked.iter().any(|element| matches!(element, Cow::Owned(_)));
            Ok(is_mended.then(|| format!("[{}]", checked.join(","))))
        }
        Shape::Map(shape) => {
            let members = parse_members(json).map_err(|_| fault())?;
            for (name, value) in &members {
                check(value, shape).map_err(|fault| fault.within(name))?;
            }
            Ok(None)
        }
        Shape::Members(rules) => {
            let members = parse_members(json).map_err(|_| fault())?;
            check_members(&members, rules)
        }
    }
}

fn number(json: &str) -> Option<f64> {
    serde_json::from_str(json).ok()
}

/// Parsers in TypeScript read every number as a double; those in Python accept a float only if it is a small integer.
fn is_integer(json: &str) -> bool {
    const MAX_INTEGRAL_FLOAT: f64 = 9.2e18;
    let is_literal = json.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    number(json)
        .is_some_and(|number| is_literal || (number.fract() == 0.0 && number.abs() < MAX_INTEGRAL_FLOAT))
}

/// Returns true for a time such as `2025-01-12T15:00:58.5+01:00`: upper case, with seconds, and with a colon in the
/// offset.
fn is_timestamp(text: &str) -> bool {
    let time_of_day = |text: &str| {
        let mut parts = text.split(':').map(|part| {
            let two_digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            two_digits.then(|| part.parse::<u8>().ok()).flatten()
        });
        let [hour, minute, second, more] = [parts.next(), parts.next(), parts.next(), parts.next()];
        let within = |part: Option<Option<u8>>, limit| part.flatten().is_some_and(|part| part < limit);
        (within(hour, 24) && within(minute, 60) && more.is_none(), second.map(|_| within(second, 60)))
    };
    let Some((date, time)) = text.split_once('T') else { return false };
    let is_date = date.len() == 10 && date.parse::<Date>().is_ok();
    let (time, has_offset) = match time.strip_suffix('Z') {
        Some(time) => (time, true),
        None => match time.rsplit_once(['+', '-']) {
            Some((time, offset)) => (time, time_of_day(offset) == (true, None)),
            None => (time, false),
        },
    };
    let (seconds, has_fraction) = match time.split_once('.') {
        Some((seconds, fraction)) => {
            (seconds, !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()))
        }
        None => (time, true),
    };
    is_date && has_offset && has_fraction && time_of_day(seconds) == (true, Some(true))
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("a value"),
            Self::Text => f.write_str("a string"),
            Self::Flag => f.write_str("true or false"),
            Self::Object | Self::Map(_) | Self::Members(_) => f.write_str("an object"),
            Self::Schema => f.write_str("a schema"),
            Self::Choice([only]) => write!(f, "{only:?}"),
            Self::Choice(choices) => write!(f, "one of {choices:?}"),
            Self::Integer => f.write_str("an integer"),
            Self::Fraction => f.write_str("a number from 0 to 1"),
            Self::Timestamp => f.write_str("a time such as \"2025-01-12T15:00:58Z\""),
            Self::Url => f.write_str("an absolute URL"),
            Self::List(_) => f.write_str("an array"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_has_seconds_and_an_offset() {
        for (text, expected) in [
            ("2025-01-12T15:00:58Z", true),
            ("2025-01-12T15:00:58.123456Z", true),
            ("2025-01-12T15:00:58+02:00", true),
            ("2024-02-29T23:59:59-11:30", true),
            ("2025-01-12", false),
            ("2025-01-12T15:00:58", false),
            ("2025-01-12T15:00Z", false),
            ("2025-01-12t15:00:58z", false),
            ("2025-01-12 15:00:58Z", false),
            ("2025-02-30T15:00:58Z", false),
            ("2025-01-12T15:00:58+0200", false),
            ("2025-01-12T15:00:58+02:00:00", false),
            ("2025-01-12T24:00:00Z", false),
            ("2025-01-12T15:00:60Z", false),
            ("2025-01-12T15:00:58.Z", false),
            ("yesterday", false),
            ("", false),
        ] {
            assert_eq!(is_timestamp(text), expected, "{text}");
        }
    }

    #[test]
    fn integer_may_be_written_as_a_small_float() {
        for (json, expected) in [
            ("0", true),
            ("-12", true),
            ("1.0", true),
            ("1e3", true),
            ("9007199254740993", true),
            ("99999999999999999999999", true),
            ("1.5", false),
            ("1e-3", false),
            ("1e30", false),
            ("1e999", false),
            ("\"12\"", false),
            ("true", false),
        ] {
            assert_eq!(is_integer(json), expected, "{json}");
        }
    }
}
