//! Lists of objects in YAML, as `kubectl get -o yaml` prints them, cut into their items. Pure.

use serde_yaml::granit_parser::{Event, Parser, Span};

use super::documents::YamlDocument;
use crate::resource::API_VERSION;

/// A list, as far as its items go.
#[derive(Debug)]
pub struct ItemList {
    /// The kind of the items, if that of the list says it: API servers leave it out of items of a `McpServerList`.
    pub kind: Option<String>,
    /// `None` if there is no `items`, or if it is no list.
    pub items: Option<Vec<ListItem>>,
}

/// One item of a list.
#[derive(Debug)]
pub struct ListItem {
    /// The item as a document of its own, each line as far from the margin as in the file.
    pub text: String,
    /// The line of the file at which it begins, from 1.
    pub line: u32,
    /// False for what cannot be an object: a scalar, an alias, a list in a list.
    pub is_mapping: bool,
}

/// The kinds that are lists of objects of ours.
const LIST_KINDS: [&str; 2] = ["McpServerList", "SkillList"];

/// Reads the list that a document is; `None` if it is none, or if it is not sound.
pub fn parse_list(chunk: &YamlDocument<'_>) -> Option<ItemList> {
    // Nearly no document is one: told apart without parsing.
    if !chunk.text.contains("List") {
        return None;
    }
    let outline = ListOutline::parse(chunk)?;
    let kind = match (outline.api_version.as_deref()?, outline.kind.as_deref()?) {
        ("v1", "List") => None,
        (API_VERSION, kind) if LIST_KINDS.contains(&kind) => kind.strip_suffix("List").map(ToOwned::to_owned),
        _ => return None,
    };
    Some(ItemList { kind, items: outline.items })
}

#[derive(Default)]
struct ListOutline {
    api_version: Option<String>,
    kind: Option<String>,
    items: Option<Vec<ListItem>>,
}

/// Where an item begins.
struct ItemStart {
    offset: usize,
    line: usize,
    column: usize,
    is_mapping: bool,
}

impl ListOutline {
    fn parse(chunk: &YamlDocument<'_>) -> Option<Self> {
        let mut found = Self::default();
        let mut key: Option<String> = None;
        let mut items: Vec<(ItemStart, usize)> = Vec::new();
        let mut begun: Option<ItemStart> = None;
        // How many lists and mappings are open, and whether one of them is `items`.
        let (mut depth, mut within) = (0_usize, false);
        for step in Parser::new_from_str(chunk.text) {
            let (event, span) = step.ok()?;
            let begins = |is_mapping| ItemStart {
                offset: start_offset(&span),
                line: span.start.line(),
                column: span.start.col(),
                is_mapping,
            };
            match event {
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let is_mapping = matches!(event, Event::MappingStart(..));
                    match depth {
                        0 if !is_mapping => return None,
                        1 => within = key.take().as_deref() == Some("items") && !is_mapping,
                        2 if within => begun = Some(begins(is_mapping)),
                        _ => {}
                    }
                    depth += 1;
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    depth = depth.checked_sub(1)?;
                    if depth == 2
                        && let Some(begun) = begun.take()
                    {
                        items.push((begun, span.end.byte_offset()?));
                    }
                    if depth == 1 && std::mem::take(&mut within) {
                        let items = items.drain(..).map(|(begun, end)| begun.finish(chunk, end));
                        found.items = Some(items.collect());
                    }
                }
                Event::Scalar(text, ..) if depth == 1 => match key.take() {
                    None => key = Some(text.into_owned()),
                    Some(key) if key == "apiVersion" => found.api_version = Some(text.into_owned()),
                    Some(key) if key == "kind" => found.kind = Some(text.into_owned()),
                    Some(_) => {}
                },
                Event::Scalar(..) | Event::Alias(_) if depth == 2 && within => {
                    items.push((begins(false), start_offset(&span)));
                }
                Event::Alias(_) if depth == 1 => key = None,
                _ => {}
            }
        }
        Some(found)
    }
}

impl ItemStart {
    fn finish(self, chunk: &YamlDocument<'_>, end: usize) -> ListItem {
        let written = chunk.text.get(self.offset..end).unwrap_or_default();
        // A mapping in block style ends where the next thing begins, behind what stands before that in its line.
        let written = if written.starts_with('{') {
            written
        } else {
            written.rfind('\n').and_then(|end| written.get(..=end)).unwrap_or(written)
        };
        let line = u32::try_from(self.line.saturating_sub(1)).unwrap_or(u32::MAX);
        ListItem {
            text: format!("{}{written}", " ".repeat(self.column)),
            line: chunk.first_line.saturating_add(line),
            is_mapping: self.is_mapping,
        }
    }
}

fn start_offset(span: &Span) -> usize {
    span.start.byte_offset().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::documents::split_documents;
    use super::*;

    fn parse_items(text: &str) -> Option<Vec<(u32, String)>> {
        let chunks = split_documents(text);
        let list = parse_list(&chunks[0])?;
        Some(list.items?.into_iter().map(|item| (item.line, item.text)).collect())
    }

    #[test]
    fn items_keep_their_lines_and_columns() {
        let block = "apiVersion: v1\nitems:\n- a: 1\n  b: |\n    x\n\n    y\n# between\n-   a: 2\n    c: [1]\nkind: List\nmetadata:\n  resourceVersion: \"\"\n";
        assert_eq!(
            parse_items(block).unwrap(),
            [
                (3, "  a: 1\n  b: |\n    x\n\n    y\n# between\n".to_owned()),
                (9, "    a: 2\n    c: [1]\n".to_owned())
            ]
        );
        let last = "# head\n---\nkind: List\napiVersion: v1\nitems:\n  - a: 1\n  - ä: 2";
        assert_eq!(parse_items(last).unwrap(), [(6, "    a: 1\n".to_owned()), (7, "    ä: 2".to_owned())]);
        let json = "{\n  \"kind\": \"List\", \"apiVersion\": \"v1\",\n  \"items\": [{\"a\": {\"b\": 1}}, {\"c\": []\n}]}";
        assert_eq!(
            parse_items(json).unwrap(),
            [
                (3, "            {\"a\": {\"b\": 1}}".to_owned()),
                (3, format!("{}{{\"c\": []\n}}", " ".repeat(29)))
            ]
        );
    }

    #[test]
    fn malformed_lists_are_parsed_in_bounded_time() {
        let begun = std::time::Instant::now();
        for text in
            ["[".repeat(500_000), "- ".repeat(250_000), "{a: ".repeat(200_000), "- {}\n".repeat(200_000)]
        {
            parse_items(&format!("apiVersion: v1\nkind: List\nitems:\n{text}"));
        }
        assert!(begun.elapsed().as_secs() < 60);
    }

    #[test]
    fn only_known_list_kinds_are_lists() {
        for (text, expected) in [
            ("apiVersion: v1\nkind: List\nitems: []\n", Some(0)),
            ("apiVersion: v1\nkind: List\nitems: [&x 1, [a], *x]\n", Some(3)),
            ("apiVersion: v1\nkind: List\nitems: {}\n", None),
            ("apiVersion: v1\nkind: List\n", None),
            ("apiVersion: v1\nkind: ConfigMapList\nitems: [{}]\n", None),
            ("apiVersion: evenkeel.dev/v1alpha1\nkind: McpServerList\nitems: [{}]\n", Some(1)),
            ("apiVersion: evenkeel.dev/v1\nkind: McpServerList\nitems: [{}]\n", None),
            ("apiVersion: evenkeel.dev/v1alpha1\nkind: SourceList\nitems: [{}]\n", None),
            ("apiVersion: v1\nkind: List\nitems: [\n", None),
            ("- List\n", None),
        ] {
            assert_eq!(parse_items(text).map(|items| items.len()), expected, "{text}");
        }
    }
}
