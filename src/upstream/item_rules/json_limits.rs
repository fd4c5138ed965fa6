//! Limits of JSON parsers that are narrower than JSON itself.

/// The maximum nesting depth of an item. Many JSON parsers reject deeper nesting, some at 128 levels.
const MAX_DEPTH: usize = 100;
/// The length up to which a number without an exponent is surely in the range of a double.
const MAX_SHORT_NUMBER_BYTES: usize = 300;

/// Checks valid JSON in one pass. The error says what parsers of agents reject.
pub(super) fn check(json: &str) -> Result<(), String> {
    let bytes = json.as_bytes();
    let (mut depth, mut quoted, mut index) = (0_usize, false, 0_usize);
    while let Some(byte) = bytes.get(index) {
        index += 1;
        if quoted {
            match byte {
                b'"' => quoted = false,
                b'\\' => index += escape_len(bytes.get(index..).unwrap_or_default())?,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => index += rest_of_number(json.get(index - 1..).unwrap_or_default())?,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("it is nested more than {MAX_DEPTH} levels deep"));
        }
    }
    Ok(())
}

/// Returns the length of a number after its first character. Fails if it is out of the range of a double: parsers in Rust
/// and Go reject it, those in Python reject a long integer.
fn rest_of_number(json: &str) -> Result<usize, String> {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let len = json.bytes().take_while(is_part).count();
    let number = json.get(..len).unwrap_or_default();
    let may_be_large = len > MAX_SHORT_NUMBER_BYTES || number.contains(['e', 'E']);
    if may_be_large && !number.parse::<f64>().is_ok_and(f64::is_finite) {
        return Err("it has a number that is out of range".to_owned());
    }
    Ok(len.saturating_sub(1))
}

/// Returns the length of an escape sequence after its backslash. Fails for one half of a surrogate pair, which is no
/// character: parsers in Python reject it.
fn escape_len(escape: &[u8]) -> Result<usize, String> {
    let code_unit = |escape: &[u8]| {
        let digits = escape.strip_prefix(b"u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let Some(first) = code_unit(escape) else { return Ok(1) };
    if !matches!(first, 0xD800..=0xDFFF) {
        return Ok(5);
    }
    let second = escape.get(5..).and_then(|rest| code_unit(rest.strip_prefix(b"\\")?));
    match (first, second) {
        (0xD800..=0xDBFF, Some(0xDC00..=0xDFFF)) => Ok(11),
        _ => {
            Err(format!("it has the escape \\u{first:04x}, half of a surrogate pair, which is no character"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_parsers_are_checked_outside_and_inside_strings() {
        let nested =
            |levels: usize| format!(r#"{{"a":"\"[[{{","b":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        for (json, why) in [
            (r#"{"a":"\\","b":"\u00fc \ud83d\ude00 \\ud800"}"#.to_owned(), None),
            (nested(99), None),
            (nested(100), Some("levels deep")),
            (
                format!(
                    r#"{{"a":"{}","b":[-1.5e1,1E+308,0.{}],"e":true}}"#,
                    "1e999".repeat(100),
                    "1".repeat(5_000)
                ),
                None,
            ),
            (format!("[{}]", "1".repeat(309)), None),
            (format!("[{}]", "1".repeat(310)), Some("out of range")),
            ("[0,-1e999]".to_owned(), Some("out of range")),
            (r#"["\ud800"]"#.to_owned(), Some("surrogate")),
            (r#"["\uDC00\uD800"]"#.to_owned(), Some("surrogate")),
            (r#"["\ud83dx\ude00"]"#.to_owned(), Some("surrogate")),
            (r#"{"\ud800\n":1}"#.to_owned(), Some("surrogate")),
            (r#"["\ud83d\ude00\ude00"]"#.to_owned(), Some("surrogate")),
        ] {
            match (check(&json), why) {
                (Ok(()), None) => {}
                (Err(error), Some(why)) => assert!(error.contains(why), "{error}"),
                (result, _) => panic!("{result:?} for {}", json.get(..60).unwrap_or(&json)),
            }
        }
    }
}
