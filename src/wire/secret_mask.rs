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
const SHORTEST: usize = 4;
/// The same for a variable that is written out in the declaration, which is seldom a secret.
const SHORTEST_WRITTEN: usize = 8;
/// A longer value is known by its parts, in bytes.
const LONGEST: usize = 1024;
/// So much of a line that does not end is held back, in bytes.
const HELD: usize = 4 * LONGEST;

/// The values of one connection. Cheap to clone, and free where there are none; prints nothing of them.
#[derive(Clone, Default)]
pub(super) struct SecretMask(Option<Arc<Masked>>);

struct Masked {
    values: Vec<SecretString>,
    /// Finds them all at once. Made for the first text, which most servers over HTTP never give.
    searcher: OnceLock<Option<AhoCorasick>>,
}

impl SecretMask {
    /// The values that `endpoint` gives to its server.
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        let mut values = Values::default();
        for value in endpoint.referenced() {
            values.add(value.expose_secret(), SHORTEST);
        }
        match &endpoint.transport {
            Transport::Stdio(stdio) => {
                for (_, value) in &stdio.env {
                    values.add(value.expose_secret(), SHORTEST_WRITTEN);
                }
            }
            Transport::Http(http) => {
                for (_, value) in &http.headers {
                    let value = value.expose_secret();
                    values.add(value, SHORTEST);
                    if let Some((_scheme, credentials)) = value.split_once(' ') {
                        values.add(credentials, SHORTEST);
                    }
                }
                values.add_url(&http.url);
            }
        }
        let mut values = values.0;
        values.sort_by(|one, other| one.expose_secret().cmp(other.expose_secret()));
        values.dedup_by(|one, other| one.expose_secret() == other.expose_secret());
        Self((!values.is_empty()).then(|| Arc::new(Masked { values, searcher: OnceLock::new() })))
    }

    /// The text without the values.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(masked) => Cow::Owned(String::from_utf8_lossy(&masked).into_owned()),
        }
    }

    /// The same, for a message to a person, as [`text::bounded`] gives it.
    pub(super) fn words(&self, text: &str, limit: usize) -> String {
        text::bounded(&self.text(text), limit)
    }

    fn bytes<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let spans = self.spans(text);
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
    fn spans(&self, text: &[u8]) -> Vec<Range<usize>> {
        let Some(masked) = &self.0 else { return Vec::new() };
        let mut spans = masked.find(text);
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

impl Masked {
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
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
struct Values(Vec<SecretString>);

impl Values {
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
        let size = line.len().div_ceil(line.len().div_ceil(LONGEST));
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
            self.add(written, SHORTEST);
            for (_, meant) in form_urlencoded::parse(format!("={written}").as_bytes()) {
                self.add(&meant, SHORTEST);
            }
        }
    }
}

/// What comes in pieces, masked: a value that is cut in two by a read, or by the length of a line, is one all the same.
#[derive(Default)]
pub(super) struct SecretMaskStream {
    mask: SecretMask,
    rest: Vec<u8>,
}

impl SecretMaskStream {
    pub(super) fn new(mask: SecretMask) -> Self {
        Self { mask, rest: Vec::new() }
    }

    /// Takes a piece up, and gives what can be told by now: whole lines, and most of one that is very long.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let lines = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let cut = if self.mask.0.is_none() {
            self.rest.len()
        } else if self.rest.len() - lines > HELD {
            // What a value may still begin in stays.
            let cut = self.rest.len() - LONGEST;
            let spans = self.mask.spans(&self.rest);
            let within = spans.iter().find(|span| span.contains(&cut));
            within.map_or(cut, |span| span.end)
        } else {
            lines
        };
        let told = self.rest.drain(..cut).collect::<Vec<_>>();
        self.mask.bytes(&told).into_owned()
    }

    /// What was held back so far.
    pub(super) fn rest(&self) -> Cow<'_, [u8]> {
        self.mask.bytes(&self.rest)
    }

    /// Gives what was held back: nothing more comes.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.rest);
        self.mask.bytes(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{DigestKey, HttpEndpoint, StdioEndpoint};

    fn endpoint(transport: Transport, referenced: &[&str]) -> SecretMask {
        let referenced = referenced.iter().map(|value| SecretString::from(*value)).collect();
        SecretMask::of(&Endpoint::new(transport, &DigestKey::new(b"k")).with_references(referenced))
    }

    /// Of a process with these variables written out, and these values from elsewhere.
    fn process(written: &[&str], referenced: &[&str]) -> SecretMask {
        let env = written.iter().map(|value| ("X".to_owned(), SecretString::from(*value))).collect();
        let stdio = StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env };
        endpoint(Transport::Stdio(stdio), referenced)
    }

    fn remote(url: &str, headers: &[&str]) -> SecretMask {
        let headers = headers.iter().map(|value| (http::header::AUTHORIZATION, (*value).into())).collect();
        endpoint(Transport::Http(HttpEndpoint { url: url.parse().unwrap(), headers, ca: None }), &[])
    }

    #[test]
    fn values_are_taken_out_whole() {
        let lines = "-----BEGIN KEY-----\nMIIEvQ\nx\n-----END KEY-----\n";
        let quoted = r#"pa"ss\word"#;
        for (mask, text, expected) in [
            (process(&[], &["tok-1"]), "the token tok-1, tok-1!", "the token <redacted>, <redacted>!"),
            (process(&[], &["abc"]), "abc", "abc"),
            (process(&["info"], &[]), "info", "info"),
            (process(&["postgres://u:p@h"], &[]), "no postgres://u:p@h", "no <redacted>"),
            // One within another, one that overlaps another, and one like what stands in its place.
            (process(&[], &["tok-1", "tok-1-long"]), "tok-1-long tok-1", "<redacted> <redacted>"),
            (process(&[], &["abcd1234", "1234efgh"]), "abcd1234efgh", "<redacted>"),
            (process(&[], &["redacted", "tok-1"]), "tok-1 redacted", "<redacted> <redacted>"),
            (process(&[], &[lines]), "MIIEvQ|x|-----END KEY-----", "<redacted>|x|<redacted>"),
            (
                process(&[], &[quoted]),
                r#"{"why":"pa\"ss\\word"} pa"ss\word"#,
                r#"{"why":"<redacted>"} <redacted>"#,
            ),
            (process(&[], &["schlüssel"]), "é schlüssel é", "é <redacted> é"),
            (remote("http://h/mcp", &["Bearer tok-1"]), "Bearer tok-1 or tok-1", "<redacted> or <redacted>"),
            (
                remote("http://name:pass%21@h/mcp?key=a%20b%2Bc&x=1&alone", &[]),
                "name pass%21 pass! a%20b%2Bc a b+c key x 1 alone",
                "<redacted> <redacted> <redacted> <redacted> <redacted> key x 1 <redacted>",
            ),
        ] {
            assert_eq!(mask.text(text), expected);
            assert!(!format!("{mask:?}").contains("tok"));
        }
    }

    #[test]
    fn a_value_of_any_length_leaves_nothing() {
        let long: String = (0..2_000).map(|number| number.to_string()).collect();
        assert_eq!(process(&[], &[&long]).text(&format!("a {long} z")), "a <redacted> z");
    }

    #[test]
    fn pieces_are_masked_as_the_whole_is() {
        let mask = process(&[], &["secret-1", "second\nthird"]);
        let noise = "x".repeat(2 * HELD);
        let text = format!("a secret-1\nsecond\n third secret-1{noise}secret-1{noise} secret-1");
        let expected = mask.text(&text).into_owned();
        for size in [1, 7, 1000, text.len()] {
            let mut masking = SecretMaskStream::new(mask.clone());
            let mut told = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                told.extend(masking.push(piece));
                assert!(masking.rest.len() <= HELD, "{size}");
            }
            assert!(masking.rest().ends_with(b" <redacted>"));
            told.extend(masking.finish());
            assert_eq!(String::from_utf8(told).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn words_for_a_message_are_masked_before_they_are_cut() {
        let mask = process(&[], &["secret-1"]);
        assert_eq!(mask.words("\u{1b}[1m a secret-1 ", 9), "[1m a <r…");
    }
}
