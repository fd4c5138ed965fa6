use serde::Deserialize;

use super::*;
use crate::wire::Era;

/// Entries and what becomes of them. `tests/behaviour/sdk_lists.rs` offers the same entries to the official SDKs.
const ENTRIES: &str = include_str!("../../../tests/behaviour/sdk_lists/entries.jsonl");

#[derive(Deserialize)]
struct Case<'a> {
    list: &'a str,
    #[serde(borrow)]
    entry: &'a RawValue,
    left_out: Option<String>,
    /// If it differs from the entry.
    #[serde(borrow)]
    modern: Option<&'a RawValue>,
    /// If it differs from the form for modern agents.
    #[serde(borrow)]
    legacy: Option<&'a RawValue>,
}

#[test]
fn each_entry_is_kept_mended_or_left_out() {
    for line in ENTRIES.lines() {
        let case: Case<'_> = serde_json::from_str(line).unwrap();
        let list = list_named(case.list);
        match read_item(list, case.entry.get()) {
            Ok(accepted) => {
                assert_eq!(case.left_out, None, "{line}");
                let modern = case.modern.unwrap_or(case.entry).get();
                assert_eq!(accepted.item.for_era(Era::Modern).raw(), modern);
                assert_eq!(
                    accepted.item.for_era(Era::Legacy).raw(),
                    case.legacy.map_or(modern, RawValue::get)
                );
                assert_eq!(accepted.had_nulls, case.modern.is_some(), "{line}");
            }
            Err(LeftOutItem { why, .. }) => assert_eq!(Some(why), case.left_out, "{line}"),
        }
    }
}

#[test]
fn left_out_entry_is_named_if_it_has_a_name() {
    for (entry, name, why) in [
        (r#"{"name":"a"}"#, Some("a"), "inputSchema is missing"),
        (
            r#"{"name":"a","inputSchema":{"type":"object"},"icons":[{"src":1}]}"#,
            Some("a"),
            "icons[0].src is not a string",
        ),
        (r#"{"name":7}"#, None, "name is not a string"),
        ("[]", None, "it is not an object"),
    ] {
        let left_out = read_item(ListKind::Tools, entry).unwrap_err();
        assert_eq!((left_out.name.as_deref(), &*left_out.why), (name, why));
    }
}

fn list_named(name: &str) -> ListKind {
    match name {
        "tools" => ListKind::Tools,
        "prompts" => ListKind::Prompts,
        "resources" => ListKind::Resources,
        _ => ListKind::Templates,
    }
}
