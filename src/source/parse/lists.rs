//! Splits YAML lists of objects, as printed by `kubectl get -o yaml`, into their items. Pure.

use serde_yaml::granit_parser::{Event, Parser, Span};

use super::documents::YamlDocument;
use crate::resource::API_VERSION;

/// A list, reduced to its items.
#[derive(Debug)]
pub struct ItemList {
    /// The kind of the items, if the kind of the list implies it: API servers omit it from the items of a
    /// `McpServerList`.
    pub kind: Option<String>,
    /// The items; `None` if `items` is missing or is not a list.
    pub items: Option<Vec<ListItem>>,
}

/// One item of a list.
#[derive(Debug)]
pub struct ListItem {
    /// The item as a document of its own, each line indented as in the file.
    pub text: String,
    /// The line of the file at which the item begins, from 1.
    pub line: u32,
    /// False for an item that cannot be an object: a scalar, an alias, or a nested list.
    pub is_mapping: bool,
}

/// The kinds that are lists of evenkeel objects.
const LIST_KINDS: [&str; 2] = ["McpServerList", "SkillList"];

/// Parses a document as a list. Returns `None` if it is not a list or is not valid YAML.
pub fn parse_list(document: &YamlDocument<'_>) -> Option<ItemList> {
    // Nearly no document is a list; this check avoids parsing the others.
    if !document.text.contains("List") {
        return None;
    }
    let outline = ListOutline::parse(document)?;
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

/// The start of an item.
struct ItemStart {
    offset: usize,
    line: usize,
    column: usize,
    is_mapping: bool,
}

impl ListOutline {
    fn parse(document: &YamlDocument<'_>) -> Option<Self> {
        let mut outline = Self::default();
        let mut key: Option<String> = None;
        let mut items: Vec<(ItemStart, usize)> = Vec::new();
        let mut item_start: Option<ItemStart> = None;
        // The number of open lists and mappings, and whether one of them is `items`.
        let (mut depth, mut in_items) = (0_usize, false);
        for step in Parser::new_from_str(document.text) {
            let (event, span) = step.ok()?;
            let item_start_at = |is_mapping| ItemStart {
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
                        1 => in_items = key.take().as_deref() == Some("items") && !is_mapping,
                        2 if in_items => item_start = Some(item_start_at(is_mapping)),
                        _ => {}
                    }
                    depth += 1;
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    depth = depth.checked_sub(1)?;
                    if depth == 2
                        && let Some(item_start) = item_start.take()
                    {
                        items.push((item_start, span.end.byte_offset()?));
                    }
                    if depth == 1 && std::mem::take(&mut in_items) {
                        let items = items.drain(..).map(|(item_start, end)| item_start.finish(document, end));
                        outline.items = Some(items.collect());
                    }
                }
                Event::Scalar(text, ..) if depth == 1 => match key.take() {
                    None => key = Some(text.into_owned()),
                    Some(key) if key == "apiVersion" => outline.api_version = Some(text.into_owned()),
                    Some(key) if key == "kind" => outline.kind = Some(text.into_owned()),
                    Some(_) => {}
                },
                Event::Scalar(..) | Event::Alias(_) if depth == 2 && in_items => {
                    items.push((item_start_at(false), start_offset(&span)));
                }
                Event::Alias(_) if depth == 1 => key = None,
                _ => {}
            }
        }
        Some(outline)
    }
}

impl ItemStart {
    fn finish(self, document: &YamlDocument<'_>, end: usize) -> ListItem {
        let text = document.text.get(self.offset..end).unwrap_or_default();
        // A block mapping ends where the next node begins, after the indentation of that node.
        let text = if text.starts_with('{') {
            text
        } else {
            text.rfind('\n').and_then(|end| text.get(..=end)).unwrap_or(text)
        };
        let line = u32::try_from(self.line.saturating_sub(1)).unwrap_or(u32::MAX);
        ListItem {
            text: format!("{}{text}", " ".repeat(self.column)),
            line: document.first_line.saturating_add(line),
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
        let documents = split_documents(text);
        let list = parse_list(&documents[0])?;
        Some(list.items?.into_iter().map(|item| (item.line, item.text)).collect())
    }

    #[test]
    fn items_keep_their_lines_and_columns() {
        let block = "apiVersion: v1\nitems:\n- a: 1\n  b: |\n    x\n\n    y\n# between\n\
            -   a: 2\n    c: [1]\nkind: List\nmetadata:\n  resourceVersion: \"\"\n";
        assert_eq!(
            parse_items(block).unwrap(),
            [
                (3, "  a: 1\n  b: |\n    x\n\n    y\n# between\n".to_owned()),
                (9, "    a: 2\n    c: [1]\n".to_owned())
            ]
        );
        let last = "# head\n---\nkind: List\napiVersion: v1\nitems:\n  - a: 1\n  - ä: 2";
        assert_eq!(parse_items(last).unwrap(), [(6, "    a: 1\n".to_owned()), (7, "    ä: 2".to_owned())]);
        let json = "{\n  \"kind\": \"List\", \"apiVersion\": \"v1\",\n  \
            \"items\": [{\"a\": {\"b\": 1}}, {\"c\": []\n}]}";
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
        let started_at = std::time::Instant::now();
        for text in
            ["[".repeat(500_000), "- ".repeat(250_000), "{a: ".repeat(200_000), "- {}\n".repeat(200_000)]
        {
            parse_items(&format!("apiVersion: v1\nkind: List\nitems:\n{text}"));
        }
        assert!(started_at.elapsed().as_secs() < 60);
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
