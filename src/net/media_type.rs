//! Checks of the headers `Content-Type` and `Accept`.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Returns true if the `Content-Type` is `application/json`.
pub fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| essence(value).eq_ignore_ascii_case("application/json"))
}

/// Returns true if the `Accept` header includes this media type. Without the header, every type is accepted.
pub fn accepts(headers: &HeaderMap, main_type: &str, subtype: &str) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let Some((range_main, range_sub)) = essence(range).split_once('/') else {
            return false;
        };
        (range_main == "*" || range_main.eq_ignore_ascii_case(main_type))
            && (range_sub == "*" || range_sub.eq_ignore_ascii_case(subtype))
    })
}

fn essence(value: &str) -> &str {
    value.split_once(';').map_or(value, |(essence, _)| essence).trim()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn media_types_are_matched_leniently() {
        let accept = |value: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
        for value in ["text/event-stream", "application/json, Text/Event-Stream;q=0.9", "*/*", "text/*"] {
            assert!(accepts(&accept(value), "text", "event-stream"), "{value}");
        }
        for value in ["application/json", "", "text/html"] {
            assert!(!accepts(&accept(value), "text", "event-stream"), "{value}");
        }
        assert!(accepts(&HeaderMap::new(), "text", "event-stream"));
        let json = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(
            json("application/json; charset=utf-8")
                && json("Application/JSON")
                && !json("text/plain")
                && !json("")
        );
    }
}
