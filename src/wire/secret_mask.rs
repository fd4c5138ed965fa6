//! Takes the values that a server was given out of what it says, before any of that becomes ours: a message, a log
//! line, a status. What it answers to agents is not touched. Encodings of a value, or its halves, are not known.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};

use crate::resource::{Endpoint, Transport};
use crate::text;

/// What stands in place of a value.
const REDACTED: &[u8] = b"<redacted>";
/// The shortest value that is masked, in characters: shorter ones are words of every sentence.
const MIN_VALUE_CHARS: usize = 4;
/// The same for a variable that is written out in the declaration, which is seldom a secret.
const MIN_LITERAL_CHARS: usize = 8;
/// A longer value is known by its parts, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;
/// So much of a line that does not end is held back, in bytes.
const MAX_HELD_BYTES: usize = 4 * MAX_PATTERN_BYTES;

/// The values of one connection. Cheap to clone, and free where there are none; prints nothing of them.
#[derive(Clone, Default)]
pub(super) struct SecretMask(Option<Arc<MaskedValues>>);

struct MaskedValues {
    values: Vec<SecretString>,
    /// Finds them all at once. Made for the first text, which most servers over HTTP never give.
    searcher: OnceLock<Option<AhoCorasick>>,
}

impl SecretMask {
    /// The values that `endpoint` gives to its server.
    pub(super) fn for_endpoint(endpoint: &Endpoint) -> Self {
        let mut values = ValueCollector::default();
        for value in endpoint.referenced_values() {
            values.add(value.expose_secret(), MIN_VALUE_CHARS);
        }
        match &endpoint.transport {
            Transport::Stdio(stdio) => {
                for (_, value) in &stdio.env {
                    values.add(value.expose_secret(), MIN_LITERAL_CHARS);
                }
            }
            Transport::Http(http) => {
                for (_, value) in &http.headers {
                    let value = value.expose_secret();
                    values.add(value, MIN_VALUE_CHARS);
                    if let Some((_scheme, credentials)) = value.split_once(' ') {
                        values.add(credentials, MIN_VALUE_CHARS);
                    }
                }
                values.add_url(&http.url);
            }
        }
        let mut values = values.0;
        values.sort_by(|one, other| one.expose_secret().cmp(other.expose_secret()));
        values.dedup_by(|one, other| one.expose_secret() == other.expose_secret());
        Self((!values.is_empty()).then(|| Arc::new(MaskedValues { values, searcher: OnceLock::new() })))
    }

    /// The text without the values.
    pub(super) fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(masked) => Cow::Owned(String::from_utf8_lossy(&masked).into_owned()),
        }
    }

    /// The same, for a message to a person, as [`text::bounded`] gives it.
    pub(super) fn redacted_line(&self, text: &str, limit: usize) -> String {
        text::sanitize(&self.redact(text), limit)
    }

    fn redact_bytes<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let spans = self.value_spans(text);
        if spans.is_empty() {
            return Cow::Borrowed(text);
        }
        let (mut masked, mut done) = (Vec::with_capacity(text.len()), 0);
        for span in spans {
            masked.extend_from_slice(text.get(done..span.start).unwrap_or_default());
            masked.extend_from_slice(REDACTED);
            done = span.end;
        }
        masked.extend_from_slice(text.get(done..).unwrap_or_default());
        Cow::Owned(masked)
    }

    /// Where values stand, in order; those that touch or overlap are one.
    fn value_spans(&self, text: &[u8]) -> Vec<Range<usize>> {
        let Some(masked) = &self.0 else { return Vec::new() };
        let mut spans = masked.matches(text);
        spans.sort_by_key(|span| span.start);
        spans.dedup_by(|next, span| {
            let touches = next.start <= span.end;
            if touches {
                span.end = span.end.max(next.end);
            }
            touches
        });
        spans
    }
}

impl MaskedValues {
    fn matches(&self, text: &[u8]) -> Vec<Range<usize>> {
        let make = || {
            let values = self.values.iter().map(ExposeSecret::expose_secret);
            // The one kind that is small: 1 to 3 KiB for what most servers are given.
            AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(values).ok()
        };
        match self.searcher.get_or_init(make) {
            Some(searcher) => searcher.find_overlapping_iter(text).map(|found| found.range()).collect(),
            // There are too many values for one searcher, which takes gigabytes of them: nothing is told then.
            None => std::iter::once(0..text.len()).collect(),
        }
    }
}

impl fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mask")
    }
}

#[derive(Default)]
struct ValueCollector(Vec<SecretString>);

impl ValueCollector {
    /// A value of at least `shortest` characters: each of its lines, also as it stands in JSON.
    fn add(&mut self, value: &str, shortest: usize) {
        let lines = value.lines().map(str::trim).filter(|line| line.chars().count() >= shortest);
        for line in lines {
            self.add_line(line);
            let quoted = SecretString::from(serde_json::to_string(line).unwrap_or_default());
            let quoted = quoted.expose_secret();
            let escaped = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or(line);
            if escaped != line {
                self.add_line(escaped);
            }
        }
    }

    /// One line, in parts of the same length if it is too long for one.
    fn add_line(&mut self, line: &str) {
        let size = line.len().div_ceil(line.len().div_ceil(MAX_PATTERN_BYTES));
        let mut rest = line;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
            self.0.push(part.into());
            rest = after;
        }
    }

    /// User name, password and the values of the query, as they are written and as they are meant.
    fn add_url(&mut self, url: &Url) {
        let query = url.query().unwrap_or_default().split('&');
        let in_query = query.map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
        for written in [url.username(), url.password().unwrap_or_default()].into_iter().chain(in_query) {
            self.add(written, MIN_VALUE_CHARS);
            for (_, meant) in form_urlencoded::parse(format!("={written}").as_bytes()) {
                self.add(&meant, MIN_VALUE_CHARS);
            }
        }
    }
}

/// What comes in pieces, masked: a value that is cut in two by a read, or by the length of a line, is one all the same.
#[derive(Default)]
pub(super) struct SecretMaskStream {
    mask: SecretMask,
    buffer: Vec<u8>,
}

impl SecretMaskStream {
    pub(super) fn new(mask: SecretMask) -> Self {
        Self { mask, buffer: Vec::new() }
    }

    /// Takes a piece up, and gives what can be told by now: whole lines, and most of one that is very long.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(bytes);
        let lines = self.buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let cut = if self.mask.0.is_none() {
            self.buffer.len()
        } else if self.buffer.len() - lines > MAX_HELD_BYTES {
            // What a value may still begin in stays.
            let cut = self.buffer.len() - MAX_PATTERN_BYTES;
            let spans = self.mask.value_spans(&self.buffer);
            let within = spans.iter().find(|span| span.contains(&cut));
            within.map_or(cut, |span| span.end)
        } else {
            lines
        };
        let told = self.buffer.drain(..cut).collect::<Vec<_>>();
        self.mask.redact_bytes(&told).into_owned()
    }

    /// What was held back so far.
    pub(super) fn pending(&self) -> Cow<'_, [u8]> {
        self.mask.redact_bytes(&self.buffer)
    }

    /// Gives what was held back: nothing more comes.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.buffer);
        self.mask.redact_bytes(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{DigestKey, HttpEndpoint, StdioEndpoint};

    fn mask_for(transport: Transport, referenced: &[&str]) -> SecretMask {
        let referenced = referenced.iter().map(|value| SecretString::from(*value)).collect();
        SecretMask::for_endpoint(
            &Endpoint::new(transport, &DigestKey::new(b"k")).with_referenced_values(referenced),
        )
    }

    /// Of a process with these variables written out, and these values from elsewhere.
    fn stdio_mask(written: &[&str], referenced: &[&str]) -> SecretMask {
        let env = written.iter().map(|value| ("X".to_owned(), SecretString::from(*value))).collect();
        let stdio = StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env };
        mask_for(Transport::Stdio(stdio), referenced)
    }

    fn http_mask(url: &str, headers: &[&str]) -> SecretMask {
        let headers = headers.iter().map(|value| (http::header::AUTHORIZATION, (*value).into())).collect();
        mask_for(Transport::Http(HttpEndpoint { url: url.parse().unwrap(), headers, ca: None }), &[])
    }

    #[test]
    fn redact_replaces_whole_values() {
        let lines = "-----BEGIN KEY-----\nMIIEvQ\nx\n-----END KEY-----\n";
        let quoted = r#"pa"ss\word"#;
        for (mask, text, expected) in [
            (stdio_mask(&[], &["tok-1"]), "the token tok-1, tok-1!", "the token <redacted>, <redacted>!"),
            (stdio_mask(&[], &["abc"]), "abc", "abc"),
            (stdio_mask(&["info"], &[]), "info", "info"),
            (stdio_mask(&["postgres://u:p@h"], &[]), "no postgres://u:p@h", "no <redacted>"),
            // One within another, one that overlaps another, and one like what stands in its place.
            (stdio_mask(&[], &["tok-1", "tok-1-long"]), "tok-1-long tok-1", "<redacted> <redacted>"),
            (stdio_mask(&[], &["abcd1234", "1234efgh"]), "abcd1234efgh", "<redacted>"),
            (stdio_mask(&[], &["redacted", "tok-1"]), "tok-1 redacted", "<redacted> <redacted>"),
            (stdio_mask(&[], &[lines]), "MIIEvQ|x|-----END KEY-----", "<redacted>|x|<redacted>"),
            (
                stdio_mask(&[], &[quoted]),
                r#"{"why":"pa\"ss\\word"} pa"ss\word"#,
                r#"{"why":"<redacted>"} <redacted>"#,
            ),
            (stdio_mask(&[], &["schlüssel"]), "é schlüssel é", "é <redacted> é"),
            (
                http_mask("http://h/mcp", &["Bearer tok-1"]),
                "Bearer tok-1 or tok-1",
                "<redacted> or <redacted>",
            ),
            (
                http_mask("http://name:pass%21@h/mcp?key=a%20b%2Bc&x=1&alone", &[]),
                "name pass%21 pass! a%20b%2Bc a b+c key x 1 alone",
                "<redacted> <redacted> <redacted> <redacted> <redacted> key x 1 <redacted>",
            ),
        ] {
            assert_eq!(mask.redact(text), expected);
            assert!(!format!("{mask:?}").contains("tok"));
        }
    }

    #[test]
    fn redact_replaces_values_longer_than_one_pattern() {
        let long: String = (0..2_000).map(|number| number.to_string()).collect();
        assert_eq!(stdio_mask(&[], &[&long]).redact(&format!("a {long} z")), "a <redacted> z");
    }

    #[test]
    fn stream_redacts_values_split_across_chunks() {
        let mask = stdio_mask(&[], &["secret-1", "second\nthird"]);
        let noise = "x".repeat(2 * MAX_HELD_BYTES);
        let text = format!("a secret-1\nsecond\n third secret-1{noise}secret-1{noise} secret-1");
        let expected = mask.redact(&text).into_owned();
        for size in [1, 7, 1000, text.len()] {
            let mut masking = SecretMaskStream::new(mask.clone());
            let mut told = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                told.extend(masking.push(piece));
                assert!(masking.buffer.len() <= MAX_HELD_BYTES, "{size}");
            }
            assert!(masking.pending().ends_with(b" <redacted>"));
            told.extend(masking.finish());
            assert_eq!(String::from_utf8(told).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn redacted_line_redacts_before_truncating() {
        let mask = stdio_mask(&[], &["secret-1"]);
        assert_eq!(mask.redacted_line("\u{1b}[1m a secret-1 ", 9), "[1m a <r…");
    }
}
