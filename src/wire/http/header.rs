use base64::Engine;
use http::HeaderValue;

/// Encodes a name as a header value. Uses base64 for names that are not valid in a header (2026-07-28, transports).
pub(in crate::wire) fn encode_header_value(name: &str) -> Option<HeaderValue> {
    let is_plain = name.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && !name.starts_with(' ')
        && !name.ends_with(' ');
    let looks_encoded = name.starts_with("=?base64?") && name.ends_with("?=");
    if is_plain && !looks_encoded {
        return HeaderValue::from_str(name).ok();
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(name);
    HeaderValue::from_str(&format!("=?base64?{encoded}?=")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_ascii_names_are_base64_encoded() {
        assert_eq!(encode_header_value("search").unwrap(), "search");
        assert_eq!(encode_header_value("é").unwrap(), "=?base64?w6k=?=");
        assert_eq!(encode_header_value(" a").unwrap(), "=?base64?IGE=?=");
    }
}
