//! The headers `Content-Type` and `Accept`.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// True if the body is said to be JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| essence(value).eq_ignore_ascii_case("application/json"))
}

/// True if an answer of this type is welcome. No `Accept` at all welcomes everything.
pub fn accepts(headers: &HeaderMap, main: &str, sub: &str) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let Some((range_main, range_sub)) = essence(range).split_once('/') else {
            return false;
        };
        (range_main == "*" || range_main.eq_ignore_ascii_case(main))
            && (range_sub == "*" || range_sub.eq_ignore_ascii_case(sub))
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
        let with = |value: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
        for value in ["text/event-stream", "application/json, Text/Event-Stream;q=0.9", "*/*", "text/*"] {
            assert!(accepts(&with(value), "text", "event-stream"), "{value}");
        }
        for value in ["application/json", "", "text/html"] {
            assert!(!accepts(&with(value), "text", "event-stream"), "{value}");
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
