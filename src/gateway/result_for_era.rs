//! Adapts the JSON of results to an era. Pure.

use std::borrow::Cow;

use memchr::memmem;

use crate::wire::{Era, JsonEdit, Members, parse_members};

/// Adapts a result to an era: the modern era requires `resultType` in every result, the legacy era has none. All else
/// is unchanged.
///
/// Returns the start of the result, and the rest.
pub(super) fn result_for_era(result: &[u8], era: Era) -> (&'static str, Cow<'_, [u8]>) {
    // Most results do not contain the member and need no parsing.
    let members = memmem::find(result, br#""resultType""#).and_then(|_| object_members(result));
    if let Some(members) = &members
        && let Some(value) = members.get("resultType")
    {
        return match (era, value.get()) {
            (Era::Legacy, r#""complete""#) => {
                ("", Cow::Owned(members.rewrite(&[JsonEdit::Remove("resultType")]).into()))
            }
            _ => ("", Cow::Borrowed(result)),
        };
    }
    match (era, result.trim_ascii_start().strip_prefix(b"{")) {
        (Era::Modern, Some(rest)) if rest.trim_ascii_start().starts_with(b"}") => {
            (r#"{"resultType":"complete""#, Cow::Borrowed(rest))
        }
        (Era::Modern, Some(rest)) => (r#"{"resultType":"complete","#, Cow::Borrowed(rest)),
        _ => ("", Cow::Borrowed(result)),
    }
}

/// Adds the cache members that the modern era requires in a `resources/read` result. If the server did not send them,
/// the resource may not be cached.
pub(super) fn with_cache_members(result: &[u8]) -> Cow<'_, [u8]> {
    let Some(members) = object_members(result) else { return Cow::Borrowed(result) };
    let missing = [("ttlMs", "0"), ("cacheScope", r#""private""#)]
        .into_iter()
        .filter(|(key, _)| members.get(key).is_none());
    let edits: Vec<_> = missing.map(|(key, value)| JsonEdit::Set(key, value)).collect();
    Cow::Owned(members.rewrite(&edits).into())
}

fn object_members(object: &[u8]) -> Option<Members<'_>> {
    parse_members(std::str::from_utf8(object).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_adapted_to_the_era_and_otherwise_unchanged() {
        for (raw, legacy, modern) in [
            (r"{}", r"{}", r#"{"resultType":"complete"}"#),
            (" { } ", " { } ", r#"{"resultType":"complete" } "#),
            (
                r#"{ "content": [], "x-new":1.0e+2 }"#,
                r#"{ "content": [], "x-new":1.0e+2 }"#,
                r#"{"resultType":"complete", "content": [], "x-new":1.0e+2 }"#,
            ),
            (
                r#"{"content":[],"resultType":"complete","_meta":{}}"#,
                r#"{"content":[],"_meta":{}}"#,
                r#"{"content":[],"resultType":"complete","_meta":{}}"#,
            ),
            (
                r#"{"structuredContent":{"resultType":"complete"}}"#,
                r#"{"structuredContent":{"resultType":"complete"}}"#,
                r#"{"resultType":"complete","structuredContent":{"resultType":"complete"}}"#,
            ),
            (r#"{"resultType":"task"}"#, r#"{"resultType":"task"}"#, r#"{"resultType":"task"}"#),
        ] {
            for (era, expected) in [(Era::Legacy, legacy), (Era::Modern, modern)] {
                let (start, rest) = result_for_era(raw.as_bytes(), era);
                assert_eq!(format!("{start}{}", String::from_utf8_lossy(&rest)), expected);
            }
        }
    }

    #[test]
    fn missing_cache_members_are_added() {
        for (raw, expected) in [
            (r#"{"contents":[]}"#, r#"{"contents":[],"ttlMs":0,"cacheScope":"private"}"#),
            (r#"{"ttlMs":5,"contents":[]}"#, r#"{"ttlMs":5,"contents":[],"cacheScope":"private"}"#),
            (
                r#"{"ttlMs":5,"cacheScope":"public","contents":[]}"#,
                r#"{"ttlMs":5,"cacheScope":"public","contents":[]}"#,
            ),
            ("null", "null"),
        ] {
            assert_eq!(with_cache_members(raw.as_bytes()), expected.as_bytes());
        }
    }
}
