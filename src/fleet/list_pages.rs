//! Collects the pages of one list. Pure: the pages are passed in as they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::list_findings::{ListFindings, Redact};
use crate::upstream::{AcceptedItem, Item, LeftOutItem, NameMatcher, read_item};
use crate::wire::{Era, ListKind, decode_json_string, parse_members};

/// The most pages of a list: bounds lists that never end.
const MAX_PAGES: usize = 1_000;
/// The most items of a list.
const MAX_ITEMS: usize = 20_000;
/// The size limit of a list, all its pages together.
const MAX_LIST_BYTES: usize = 16 << 20;

/// The pages of a list that were read so far.
pub(super) struct ListPages<'a> {
    list: ListKind,
    /// The era of the server.
    era: Era,
    /// The names that agents may see; what is wrong with others is not told.
    filter: Option<&'a NameMatcher>,
    redact: Redact<'a>,
    /// The items by name, each with the number of its page.
    items: BTreeMap<Arc<str>, (usize, Item)>,
    findings: ListFindings,
    cursors: BTreeSet<String>,
    pages: usize,
    bytes: usize,
}

impl<'a> ListPages<'a> {
    pub(super) fn new(list: ListKind, era: Era, filter: Option<&'a NameMatcher>, redact: Redact<'a>) -> Self {
        let (items, findings, cursors) = (BTreeMap::new(), ListFindings::default(), BTreeSet::new());
        Self { list, era, filter, redact, items, findings, cursors, pages: 0, bytes: 0 }
    }

    /// Adds the result of a page request. Returns the cursor of the next page; `None` at the end of the list.
    ///
    /// Of items with the same name the first is kept. The error says why the list cannot be used.
    pub(super) fn add(&mut self, result: &[u8]) -> Result<Option<String>, String> {
        self.pages += 1;
        self.bytes += result.len();
        let member = self.list.result_member();
        let text = std::str::from_utf8(result).map_err(|_| "the result is not valid UTF-8".to_owned())?;
        let page = parse_members(text).map_err(|_| format!("the result is not an object with {member:?}"))?;
        let entries = page.get(member).ok_or_else(|| format!("the result has no {member:?}"))?;
        let entries: Option<Vec<&RawValue>> =
            serde_json::from_str(entries.get()).map_err(|_| format!("{member:?} is not an array"))?;
        if let Some(entries) = entries {
            for entry in entries {
                self.add_entry(entry.get());
            }
        } else {
            let what = format!("the server returned null for {member:?}; it is treated as an empty list");
            self.findings.tolerate(what);
        }
        let next = self.next_cursor(page.get("nextCursor"));
        if next.is_some()
            && (self.items.len() > MAX_ITEMS || self.pages >= MAX_PAGES || self.bytes > MAX_LIST_BYTES)
        {
            let (items, bytes, pages, limit) =
                (self.items.len(), self.bytes, self.pages, MAX_LIST_BYTES >> 20);
            return Err(format!(
                "the list exceeds {MAX_ITEMS} items, {MAX_PAGES} pages or {limit} MiB: {items} items and {bytes} bytes \
                 after {pages} pages"
            ));
        }
        Ok(next)
    }

    /// Ends the list at a page that the server refused, if the cursor of that page was empty: some servers mean the end
    /// by it. Returns false if the refusal is a failure.
    pub(super) fn end_at_refused_cursor(&mut self, cursor: Option<&str>) -> bool {
        let is_end = cursor == Some("");
        if is_end {
            self.findings
                .tolerate("the server refused its own empty nextCursor; the list ends there".to_owned());
        }
        is_end
    }

    /// Removes an item that cannot be used, and reports it.
    pub(super) fn leave_out(&mut self, name: String, why: String) {
        self.items.remove(&*name);
        self.add_left_out(&LeftOutItem { name: Some(name), why });
    }

    /// Returns the items, each with its JSON.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values().map(|(_, item)| item)
    }

    /// Returns the whole list, ordered by name, and what was wrong with it.
    pub(super) fn finish(self) -> (Vec<Item>, ListFindings) {
        (self.items.into_values().map(|(_, item)| item).collect(), self.findings)
    }

    fn add_entry(&mut self, entry: &str) {
        let AcceptedItem { item, had_nulls, has_modern_output_schema } = match read_item(self.list, entry) {
            Ok(accepted) => accepted,
            Err(left_out) => return self.add_left_out(&left_out),
        };
        if let Some((page, first)) = self.items.get(item.name()) {
            // A list that changes between two pages may repeat an item.
            if *page == self.pages || *first != item {
                let why =
                    format!("another {} has the same name; the first one is offered", self.list.item_noun());
                self.add_left_out(&LeftOutItem { name: Some(item.name().to_string()), why });
            }
            return;
        }
        if self.is_exposed(item.name()) {
            if had_nulls {
                self.findings.add_nulls(item.name(), self.redact);
            }
            if has_modern_output_schema && self.era == Era::Legacy {
                self.findings.add_modern_output_schema(item.name(), self.redact);
            }
        }
        self.items.insert(item.name().clone(), (self.pages, item));
    }

    fn add_left_out(&mut self, item: &LeftOutItem) {
        if item.name.as_ref().is_none_or(|name| self.is_exposed(name)) {
            self.findings.add_left_out(item, self.redact);
        }
    }

    fn is_exposed(&self, name: &str) -> bool {
        self.filter.is_none_or(|filter| filter.permits(name))
    }

    fn next_cursor(&mut self, cursor: Option<&RawValue>) -> Option<String> {
        let cursor = cursor.filter(|cursor| cursor.get() != "null")?;
        let Some(text) = decode_json_string(cursor) else {
            self.findings.tolerate("nextCursor is not a string; the list ends there".to_owned());
            return None;
        };
        // An empty string is a cursor. A repeated one would loop for ever.
        if !self.cursors.insert(text.to_string()) {
            self.findings
                .tolerate("the server returned the same nextCursor twice; the list ends there".to_owned());
            return None;
        }
        Some(text.into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{NameFilter, Reason};

    const A: &str = r#"{"name":"a","inputSchema":{"type":"object"}}"#;
    const B: &str = r#"{"name":"b", "x":1.0,"inputSchema":{"type":"object"}}"#;

    /// Adds pages of tools. Returns the last cursor or the error, the names, and the problem.
    fn add_pages(
        pages: &[String],
        filter: Option<&NameMatcher>,
    ) -> (Result<Option<String>, String>, Vec<String>, String) {
        let redact = |text: &str, _| text.to_owned();
        let mut tools = ListPages::new(ListKind::Tools, Era::Legacy, filter, &redact);
        let last = pages.iter().map(|page| tools.add(page.as_bytes())).last().unwrap();
        let (items, findings) = tools.finish();
        let problem =
            findings.problem(ListKind::Tools).map(|problem| problem.to_string()).unwrap_or_default();
        (last, items.iter().map(|item| item.raw().to_owned()).collect(), problem)
    }

    fn page(entries: &[&str], cursor: &str) -> String {
        format!(r#"{{"tools":[{}]{cursor}}}"#, entries.join(","))
    }

    #[test]
    fn pages_are_merged_and_the_json_of_items_is_unchanged() {
        let (last, items, problem) =
            add_pages(&[page(&[B], r#","nextCursor":"""#), page(&[A, B], r#","y":{}"#)], None);
        assert_eq!((last, items, problem), (Ok(None), vec![A.to_owned(), B.to_owned()], String::new()));
    }

    #[test]
    fn odd_end_of_a_list_is_tolerated_and_told() {
        for (cursor, next, told) in [
            ("", None, None),
            (r#","nextCursor":null"#, None, None),
            (r#","nextCursor":"""#, Some(""), None),
            (r#","nextCursor":"x""#, Some("x"), None),
            (r#","nextCursor":2"#, None, Some("not a string")),
            (r#","nextCursor":false"#, None, Some("not a string")),
            (r#","nextCursor":{}"#, None, Some("not a string")),
            (r#","nextCursor":["x"]"#, None, Some("not a string")),
            (r#","nextCursor":"first""#, None, Some("same nextCursor twice")),
        ] {
            let (last, items, problem) =
                add_pages(&[page(&[A], r#","nextCursor":"first""#), page(&[B], cursor)], None);
            assert_eq!((last.unwrap().as_deref(), items.len()), (next, 2), "{cursor}");
            match told {
                Some(told) => {
                    assert!(problem.starts_with("NonCompliant") && problem.contains(told), "{problem}");
                }
                None => assert_eq!(problem, "", "{cursor}"),
            }
        }
    }

    #[test]
    fn null_items_are_an_empty_list() {
        for text in [r#"{"tools":null}"#, r#"{"tools":null,"nextCursor":null}"#] {
            let (last, items, problem) = add_pages(&[text.to_owned()], None);
            assert_eq!((last, items.len()), (Ok(None), 0));
            assert!(problem.contains("null for \"tools\""), "{problem}");
        }
    }

    #[test]
    fn result_without_a_list_is_an_error() {
        for (text, why) in [
            (r#"{"tools":{}}"#, "\"tools\" is not an array"),
            (r#"{"tools":"x"}"#, "\"tools\" is not an array"),
            ("{}", "the result has no \"tools\""),
            ("null", "the result is not an object with \"tools\""),
            ("[]", "the result is not an object with \"tools\""),
        ] {
            assert_eq!(add_pages(&[text.to_owned()], None).0.unwrap_err(), why);
        }
    }

    #[test]
    fn endless_list_is_an_error() {
        let pages: Vec<_> =
            (0..MAX_PAGES).map(|number| page(&[], &format!(r#","nextCursor":"{number}""#))).collect();
        assert!(add_pages(&pages, None).0.unwrap_err().contains("1000 pages"));
    }

    #[test]
    fn ill_formed_and_repeated_items_are_left_out_and_told() {
        let other_a = r#"{"name":"a","inputSchema":{"type":"object"},"x":1}"#;
        let hidden = NameFilter { deny: vec!["h*".into()], ..NameFilter::default() };
        let filter = NameMatcher::from_filter(&hidden);
        let nulls = r#"{"name":"c","inputSchema":{"type":"object","required":null}}"#;
        for (entries, kept, told) in [
            (vec![A, other_a], 1, "\"a\" (another tool has the same name; the first one is offered)"),
            (vec![A, A], 1, "\"a\" (another tool has the same name; the first one is offered)"),
            (
                vec![A, r#"{"name":"b"}"#, "7"],
                1,
                "2 tools are left out: \"b\" (inputSchema is missing) and one without a name (it is not an object)",
            ),
            (vec![nulls], 1, "optional members of \"c\" are null"),
            (
                vec![r#"{"name":"c","inputSchema":{"type":"object"},"outputSchema":{"type":"array"}}"#],
                1,
                "the outputSchema of \"c\"",
            ),
            // What agents do not see need not be told.
            (vec![A, r#"{"name":"h1"}"#], 1, ""),
            (vec![r#"{"name":"h2","inputSchema":{"type":"object"},"title":null}"#], 1, ""),
        ] {
            let (_, items, problem) = add_pages(&[page(&entries, "")], filter.as_ref());
            assert_eq!(items.len(), kept);
            assert!(
                problem.contains(told) && problem.is_empty() == told.is_empty(),
                "{entries:?}: {problem}"
            );
        }
        let left_out = add_pages(&[page(&[A], r#","nextCursor":"2""#), page(&[other_a], "")], None).2;
        assert!(left_out.starts_with(&Reason::ItemsLeftOut.to_string()), "{left_out}");
    }
}
