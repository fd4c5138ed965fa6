//! Parses the frontmatter of SKILL.md. Pure functions.

use std::ops::Range;

use serde::Deserialize;
use serde_yaml::{MessageFormatter, Options, UserMessageFormatter};

use super::error::SkillError;
use super::file::SKILL_FILE;

/// The maximum length of a name, in characters.
const MAX_NAME_CHARS: usize = 64;
/// The maximum length of a description, in characters.
const MAX_DESCRIPTION_CHARS: usize = 1024;
/// The maximum length of the part of a line that an error message quotes, in characters.
const MAX_EXCERPT_CHARS: usize = 120;

/// The parsed description of a SKILL.md, and the byte ranges of its YAML and its body.
#[derive(Debug)]
pub(super) struct Frontmatter {
    pub description: String,
    /// The range of the YAML between the two `---` lines.
    pub yaml: Range<usize>,
    /// The range of the text after the second `---` line.
    pub body: Range<usize>,
}

/// The required frontmatter fields. All other fields are ignored here.
#[derive(Deserialize)]
struct FrontmatterFields {
    name: Option<String>,
    description: Option<String>,
}

/// Parses the frontmatter of a skill that is declared under `name`.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Frontmatter, SkillError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.split(|byte| *byte == b'\n').count();
        SkillError::at_line(SKILL_FILE, line_number(line), "the file is not valid UTF-8")
    })?;
    let Some((yaml, body)) = split_frontmatter(text) else {
        let has_start = text.strip_prefix('\u{feff}').unwrap_or(text).starts_with("---");
        let message = if has_start {
            "the frontmatter is not closed: the second line --- is missing"
        } else {
            "the frontmatter is missing: the file must start with a line ---, the fields name: and description:, \
             and a line ---"
        };
        return Err(SkillError::at_line(SKILL_FILE, 1, message));
    };
    let source = text.get(yaml.clone()).unwrap_or_default();
    let error_at = |line: u32, message: String| {
        let source_line = source.lines().nth(usize::try_from(line).unwrap_or_default().saturating_sub(2));
        SkillError { excerpt: source_line.map(excerpt), ..SkillError::at_line(SKILL_FILE, line, message) }
    };
    let fields = serde_yaml::from_str_with_options::<Option<FrontmatterFields>>(source, yaml_options())
        .map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            let message = UserMessageFormatter.format_message(error.without_snippet()).replace('\n', " ");
            let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
            // A common mistake is an unquoted colon in a value: `description: Use it: always`.
            let source_line = source.lines().nth(usize::try_from(line).unwrap_or_default().saturating_sub(2));
            let has_colon = source_line.is_some_and(|text| text.matches(": ").count() > 1);
            let hint = if has_colon { "; a value that contains a colon must be quoted" } else { "" };
            error_at(line, format!("the frontmatter is not valid YAML: {message}{hint}"))
        })?
        .unwrap_or(FrontmatterFields { name: None, description: None });
    // Every field starts at the beginning of a line.
    let line_of = |field: &str| {
        let found = source.lines().position(|line| line.starts_with(field));
        found.map_or(1, |index| line_number(index + 2))
    };
    let declared_name = fields.name.ok_or_else(|| error_at(1, "the frontmatter has no name".to_owned()))?;
    if let Some(message) = name_violation(&declared_name) {
        return Err(error_at(line_of("name"), format!("the name {} {message}", excerpt(&declared_name))));
    }
    if declared_name != name {
        let message =
            format!("the name {declared_name:?} must be the same as the name of the skill, {name:?}");
        return Err(error_at(line_of("name"), message));
    }
    let description = fields.description.map(|text| text.trim().to_owned()).unwrap_or_default();
    match description.chars().count() {
        0 => Err(error_at(line_of("description"), "the frontmatter has no description".to_owned())),
        1..=MAX_DESCRIPTION_CHARS => Ok(Frontmatter { description, yaml, body }),
        count => {
            let message = format!(
                "the description has {count} characters; at most {MAX_DESCRIPTION_CHARS} are allowed"
            );
            Err(error_at(line_of("description"), message))
        }
    }
}

/// Returns why `name` is not a valid skill name, as the end of a sentence; `None` if it is valid.
fn name_violation(name: &str) -> Option<&'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME_CHARS {
        return Some("must have 1 to 64 characters");
    }
    if !name.bytes().all(is_allowed) {
        return Some("may contain only lower-case letters, digits and hyphens");
    }
    let misplaced_hyphen = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    misplaced_hyphen.then_some("must not start or end with a hyphen or contain two in a row")
}

/// Returns the ranges of the YAML between the first two `---` lines and of the text after them; `None` if either line
/// is missing.
fn split_frontmatter(text: &str) -> Option<(Range<usize>, Range<usize>)> {
    let start = text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len();
    let mut lines = text.get(start..)?.split_inclusive('\n');
    let first = lines.next().filter(|line| line.trim_end() == "---")?;
    let yaml = start + first.len();
    let mut at = yaml;
    for line in lines {
        if line.trim_end() == "---" {
            return Some((yaml..at, at + line.len()..text.len()));
        }
        at += line.len();
    }
    None
}

/// Quotes a line for an error message: truncated, and with control characters replaced.
fn excerpt(line: &str) -> String {
    let quoted: String = line
        .chars()
        .take(MAX_EXCERPT_CHARS)
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect();
    format!("{quoted:?}")
}

fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// Returns YAML parser options with limits, because a small text can expand to a huge document.
fn yaml_options() -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: 32,
            max_nodes: 10_000,
            max_events: 30_000,
            max_aliases: 100,
            max_anchors: 100,
            max_recorded_anchor_events: 2_000,
            max_merge_keys: 100,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 2_000,
            max_replay_stack_depth: 16,
        },
        emit_comments: false,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontmatter_errors_name_the_line_and_the_field() {
        let long = format!("---\nname: a\ndescription: {}\n---\n", "x".repeat(1025));
        let table: &[(&str, &str)] = &[
            ("---\nname: a\ndescription: Does it.\n---\nBody.\n", ""),
            ("\u{feff}---\r\nname: a\r\ndescription: Does it.\r\n---\r\nBody.\r\n", ""),
            (
                "---\nname: a\ndescription: >-\n  Two\n  lines.\nlicense: MIT\nmetadata: { x: 'y' }\n\
                 whenToUse: now\n---",
                "",
            ),
            ("---\nname: a\ndescription: \"Use: when asked\"\n---\n", ""),
            ("", "SKILL.md:1: the frontmatter is missing"),
            ("# Title\n", "SKILL.md:1: the frontmatter is missing"),
            ("---\nname: a\n", "SKILL.md:1: the frontmatter is not closed"),
            ("---\n---\nBody.\n", "SKILL.md:1: the frontmatter has no name"),
            ("---\nname: a\n---\n", "SKILL.md:1: the frontmatter has no description"),
            ("---\nname: a\ndescription: '  '\n---\n", "SKILL.md:3: the frontmatter has no description"),
            (
                "---\nname: a\ndescription: Use: when asked\n---\n",
                "SKILL.md:3: the frontmatter is not valid YAML",
            ),
            ("---\nname: [a]\ndescription: x\n---\n", "SKILL.md:2: the frontmatter is not valid YAML"),
            (
                "---\nname: b\ndescription: x\n---\n",
                "SKILL.md:2: the name \"b\" must be the same as the name of the skill, \"a\": \"name: b\"",
            ),
            ("---\nname: A b\ndescription: x\n---\n", "SKILL.md:2: the name \"A b\" may contain"),
            ("---\nname: a--b\ndescription: x\n---\n", "SKILL.md:2: the name \"a--b\" must not start"),
            ("---\nname: -a\ndescription: x\n---\n", "SKILL.md:2: the name \"-a\" must not start"),
            (&long, "SKILL.md:3: the description has 1025 characters"),
        ];
        for (text, expected) in table {
            let message =
                parse("a", text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                message.starts_with(expected) && message.is_empty() == expected.is_empty(),
                "{text:?}: {message}"
            );
        }
        assert_eq!(
            parse("a", b"---\n\xff").unwrap_err().to_string(),
            "SKILL.md:2: the file is not valid UTF-8"
        );
    }

    #[test]
    fn frontmatter_is_kept_byte_for_byte() {
        let text =
            "---\r\nname: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n---\r\n# Body\r\n";
        let parsed = parse("a", text.as_bytes()).unwrap();
        assert_eq!(&text[parsed.yaml], "name: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n");
        assert_eq!(&text[parsed.body], "# Body\r\n");
        assert_eq!(parsed.description, "x");
    }
}
