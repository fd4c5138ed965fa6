use serde_json::Value;
use serde_json::value::RawValue;

use super::compose;
use crate::wire::{JsonEdit, decode_json_string, json_string, parse_members, rewrite};

const FRAGMENTS: &[&str] = &[
    "{",
    "}",
    "{}",
    "[",
    "]",
    ",",
    ":",
    "\"a\":",
    "\"b\": ",
    "\"a\" : 1,",
    "\"\\u0061\":2,",
    "\"_meta\":{\"a\":1},",
    "\"é\":",
    "\"\\ud83d\\ude00\":0,",
    "\"a\\\"b\":[]",
    "\"\"",
    "\"x\\n\"",
    "1.0e+2",
    "-0",
    "18446744073709551616",
    "true",
    "null",
    " ",
    "\n\t",
    "{\"a\":",
    "{\"a\":{\"a\":3}}",
];

/// Wraps fragments into an object, which most of them need to be one.
fn object_of(input: &[u8]) -> String {
    let members: Vec<String> = input
        .chunks(2)
        .map(|part| {
            let name = ["a", "b", "\\u0061", "_meta", "é", "\\ud83d\\ude00", "a\\\"b", ""];
            let values = [
                "1",
                "1.0e+2",
                "\"\\u00e9\\n\"",
                "[ 1, {\"a\":2} ]",
                "{ \"a\" : null }",
                "null",
                "\"\"",
                "-0.0",
            ];
            let space = ["", " ", "\n", "\t "];
            let [name_byte, value_byte] = [part[0], *part.last().unwrap_or(&0)].map(usize::from);
            let space = space[name_byte / 8 % space.len()];
            format!("{space}\"{}\"{space}:{space}{}{space}", name[name_byte % 8], values[value_byte % 8])
        })
        .collect();
    format!(" {{{}}}\n", members.join(","))
}

fn raw_members(object: &str) -> Vec<(String, String)> {
    let members = parse_members(object).unwrap();
    members.iter().map(|(key, value)| (key.to_string(), value.get().to_owned())).collect()
}

fn check(object: &str) {
    let Ok(members) = parse_members(object) else {
        assert!(rewrite(object, &[]).is_err());
        return;
    };
    for (_, raw) in &members {
        if let Ok(text) = serde_json::from_str::<String>(raw.get()) {
            assert_eq!(decode_json_string(raw).as_deref(), Some(&*text), "{raw}");
            assert_eq!(serde_json::from_str::<String>(&json_string(&text)).unwrap(), text);
        }
    }
    let before = raw_members(object);
    // Numbers may be valid JSON and no number of Rust.
    let value = serde_json::from_str::<Value>(object).ok();
    for key in ["a", "é", "a\"b", "\u{1f600}", "none"] {
        assert_eq!(
            members.get(key).map(RawValue::get),
            before.iter().rev().find(|(name, _)| name == key).map(|(_, raw)| &**raw)
        );
        let is_other = |(name, _): &&(String, String)| name != key;
        let others: Vec<_> = before.iter().filter(is_other).collect();

        let set = members.rewrite(&[JsonEdit::Set(key, r#"{"set": true}"#)]);
        let after = raw_members(&set);
        assert_eq!(after.iter().filter(is_other).collect::<Vec<_>>(), others, "{object} {key}");
        let edited: Vec<_> = after.iter().filter(|(name, _)| name == key).collect();
        assert!(!edited.is_empty() && edited.iter().all(|(_, raw)| raw == r#"{"set": true}"#), "{set}");
        let removed = members.rewrite(&[JsonEdit::Remove(key)]);
        assert_eq!(raw_members(&removed).iter().collect::<Vec<_>>(), others, "{object} {key}");
        if let Some(Value::Object(mut expected)) = value.clone() {
            expected.remove(key);
            assert_eq!(serde_json::from_str::<Value>(&removed).unwrap(), Value::Object(expected.clone()));
            expected.insert(key.to_owned(), serde_json::json!({ "set": true }));
            assert_eq!(serde_json::from_str::<Value>(&set).unwrap(), Value::Object(expected));
        }
    }
    let same = members.rewrite(&[]);
    assert_eq!(raw_members(&same), before);
    assert_eq!(rewrite(&same, &[]).unwrap(), same, "a rewritten object has its final form");
}

#[test]
fn json_edit_changes_the_edited_member_only() {
    bolero::check!().for_each(|input: &[u8]| {
        for text in [input.to_vec(), compose(input, FRAGMENTS), object_of(input).into_bytes()] {
            if let Ok(text) = std::str::from_utf8(&text) {
                check(text);
            }
        }
    });
}
