//! Reads text of servers that is not a valid message: what can be mended without a guess is mended, and of the rest the
//! id of the request is found, so that its caller need not wait for the timeout.

use bytes::Bytes;
use serde_json::value::RawValue;

/// Returns the elements of a batch (MCP 2025-03-26, JSON-RPC batching); `None` if the message is not an array.
pub(super) fn batch_elements(message: &Bytes) -> Option<Vec<Bytes>> {
    if message.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return None;
    }
    let elements: Vec<&RawValue> = serde_json::from_slice(message).ok()?;
    Some(elements.into_iter().map(|element| message.slice_ref(element.get().as_bytes())).collect())
}

/// Returns the messages of a text: the elements of a batch, or the text itself.
pub(super) fn messages(text: Bytes) -> impl Iterator<Item = Bytes> {
    let batch = batch_elements(&text);
    let single = batch.is_none().then_some(text);
    single.into_iter().chain(batch.into_iter().flatten())
}

/// Returns the text as UTF-8, without a byte order mark and with U+FFFD for bytes that are not UTF-8, as JavaScript
/// reads it; `None` if nothing is to be mended.
pub(super) fn mend_encoding(text: &Bytes) -> Option<Bytes> {
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    let without_mark = text.strip_prefix(BYTE_ORDER_MARK);
    match String::from_utf8_lossy(without_mark.unwrap_or(text)) {
        std::borrow::Cow::Owned(mended) => Some(mended.into()),
        std::borrow::Cow::Borrowed(_) => without_mark.map(|rest| text.slice_ref(rest)),
    }
}

/// Returns the number in the id of a message: an integer, or a string or a number with a fraction of zero that stands
/// for one. The second value is true if it is not an integer.
pub(super) fn id_number(raw: &str) -> Option<(u64, bool)> {
    if let Ok(number) = raw.parse() {
        return Some((number, false));
    }
    let text = raw.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(raw).trim();
    let digits = text.split_once('.').map_or(text, |(digits, fraction)| {
        if fraction.bytes().all(|digit| digit == b'0') { digits } else { "" }
    });
    digits.parse().ok().map(|number| (number, true))
}

/// Returns the request id of a response that cannot be parsed, or of a truncated one, of which `message` holds the start
/// followed by the end; `None` for anything that is no response.
///
/// Servers write `id` before or after the long part.
pub(super) fn request_id_of_unreadable(message: &[u8]) -> Option<u64> {
    const VERSION: &str = r#""jsonrpc":"2.0""#;
    let mut text = String::from_utf8_lossy(message).into_owned();
    text.retain(|char| !char.is_whitespace());
    let number = |id: &str| id_number(id).map(|(number, _)| number);
    let mut request_id = None;
    let mut start = text.strip_prefix('{')?;
    while !start.starts_with(r#""result":"#) && !start.starts_with(r#""error":"#) {
        start = match start.strip_prefix(r#""id":"#) {
            Some(rest) => {
                let (id, rest) = rest.split_once(',')?;
                request_id = number(id);
                rest
            }
            None => start.strip_prefix(VERSION)?.strip_prefix(',')?,
        };
    }
    let end = text.strip_suffix('}').unwrap_or_default();
    let end = end.strip_suffix(VERSION).and_then(|end| end.strip_suffix(',')).unwrap_or(end);
    let (_, id) = end.rsplit_once(r#","id":"#).unwrap_or_default();
    request_id.or_else(|| number(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_number_accepts_strings_and_fractions_of_zero() {
        for (raw, expected) in [
            ("7", Some((7, false))),
            ("\"7\"", Some((7, true))),
            ("7.0", Some((7, true))),
            ("\"7.00\"", Some((7, true))),
            ("7.5", None),
            ("-7", None),
            ("\"a\"", None),
            ("\"\"", None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(id_number(raw), expected, "{raw}");
        }
    }

    #[test]
    fn batch_is_split_and_other_messages_are_not() {
        let split = |text: &str| batch_elements(&Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(split(r#" [{"a":1}, 2]"#), Some(vec![r#"{"a":1}"#.into(), "2".into()]));
        assert_eq!(split("[]"), Some(vec![]));
        assert_eq!(split("{}"), None);
        assert_eq!(split("[1"), None);
        assert_eq!(split(""), None);
    }

    #[test]
    fn encoding_is_mended_only_if_it_is_wrong() {
        let mend = |bytes: &'static [u8]| mend_encoding(&Bytes::from_static(bytes));
        assert_eq!(mend("{\"a\":\"é\"}".as_bytes()), None);
        assert_eq!(mend(b"{\"a\":\"\xe9\"}").unwrap(), "{\"a\":\"\u{fffd}\"}");
        assert_eq!(mend(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(mend(b"\xef\xbb\xbf{\xe9}").unwrap(), "{\u{fffd}}");
    }

    #[test]
    fn request_id_is_found_in_an_unreadable_response() {
        for (text, request_id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a":"x~y"}}"#, Some(7)),
            (r#"{ "id": 7, "jsonrpc": "2.0", "error": {"data":"x~y"} }"#, Some(7)),
            (r#"{"result":{"a":"x~y"},"jsonrpc":"2.0","id":7}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","result":{"a":"x~y"},"id":7,"jsonrpc":"2.0"}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":"7","result":{"a":NaN}}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a":"#, Some(7)),
            (r#"{"jsonrpc":"2.0","result":{"a":Infinity},"id":"7"}"#, Some(7)),
            (r#"{"jsonrpc":"2.0","result":{"a":"x~y","id":7}}"#, None),
            (r#"{"jsonrpc":"2.0","result":"x~y,\"id\":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":"a","result":"x~y"}"#, None),
            (r#"{"jsonrpc":"2.0","method":"x~y","id":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"method":"x~y"}"#, None),
            ("x~y", None),
        ] {
            assert_eq!(request_id_of_unreadable(text.as_bytes()), request_id, "{text}");
        }
    }
}
