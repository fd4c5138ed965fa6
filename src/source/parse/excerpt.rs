//! Describes a YAML error for the author of the file: what is wrong, where, and the surrounding lines.
//!
//! Promises that neither the message nor the lines show a value that may be a secret: `env` and `headers` contain
//! secrets literally, and the fields of a broken document cannot be told apart.

use std::fmt::Write;

use serde_yaml::{Error, MessageFormatter, UserMessageFormatter};

use super::positions::Position;
use crate::text::is_invisible;

/// An error in a document, with its position in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    pub position: Position,
    /// The message, one sentence.
    pub message: String,
    /// The surrounding lines, without values.
    pub excerpt: Option<String>,
}

impl ParseError {
    /// Creates an error that concerns a whole line.
    pub fn at_line(line: u32, message: String) -> Self {
        Self { position: Position { line, column: None }, message, excerpt: None }
    }
}

/// Returns the position of a YAML error. The document begins at line `first_line` of its file.
pub fn error_position(error: &Error, first_line: u32) -> Position {
    let to_u32 = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let (line, column) = error
        .location()
        .map_or((1, 1), |location| (to_u32(location.line()).max(1), to_u32(location.column()).max(1)));
    Position { line: first_line.saturating_add(line - 1), column: Some(column) }
}

/// Converts the YAML error of the document `text`, which begins at line `first_line` of its file. `path` is the field
/// that the error is about.
pub fn describe_yaml_error(error: &Error, text: &str, first_line: u32, path: &str) -> ParseError {
    let position = error_position(error, first_line);
    ParseError {
        position,
        message: yaml_error_message(error, path),
        excerpt: Some(excerpt(text, first_line, position)),
    }
}

/// Returns the candidate that was probably intended, if one is close enough to `word`.
pub fn closest_match<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&word, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the text with every invisible or control character replaced by U+FFFD.
pub fn printable(text: &str) -> String {
    text.replace(is_invisible, "\u{fffd}")
}

/// Returns the text, truncated to the length that a message may have.
pub fn truncated(text: &str) -> String {
    match text.char_indices().nth(1_000) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Returns `; did you mean "x"?`, or an empty text if no candidate is close enough.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    closest_match(word, candidates).map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"))
}

/// Returns the message of an error, which begins with the path of its field if it is about the value of one.
fn yaml_error_message(error: &Error, path: &str) -> String {
    let at_path = |message: &str| {
        if path.is_empty() { message.to_owned() } else { format!("{}: {message}", printable(path)) }
    };
    match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => {
            let suggestion = did_you_mean(field, expected.iter().copied());
            let outer = path.strip_suffix(field.as_str()).unwrap_or_default();
            let field = format!("{outer}{field}");
            if suggestion.is_empty() {
                format!("unknown field {field:?}; expected one of {}", expected.join(", "))
            } else {
                format!("unknown field {field:?}{suggestion}")
            }
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let suggestion = did_you_mean(variant, expected.iter().copied());
            at_path(&format!("{variant:?} is not one of {}{suggestion}", expected.join(", ")))
        }
        Error::SerdeMissingField { field, .. } => at_path(&format!("{field} is missing")),
        Error::SerdeInvalidType { .. } | Error::Unexpected { .. } | Error::QuotingRequired { .. }
            if is_duration(path) =>
        {
            at_path("write a duration, such as 30s")
        }
        // The value may be a secret, so the message contains only its kind.
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            let kind = unexpected.split(['"', '`']).next().unwrap_or_default().trim();
            at_path(&format!("expected {}, found {kind}", expectation(expected)))
        }
        Error::Unexpected { expected, .. } => at_path(&format!("expected {}", expectation(expected))),
        Error::QuotingRequired { .. } => {
            at_path("expected a string; quote numbers, true and false to use them as strings")
        }
        Error::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => at_path("write a whole number"),
        Error::InvalidBooleanStrict { .. } => at_path("write true or false"),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key {key:?}"),
        Error::UnsupportedTag { .. } => "YAML tags (!…) are not supported".to_owned(),
        Error::Budget { .. } => "the document is too large or too deeply nested".to_owned(),
        Error::AliasError { error, .. } => yaml_error_message(error, path),
        other => at_path(&printable(&UserMessageFormatter.format_message(other))),
    }
}

/// Returns what a parser expects, in words for people.
fn expectation(expected: &str) -> &str {
    match expected {
        "mapping start" => "fields, each as `key: value`",
        "sequence start" | "a sequence" => "a list",
        _ if expected.starts_with("struct ") => "fields, each as `key: value`",
        other => other,
    }
}

/// True for the fields that hold a duration.
fn is_duration(path: &str) -> bool {
    path.starts_with("spec.timeouts.")
        || path.starts_with("spec.retry.")
        || matches!(path, "spec.health.interval" | "spec.gracePeriod")
}

/// The number of columns of a line that are shown.
const MAX_EXCERPT_COLUMNS: usize = 100;

/// Returns the line before the position, the line itself with a caret below it, and the line after it. `text` begins at
/// line `first_line`.
pub fn excerpt(text: &str, first_line: u32, Position { line, column }: Position) -> String {
    let mut output = String::new();
    for (number, source_line) in (first_line..).zip(text.lines()) {
        if number + 1 < line {
            continue;
        }
        if number > line.saturating_add(1) {
            break;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(output, "{number:>6} | {}", mask_values(source_line));
        let Some(column) = column.filter(|_| number == line) else { continue };
        let indent = usize::try_from(column.saturating_sub(1)).unwrap_or(MAX_EXCERPT_COLUMNS);
        if indent < MAX_EXCERPT_COLUMNS {
            let _ = writeln!(output, "       | {:indent$}^", "");
        }
    }
    output.truncate(output.trim_end().len());
    output
}

/// The fields whose values are never secret; the values of all other fields are masked.
const UNMASKED_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "name",
    "namespace",
    "command",
    "cwd",
    "key",
    "optional",
    "prefix",
    "suspend",
    "protocol",
    "activation",
    "isolation",
    "maxSessions",
    "roots",
    "update",
    "required",
    "connect",
    "call",
    "drain",
    "idle",
    "initial",
    "max",
    "interval",
    "failures",
    "gracePeriod",
    "path",
];

/// Returns the line with its keys and without values that may be secret.
fn mask_values(line: &str) -> String {
    let body = line.trim_start_matches([' ', '-', '\t']);
    let indent: String = line.chars().take(line.len() - body.len()).collect();
    let body = body.trim_end();
    let (key, value) = match body.split_once(": ") {
        Some((key, value)) => (key, value.trim()),
        None => (body.strip_suffix(':').unwrap_or_default(), ""),
    };
    let is_plain = |text: &str| {
        text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/@-".contains(&b))
    };
    let unquoted_key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    let masked = match (body, key, value) {
        ("" | "...", _, _) => body.to_owned(),
        (_, "", _) => "…".to_owned(),
        _ if !is_plain(unquoted_key) => "…".to_owned(),
        (_, key, "") => format!("{key}:"),
        (_, key, value) if UNMASKED_FIELDS.contains(&key) && is_plain(value) => format!("{key}: {value}"),
        (_, key, _) => format!("{key}: …"),
    };
    // One column stays one column, so that the caret is placed correctly.
    printable(&(indent + &masked).replace('\t', " ")).chars().take(MAX_EXCERPT_COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_match_ignores_distant_words() {
        let fields = ["command", "args", "cwd", "env", "valueFrom"];
        for (word, expected) in [
            ("comand", Some("command")),
            ("Command", Some("command")),
            ("valuefrom", Some("valueFrom")),
            ("arg", Some("args")),
            ("nev", Some("env")),
            ("url", None),
            ("environment", None),
        ] {
            assert_eq!(closest_match(word, fields), expected, "{word}");
        }
    }

    #[test]
    fn possibly_secret_values_are_masked() {
        for (line, expected) in [
            ("    command: npx", "    command: npx"),
            ("      - name: TOKEN", "      - name: TOKEN"),
            ("        value: hunter2", "        value: …"),
            ("        value:", "        value:"),
            ("      - { name: TOKEN, value: hunter2 }", "      - …"),
            ("    env: TOKEN=hunter2", "    env: …"),
            ("      TOKEN: hunter2", "      TOKEN: …"),
            ("    name: TOKEN, value: hunter2", "    name: …"),
            ("    url: https://a/?key=hunter2", "    url: …"),
            ("          hunter2", "          …"),
            ("  \"a\": hunter2", "  \"a\": …"),
            ("  \"a: hunter2", "  …"),
            ("\t\turl: https://a/?key=hunter2", "  url: …"),
            ("---", "---"),
            ("", ""),
        ] {
            assert_eq!(mask_values(line), expected, "{line}");
        }
    }

    #[test]
    fn excerpt_has_a_caret_below_the_position() {
        let text = "stdio:\n  comand: npx\n  args: [x]\n  cwd: y\n";
        assert_eq!(
            excerpt(text, 10, Position { line: 11, column: Some(3) }),
            "    10 | stdio:\n    11 |   comand: …\n       |   ^\n    12 |   args: …"
        );
    }
}
