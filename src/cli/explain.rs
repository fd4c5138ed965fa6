use std::fmt::Write;

use kube::CustomResourceExt;

use super::error::CommandError;
use super::output::{self, Terminal};
use super::query::{KindArg, wrap};
use crate::report::{ObjectKind, SourceResource};
use crate::resource::{API_VERSION, Field, McpServer, Skill, fields};
use crate::source::closest_match;

/// The width of the text where stdout is no terminal, and the largest on one, in columns.
const MAX_WIDTH: usize = 100;

/// The arguments of `evenkeel explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A kind, or a field of one, such as mcps or mcps.spec.timeouts
    #[arg(value_name = "KIND[.FIELD…]")]
    field: String,
    /// List the fields below all fields too
    #[arg(long)]
    recursive: bool,
}

/// Prints type, default, bounds and description of a field, and the fields that it contains.
pub(super) fn explain(args: &Args) -> Result<(), CommandError> {
    let (kind, rest) = args.field.split_once('.').unwrap_or((&args.field, ""));
    let kinds = KindArg::parse(kind).map_err(CommandError::Usage)?;
    let [kind] = kinds.0[..] else {
        return Err(CommandError::Usage("name one kind: mcpservers, skills or sources".into()));
    };
    let fields = fields_of(kind);
    let rest = rest.replace("[]", "");
    let kind = fields.first().map_or("", |kind| &kind.path);
    let path = if rest.is_empty() { kind.to_owned() } else { format!("{kind}.{rest}") };
    let position = fields.iter().position(|field| field.path.eq_ignore_ascii_case(&path));
    let position = position.ok_or_else(|| CommandError::Failed(unknown_field(&path, &fields)))?;
    let width = Terminal::stdout().width.unwrap_or(MAX_WIDTH).clamp(40, MAX_WIDTH);
    output::print(&render(&fields, position, args.recursive, width)).map_err(CommandError::failed)
}

fn fields_of(kind: ObjectKind) -> Vec<Field> {
    fields(&match kind {
        ObjectKind::McpServer => McpServer::crd(),
        ObjectKind::Skill => Skill::crd(),
        ObjectKind::Source => SourceResource::crd(),
    })
}

/// Says how far the path is right, and what it could be.
fn unknown_field(path: &str, fields: &[Field]) -> String {
    let mut parent = path;
    while let Some((shorter, name)) = parent.rsplit_once('.') {
        parent = shorter;
        if let Some(found) = fields.iter().find(|field| field.path.eq_ignore_ascii_case(parent)) {
            let names = || children(fields, found).map(Field::name);
            let suggestion = closest_match(name, names());
            let suggestion = suggestion.map_or_else(String::new, |it| format!("; did you mean {it:?}?"));
            let list = names().collect::<Vec<_>>().join(", ");
            let list =
                if list.is_empty() { "it has no fields".into() } else { format!("its fields: {list}") };
            return format!("{} has no field {name:?}{suggestion} ({list})", found.path);
        }
    }
    format!("unknown field {path:?}")
}

fn children<'a>(fields: &'a [Field], of: &Field) -> impl Iterator<Item = &'a Field> {
    fields.iter().filter(move |field| field.parent() == Some(&of.path))
}

fn render(fields: &[Field], position: usize, recursive: bool, width: usize) -> String {
    let mut text = String::new();
    let Some(field) = fields.get(position) else { return text };
    let (kind, path) = field.path.split_once('.').unwrap_or((&field.path, ""));
    let _ = writeln!(text, "KIND:     {kind}\nVERSION:  {API_VERSION}");
    if !path.is_empty() {
        let _ = writeln!(text, "FIELD:    {path} <{}>", field.type_name);
    }
    let limits = facts(field).join("; ");
    if !limits.is_empty() {
        let _ = writeln!(text, "{}", wrap_paragraphs(&limits, "VALUES:   ", "          ", width));
    }
    let _ = writeln!(text, "\nDESCRIPTION:\n{}", wrap_paragraphs(&field.description, "    ", "    ", width));
    let below = format!("{}.", field.path);
    let below: Vec<&Field> = if recursive {
        fields.iter().filter(|field| field.path.starts_with(&below)).collect()
    } else {
        children(fields, field).collect()
    };
    if below.is_empty() {
        return text;
    }
    let _ = writeln!(text, "\nFIELDS:");
    for (index, child) in below.iter().enumerate() {
        let depth = child.path[field.path.len() + 1..].matches('.').count();
        let indent = "  ".repeat(depth + 1);
        if recursive {
            let _ = writeln!(text, "{indent}{}  <{}>", child.name(), child.type_name);
            continue;
        }
        let separator = if index == 0 { "" } else { "\n" };
        let _ = writeln!(text, "{separator}{indent}{}  <{}>", child.name(), child.type_name);
        let limits = facts(child).join("; ");
        if !limits.is_empty() {
            let _ = writeln!(text, "{}", wrap_paragraphs(&limits, "      ", "      ", width));
        }
        let _ = writeln!(text, "{}", wrap_paragraphs(&child.description, "      ", "      ", width));
    }
    text
}

/// Returns whether a field is required, its default and its bounds.
fn facts(field: &Field) -> Vec<String> {
    let required = field.required.then(|| "required".to_owned());
    let default = field.default.as_ref().map(|default| format!("default {default}"));
    required.into_iter().chain(default).chain(field.bounds.iter().cloned()).collect()
}

/// Wraps text between words. Paragraphs stay apart.
fn wrap_paragraphs(text: &str, first_indent: &str, indent: &str, width: usize) -> String {
    let line_break = format!("\n{indent}");
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| wrap(paragraph, width.saturating_sub(indent.len())).join(&line_break))
        .collect();
    format!("{first_indent}{}", paragraphs.join(&format!("\n\n{indent}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(path: &str) -> String {
        let fields = fields_of(ObjectKind::McpServer);
        let position = fields.iter().position(|field| field.path == path).unwrap();
        render(&fields, position, false, 100)
    }

    #[test]
    fn explain_prints_values_description_and_fields() {
        let text = explained("McpServer.spec.timeouts");
        assert!(text.starts_with(
            "KIND:     McpServer\nVERSION:  evenkeel.dev/v1alpha1\nFIELD:    spec.timeouts <object>\n"
        ));
        assert!(text.contains("\n  call  <duration>\n      default 10m; from 1s to 24h\n"), "{text}");
        assert!(
            explained("McpServer.spec.stdio.command").contains("VALUES:   required; at most 4096 characters")
        );
    }

    #[test]
    fn unknown_field_is_answered_with_the_fields_there_are() {
        let fields = fields_of(ObjectKind::McpServer);
        let message = unknown_field("McpServer.spec.timeouts.conect", &fields);
        assert!(
            message.starts_with("McpServer.spec.timeouts has no field \"conect\"; did you mean \"connect\"?"),
            "{message}"
        );
        assert!(message.contains("its fields: call, connect, drain, idle, start"), "{message}");
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(
            wrap_paragraphs("one two three\n\nfour", "A: ", "   ", 11),
            "A: one two\n   three\n\n   four"
        );
    }

    /// `docs/fields.md` is made from the types.
    #[test]
    fn fields_page_matches_the_types() {
        let mut page = String::from(PAGE_HEAD);
        for kind in ObjectKind::ALL {
            let fields = fields_of(kind);
            let _ = write!(page, "\n## {}\n\n{}\n", fields[0].path, fields[0].description);
            for part in ["spec", "status"] {
                let prefix = format!("{}.{part}.", fields[0].path);
                let rows = fields.iter().filter(|field| field.path.starts_with(&prefix));
                let _ = writeln!(page, "\n### {} {part}\n", fields[0].path);
                for field in rows.filter(|field| !field.path.contains(".conditions.")) {
                    page.push_str(&entry(field, &prefix));
                }
            }
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fields.md");
        if std::env::var_os("EVENKEEL_BLESS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page, "docs/fields.md is stale; run EVENKEEL_BLESS=1 cargo test --lib fields_page");
    }

    const PAGE_HEAD: &str = "# Fields\n\n\
        For everybody who writes or reads a declaration: each field of each kind with its type, default and bounds.\n\
        `evenkeel explain McpServer.spec.timeouts` prints the same in a terminal. This page is \
        generated from the types.\n\n\
        A `duration` is a text such as `1h30m`, `20s` or `500ms`. Conditions and their reasons are in \
        [status.md](status.md).\n";

    /// One item of a list; the description begins on a line of its own.
    fn entry(field: &Field, prefix: &str) -> String {
        let code = |fact: String| match fact.strip_prefix("matches ") {
            Some(pattern) => format!("matches `` {pattern} ``"),
            None => fact,
        };
        let facts: Vec<String> = facts(field).into_iter().map(code).collect();
        let name = field.path.trim_start_matches(prefix);
        let head = [&[format!("- **`{name}`** {}", field.type_name)], &*facts].concat().join("; ");
        format!(
            "{}\\\n{}\n",
            wrap_paragraphs(&head, "", "  ", 117),
            wrap_paragraphs(&field.description, "  ", "  ", 118)
        )
    }
}
