//! The frontmatter of SKILL.md. Pure.

use std::ops::Range;

use serde::Deserialize;
use serde_yaml::{MessageFormatter, Options, UserMessageFormatter};

use super::error::SkillError;
use super::file::SKILL_FILE;

/// The longest name and description, in characters.
const MAX_NAME_CHARS: usize = 64;
const MAX_DESCRIPTION_CHARS: usize = 1024;
/// As much of a line is shown, in characters.
const MAX_EXCERPT_CHARS: usize = 120;

/// What is read of a SKILL.md; where the rest is.
#[derive(Debug)]
pub(super) struct Frontmatter {
    pub description: String,
    /// The YAML between the markers, byte for byte.
    pub yaml: Range<usize>,
    /// What follows them.
    pub body: Range<usize>,
}

/// What every skill says of itself. Other fields are others' business.
#[derive(Deserialize)]
struct FrontmatterFields {
    name: Option<String>,
    description: Option<String>,
}

/// Reads the frontmatter of a skill that is declared under `name`.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Frontmatter, SkillError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.split(|byte| *byte == b'\n').count();
        SkillError::at_line(SKILL_FILE, line_number(line), "the file is not text in UTF-8")
    })?;
    let Some((yaml, body)) = split_frontmatter(text) else {
        let begins = text.strip_prefix('\u{feff}').unwrap_or(text).starts_with("---");
        let message = if begins {
            "the frontmatter has no end: a second line --- is missing"
        } else {
            "the frontmatter is missing: the file must begin with a line ---, name: and description:, and a \
             line ---"
        };
        return Err(SkillError::at_line(SKILL_FILE, 1, message));
    };
    let source = text.get(yaml.clone()).unwrap_or_default();
    let wrong = |line: u32, message: String| {
        let shown = source.lines().nth(usize::try_from(line).unwrap_or_default().saturating_sub(2));
        SkillError { excerpt: shown.map(excerpt), ..SkillError::at_line(SKILL_FILE, line, message) }
    };
    let known = serde_yaml::from_str_with_options::<Option<FrontmatterFields>>(source, yaml_options())
        .map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            let words = UserMessageFormatter.format_message(error.without_snippet()).replace('\n', " ");
            let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
            // The mistake that nearly everybody makes once: `description: Use it: always`.
            let colon = source.lines().nth(usize::try_from(line).unwrap_or_default().saturating_sub(2));
            let colon = colon.is_some_and(|shown| shown.matches(": ").count() > 1);
            let hint = if colon { "; a text that holds a colon must stand in quotes" } else { "" };
            wrong(line, format!("the frontmatter is not valid YAML: {words}{hint}"))
        })?
        .unwrap_or(FrontmatterFields { name: None, description: None });
    // Every field stands at the beginning of a line.
    let line_of = |field: &str| {
        let found = source.lines().position(|line| line.starts_with(field));
        found.map_or(1, |index| line_number(index + 2))
    };
    let said = known.name.ok_or_else(|| wrong(1, "the frontmatter has no name".to_owned()))?;
    if let Some(message) = name_violation(&said) {
        return Err(wrong(line_of("name"), format!("the name {} {message}", excerpt(&said))));
    }
    if said != name {
        let message = format!("the name {said:?} must be that of the skill, {name:?}");
        return Err(wrong(line_of("name"), message));
    }
    let description = known.description.map(|text| text.trim().to_owned()).unwrap_or_default();
    match description.chars().count() {
        0 => Err(wrong(line_of("description"), "the frontmatter has no description".to_owned())),
        1..=MAX_DESCRIPTION_CHARS => Ok(Frontmatter { description, yaml, body }),
        count => {
            let message = format!(
                "the description has {count} characters; at most {MAX_DESCRIPTION_CHARS} are allowed"
            );
            Err(wrong(line_of("description"), message))
        }
    }
}

/// Why a text is no name of a skill, as the end of a sentence.
fn name_violation(name: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME_CHARS {
        return Some("must have 1 to 64 characters");
    }
    if !name.bytes().all(fits) {
        return Some("may hold lower-case letters, digits and hyphens alone");
    }
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    hyphens.then_some("must not begin or end with a hyphen, nor hold two in a row")
}

/// The YAML between the first line `---` and the next, and what follows.
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

/// A line for a message: bounded, and without characters that move a terminal's cursor.
fn excerpt(line: &str) -> String {
    let shown: String = line
        .chars()
        .take(MAX_EXCERPT_CHARS)
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect();
    format!("{shown:?}")
}

fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// Bounded, because a small text can describe a huge document.
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
                "---\nname: a\ndescription: >-\n  Two\n  lines.\nlicense: MIT\nmetadata: { x: 'y' }\nwhenToUse: now\n---",
                "",
            ),
            ("---\nname: a\ndescription: \"Use: when asked\"\n---\n", ""),
            ("", "SKILL.md:1: the frontmatter is missing"),
            ("# Title\n", "SKILL.md:1: the frontmatter is missing"),
            ("---\nname: a\n", "SKILL.md:1: the frontmatter has no end"),
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
                "SKILL.md:2: the name \"b\" must be that of the skill, \"a\": \"name: b\"",
            ),
            ("---\nname: A b\ndescription: x\n---\n", "SKILL.md:2: the name \"A b\" may hold"),
            ("---\nname: a--b\ndescription: x\n---\n", "SKILL.md:2: the name \"a--b\" must not begin"),
            ("---\nname: -a\ndescription: x\n---\n", "SKILL.md:2: the name \"-a\" must not begin"),
            (&long, "SKILL.md:3: the description has 1025 characters"),
        ];
        for (text, expected) in table {
            let told =
                parse("a", text.as_bytes()).err().map(|mistake| mistake.to_string()).unwrap_or_default();
            assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{text:?}: {told}");
        }
        assert_eq!(
            parse("a", b"---\n\xff").unwrap_err().to_string(),
            "SKILL.md:2: the file is not text in UTF-8"
        );
    }

    #[test]
    fn frontmatter_is_kept_byte_for_byte() {
        let text =
            "---\r\nname: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n---\r\n# Body\r\n";
        let found = parse("a", text.as_bytes()).unwrap();
        assert_eq!(&text[found.yaml], "name: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n");
        assert_eq!(&text[found.body], "# Body\r\n");
        assert_eq!(found.description, "x");
    }
}
