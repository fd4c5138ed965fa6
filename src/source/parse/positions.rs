//! Finds the positions of the nodes of a YAML document. Pure.

use std::borrow::Cow;

use serde_yaml::granit_parser::{Event, Parser, ScalarStyle};

/// A position in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1; `None` for the whole line.
    pub column: Option<u32>,
}

/// A node of a document.
#[derive(Debug)]
pub struct Node<'a> {
    /// The path, such as `spec.stdio.env[2].name`; empty for the document itself.
    pub path: String,
    /// The position of its key, or of the node itself in a list.
    pub position: Position,
    /// The text of a plain scalar: one without quotes and tag.
    pub plain_scalar: Option<Cow<'a, str>>,
}

/// Returns the nodes of a document in their order, up to the first syntax error. The document begins at line
/// `first_line` of its file.
pub fn parse_nodes(text: &str, first_line: u32) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    let mut open: Vec<OpenCollection> = Vec::new();
    for step in Parser::new_from_str(text) {
        let Ok((event, span)) = step else { break };
        let to_u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let position = Position {
            line: first_line.saturating_add(to_u32(span.start.line()).saturating_sub(1)),
            column: Some(to_u32(span.start.col()).saturating_add(1)),
        };
        let (plain, opens_list) = match event {
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
        let (path, position) = match open.last_mut() {
            None => (String::new(), position),
            Some(OpenCollection::Sequence { path, next_index }) => {
                let item = format!("{path}[{next_index}]");
                *next_index += 1;
                (item, position)
            }
            Some(OpenCollection::Mapping { path, key }) => match key.take() {
                Some((name, key_position)) if path.is_empty() => (name, key_position),
                Some((name, key_position)) => (format!("{path}.{name}"), key_position),
                None => {
                    let name =
                        key_text(plain.as_deref(), text, span.start.byte_offset(), span.end.byte_offset());
                    *key = Some((name, position));
                    if let Some(is_list) = opens_list {
                        // A collection as a key: no evenkeel object has one.
                        open.push(OpenCollection::new("?".to_owned(), is_list));
                    }
                    continue;
                }
            },
        };
        if let Some(is_list) = opens_list {
            open.push(OpenCollection::new(path.clone(), is_list));
        }
        nodes.push(Node { path, position, plain_scalar: plain });
    }
    nodes
}

/// Returns the position of `path`, or of the nearest node that contains it.
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
        let nodes = parse_nodes(TEXT, 10);
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
        assert_eq!(parse_nodes("a: 1\nb: [\n", 1).len(), 3);
        assert_eq!(
            parse_nodes("? [a, b]\n: c\nd: e\n", 1).last().map(|node| node.path.clone()),
            Some("d".to_owned())
        );
    }
}
