//! Where things stand in a document of YAML. Pure.

use std::borrow::Cow;

use serde_yaml::granit_parser::{Event, Parser, ScalarStyle};

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// From 1; `None` for the whole line.
    pub column: Option<u32>,
}

/// A node of a document.
#[derive(Debug)]
pub struct Node<'a> {
    /// Such as `spec.stdio.env[2].name`; empty for the document itself.
    pub path: String,
    /// Where its key is, or where it is itself in a list.
    pub position: Position,
    /// What is written, if it is a scalar without quotes and tag.
    pub plain_scalar: Option<Cow<'a, str>>,
}

/// The nodes of a document that begins at line `first_line` of its file, in its order, as far as it is sound.
pub fn nodes(text: &str, first_line: u32) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    let mut open: Vec<OpenCollection> = Vec::new();
    for step in Parser::new_from_str(text) {
        let Ok((event, span)) = step else { break };
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let place = Position {
            line: first_line.saturating_add(small(span.start.line()).saturating_sub(1)),
            column: Some(small(span.start.col()).saturating_add(1)),
        };
        let (plain, opens) = match event {
            Event::Scalar(text, ScalarStyle::Plain, _, None) => (Some(text), None),
            Event::Scalar(..) | Event::Alias(_) => (None, None),
            Event::SequenceStart(..) => (None, Some(true)),
            Event::MappingStart(..) => (None, Some(false)),
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                continue;
            }
            _ => continue,
        };
        let (path, place) = match open.last_mut() {
            None => (String::new(), place),
            Some(OpenCollection::Sequence { path, next_index: next }) => {
                let item = format!("{path}[{next}]");
                *next += 1;
                (item, place)
            }
            Some(OpenCollection::Mapping { path, key }) => match key.take() {
                Some((name, at)) if path.is_empty() => (name, at),
                Some((name, at)) => (format!("{path}.{name}"), at),
                None => {
                    let name =
                        key_text(plain.as_deref(), text, span.start.byte_offset(), span.end.byte_offset());
                    *key = Some((name, place));
                    if let Some(is_list) = opens {
                        // A list or fields as a key: nothing of ours has one.
                        open.push(OpenCollection::new("?".to_owned(), is_list));
                    }
                    continue;
                }
            },
        };
        if let Some(is_list) = opens {
            open.push(OpenCollection::new(path.clone(), is_list));
        }
        nodes.push(Node { path, position: place, plain_scalar: plain });
    }
    nodes
}

/// The place of `path`, or of the nearest that holds it.
pub fn find_position(nodes: &[Node<'_>], path: &str) -> Option<Position> {
    let mut path = path;
    loop {
        if let Some(node) = nodes.iter().find(|node| node.path == path) {
            return Some(node.position);
        }
        path = path.get(..path.rfind(['.', '['])?)?;
    }
}

#[derive(Debug)]
enum OpenCollection {
    Sequence { path: String, next_index: usize },
    Mapping { path: String, key: Option<(String, Position)> },
}

impl OpenCollection {
    fn new(path: String, is_list: bool) -> Self {
        if is_list { Self::Sequence { path, next_index: 0 } } else { Self::Mapping { path, key: None } }
    }
}

fn key_text(plain: Option<&str>, text: &str, start: Option<usize>, end: Option<usize>) -> String {
    let quoted = || Some(text.get(start?..end?)?.trim_matches(['"', '\'']));
    plain.or_else(quoted).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
spec:
  stdio:
    command: npx
    args: [ -y, \"quoted\", no ]
    env:
      - name: A
        value: no
      - { name: B, value: 'no' }
  \"expose\":
    prefix: &anchor x
    tools: *anchor
";

    #[test]
    fn every_path_has_a_position() {
        let nodes = nodes(TEXT, 10);
        for (path, line, column) in [
            ("spec", 11, 1),
            ("spec.stdio", 12, 3),
            ("spec.stdio.command", 13, 5),
            ("spec.stdio.args[2]", 14, 27),
            ("spec.stdio.env[0]", 16, 9),
            ("spec.stdio.env[0].value", 17, 9),
            ("spec.stdio.env[1].name", 18, 11),
            ("spec.expose.prefix", 20, 5),
            ("spec.expose.tools.allow", 21, 5),
            ("spec.stdio.env[7].name", 15, 5),
            ("spec.stdio.cwd", 12, 3),
        ] {
            assert_eq!(find_position(&nodes, path), Some(Position { line, column: Some(column) }), "{path}");
        }
        let plain: Vec<_> = nodes.iter().filter_map(|node| node.plain_scalar.as_deref()).collect();
        assert_eq!(plain, ["npx", "-y", "no", "A", "no", "B", "x"]);
    }

    #[test]
    fn nodes_end_at_the_first_syntax_error() {
        assert_eq!(nodes("a: 1\nb: [\n", 1).len(), 3);
        assert_eq!(
            nodes("? [a, b]\n: c\nd: e\n", 1).last().map(|node| node.path.clone()),
            Some("d".to_owned())
        );
    }
}
