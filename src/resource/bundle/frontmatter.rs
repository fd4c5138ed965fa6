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
    /// The description: at most 1,024 characters.
    pub description: String,
    /// The range of the YAML between the two `---` lines; empty if there is none.
    pub yaml: Range<usize>,
    /// The range of the text after the frontmatter.
    pub body: Range<usize>,
    /// The violations of the Agent Skills specification that agents tolerate.
    pub violations: Vec<SkillError>,
}

/// The required frontmatter fields. All other fields are ignored here.
#[derive(Default, Deserialize)]
struct FrontmatterFields {
    name: Option<String>,
    description: Option<String>,
}

/// Parses the frontmatter of a skill that is declared under `name`.
///
/// Fails if the text cannot be used at all: it is empty or not UTF-8, its frontmatter is not closed, or it has neither a
/// description nor a text to take one from.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Frontmatter, SkillError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.split(|byte| *byte == b'\n').count();
        SkillError::at_line(SKILL_FILE, line_number(line), "the file is not valid UTF-8; save it as UTF-8")
    })?;
    let Some(Sections { start, yaml, body }) = Sections::find(text)? else {
        let message = format!("the frontmatter is missing: the file must start with {EXAMPLE}");
        let description = description_from(text).ok_or_else(|| missing_description(1))?;
        let violations = vec![SkillError::at_line(SKILL_FILE, 1, message)];
        return Ok(Frontmatter { description, yaml: 0..0, body: 0..text.len(), violations });
    };
    let first_line = line_number(text.get(..start).unwrap_or_default().matches('\n').count() + 1);
    let yaml_text = YamlText { text: text.get(yaml.clone()).unwrap_or_default(), first_line: first_line + 1 };
    let mut violations = Vec::new();
    if text.starts_with('\u{feff}') {
        let message = "the file begins with a byte order mark; save it without one";
        violations.push(SkillError::at_line(SKILL_FILE, 1, message));
    }
    if first_line > 1 {
        let message = "the line --- must be the first line of the file";
        violations.push(SkillError::at_line(SKILL_FILE, first_line, message));
    }
    let parsed =
        serde_yaml::from_str_with_options::<Option<FrontmatterFields>>(yaml_text.text, yaml_options());
    let is_yaml = parsed.is_ok();
    let fields = parsed.unwrap_or_else(|error| {
        violations.push(yaml_text.describe_error(&error));
        None
    });
    let fields = fields.unwrap_or_default();
    let mut or_plain = |field: &str, value: Option<String>| {
        if value.is_some() || is_yaml && yaml_text.text.lines().any(|line| line.starts_with(field)) {
            return value;
        }
        let plain = yaml_text.plain_field(field)?;
        if is_yaml {
            violations.push(yaml_text.error(field, format!("the field must be written {field:?}")));
        }
        Some(plain)
    };
    let declared_name = or_plain("name", fields.name);
    let description = or_plain("description", fields.description);
    violations.extend(yaml_text.name_violation(name, declared_name.as_deref()));
    let description = description.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let description = description.map_or_else(
        || {
            let line = yaml_text.line_of("description").unwrap_or(first_line);
            let message = "the frontmatter has no description; the first paragraph of the text is used";
            violations.push(SkillError::at_line(SKILL_FILE, line, message));
            description_from(text.get(body.clone()).unwrap_or_default())
                .ok_or_else(|| missing_description(line))
        },
        Ok,
    )?;
    let count = description.chars().count();
    if count > MAX_DESCRIPTION_CHARS {
        let message = format!(
            "the description has {count} characters, of which lists contain the first; at most \
             {MAX_DESCRIPTION_CHARS} are allowed"
        );
        violations.push(yaml_text.error("description", message));
    }
    Ok(Frontmatter { description: shortened(description), yaml, body, violations })
}

/// The form of the frontmatter, for messages.
const EXAMPLE: &str = "a line ---, the fields name: and description:, and a line ---";

fn missing_description(line: u32) -> SkillError {
    let message = "there is no description, and no text to take one from; write a line `description: …` into the \
                   frontmatter that says what the skill does and when to use it";
    SkillError::at_line(SKILL_FILE, line, message)
}

/// The parts of SKILL.md, as byte ranges.
struct Sections {
    /// The start of the first `---` line.
    start: usize,
    /// The YAML between the two `---` lines.
    yaml: Range<usize>,
    /// The text after the second `---` line.
    body: Range<usize>,
}

impl Sections {
    /// Finds the frontmatter of a text: at its start, after blank lines and HTML comments. Returns `None` if there is
    /// none.
    ///
    /// Fails if the second `---` line is missing.
    fn find(text: &str) -> Result<Option<Self>, SkillError> {
        let start = frontmatter_start(text);
        let mut lines = text.get(start..).unwrap_or_default().split_inclusive('\n');
        let Some(first) = lines.next().filter(|line| line.trim_end() == "---") else { return Ok(None) };
        let yaml = start + first.len();
        let mut at = yaml;
        for line in lines {
            if line.trim_end() == "---" {
                return Ok(Some(Self { start, yaml: yaml..at, body: at + line.len()..text.len() }));
            }
            at += line.len();
        }
        let message = "the frontmatter is not closed: the second line --- is missing";
        Err(SkillError::at_line(SKILL_FILE, 1, message))
    }
}

/// Returns the offset of the first line of a text that is neither blank nor in an HTML comment.
fn frontmatter_start(text: &str) -> usize {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        let line = rest.split_inclusive('\n').next().unwrap_or_default();
        rest = if line.trim_start().starts_with("<!--") {
            let Some((_, after)) = rest.split_once("-->") else { return text.len() - rest.len() };
            after
        } else if line.trim().is_empty() && !line.is_empty() {
            rest.get(line.len()..).unwrap_or_default()
        } else {
            return text.len() - rest.len();
        };
    }
}

/// The YAML of the frontmatter.
struct YamlText<'a> {
    text: &'a str,
    /// The number of its first line in the file, from 1.
    first_line: u32,
}

impl YamlText<'_> {
    /// Returns an error about the line of a field, or about the first line if there is no such field.
    fn error(&self, field: &str, message: String) -> SkillError {
        let line = self.line_of(field).unwrap_or(self.first_line.saturating_sub(1));
        SkillError { excerpt: self.excerpt(line), ..SkillError::at_line(SKILL_FILE, line, message) }
    }

    fn describe_error(&self, error: &serde_yaml::Error) -> SkillError {
        let line = error.location().map_or(1, |location| location.line());
        let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(self.first_line).saturating_sub(1);
        let message = UserMessageFormatter.format_message(error.without_snippet()).replace('\n', " ");
        // A common mistake is an unquoted colon in a value: `description: Use it: always`.
        let has_colon = self.source_line(line).is_some_and(|text| text.matches(": ").count() > 1);
        let hint = if has_colon { "; a value that contains a colon must be quoted" } else { "" };
        let message = format!("the frontmatter is not valid YAML: {message}{hint}");
        SkillError { excerpt: self.excerpt(line), ..SkillError::at_line(SKILL_FILE, line, message) }
    }

    /// Returns what is wrong with the name in the frontmatter of a skill that is offered as `name`.
    fn name_violation(&self, name: &str, declared: Option<&str>) -> Option<SkillError> {
        let Some(declared) = declared else {
            let message = format!("the frontmatter has no name; write name: {name}");
            return Some(self.error("name", message));
        };
        let message = if let Some(rule) = name_rule_violation(declared) {
            format!("the name {} {rule}; the skill is offered as {name:?}", excerpt(declared))
        } else if declared == name {
            return None;
        } else {
            format!(
                "the name {declared:?} must be the same as the name of the skill; the skill is offered as {name:?}"
            )
        };
        Some(self.error("name", message))
    }

    /// Returns a top-level field as agents with a simple parser read it: everything after the first colon, and the
    /// indented lines that follow.
    fn plain_field(&self, field: &str) -> Option<String> {
        let mut lines = self.text.lines().skip_while(|line| !is_field(line, field));
        let (_, first) = lines.next()?.split_once(':')?;
        // The indicator of a block scalar, such as `>-`, is no part of its text.
        let is_indicator = first.trim().starts_with(['|', '>']) && first.trim().len() <= 3;
        let first = if is_indicator { "" } else { first.trim() };
        let more = lines.take_while(|line| line.trim().is_empty() || line.starts_with([' ', '\t']));
        let parts = std::iter::once(first).chain(more.map(str::trim)).filter(|part| !part.is_empty());
        let text = parts.collect::<Vec<_>>().join(" ");
        let quoted = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        Some(quoted.unwrap_or(&text).to_owned()).filter(|text| !text.is_empty())
    }

    /// Returns the number of the line at which a top-level field begins.
    fn line_of(&self, field: &str) -> Option<u32> {
        let index = self.text.lines().position(|line| is_field(line, field))?;
        Some(line_number(index).saturating_add(self.first_line))
    }

    fn source_line(&self, line: u32) -> Option<&str> {
        let index = line.checked_sub(self.first_line)?;
        self.text.lines().nth(usize::try_from(index).ok()?)
    }

    fn excerpt(&self, line: u32) -> Option<String> {
        self.source_line(line).map(excerpt)
    }
}

fn is_field(line: &str, field: &str) -> bool {
    line.split_once(':').is_some_and(|(key, _)| key.trim_end().eq_ignore_ascii_case(field))
}

/// Returns a description for a text without one, as agents choose it: the first paragraph, or else the first heading.
fn description_from(text: &str) -> Option<String> {
    let text = text.get(frontmatter_start(text)..).unwrap_or_default();
    let is_prose = |line: &&str| {
        line.chars().any(char::is_alphanumeric) && !line.starts_with('#') && !line.starts_with("```")
    };
    let lines = || text.lines().map(str::trim);
    let paragraph: Vec<_> = lines().skip_while(|line| !is_prose(line)).take_while(is_prose).collect();
    let heading =
        || lines().map(|line| line.trim_start_matches('#').trim_start()).find(|line| !line.is_empty());
    let description = if paragraph.is_empty() { heading()?.to_owned() } else { paragraph.join(" ") };
    Some(shortened(description)).filter(|text| text.chars().any(char::is_alphanumeric))
}

/// Shortens a description to the maximum length.
fn shortened(description: String) -> String {
    if description.chars().count() <= MAX_DESCRIPTION_CHARS {
        return description;
    }
    description.chars().take(MAX_DESCRIPTION_CHARS - 1).chain(['…']).collect()
}

/// Returns why `name` is not a valid skill name, as the end of a sentence; `None` if it is valid.
fn name_rule_violation(name: &str) -> Option<&'static str> {
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
mod tests;
