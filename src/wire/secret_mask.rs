//! Redacts the values that a server was given from its texts before evenkeel uses them in a message, a log line or a
//! status. Responses to agents are not changed. Encodings and parts of a value are not recognized.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};

use super::access_token::AccessToken;
use super::child_environment::ChildEnvironment;
use crate::resource::{Endpoint, Transport};
use crate::text;

/// The replacement of a value.
const REDACTED: &[u8] = b"<redacted>";
/// The minimum length of a redacted value in characters. Shorter ones occur in ordinary text.
const MIN_VALUE_CHARS: usize = 4;
/// The minimum length in characters of a literal value in the declaration, which is rarely a secret.
const MIN_LITERAL_CHARS: usize = 8;
/// The maximum length of a search pattern in bytes. Longer values are split into several.
const MAX_PATTERN_BYTES: usize = 1024;
/// The maximum bytes of an unfinished line that are held back.
const MAX_HELD_BYTES: usize = 4 * MAX_PATTERN_BYTES;

/// The values to redact for one connection. Cheap to clone; allocates nothing if there are none. `Debug` prints none of
/// them.
#[derive(Clone, Default)]
pub(super) struct SecretMask {
    values: Option<Arc<MaskedValues>>,
    /// The OAuth tokens of the server, which change during a connection.
    token: AccessToken,
}

struct MaskedValues {
    values: Vec<SecretString>,
    /// Searches for all values at once. Built for the first text; most HTTP servers never send one.
    searcher: OnceLock<Option<AhoCorasick>>,
}

impl SecretMask {
    /// Collects the values that `endpoint` passes to its server, and those that a child process inherits.
    ///
    /// A literal variable is not redacted if its value is a number or the path of an existing file, unless its name is
    /// that of a secret: a log without ports, limits and paths is of little use.
    pub(super) async fn for_endpoint(endpoint: &Endpoint, inherited: &ChildEnvironment) -> Self {
        let mut values = ValueCollector::default();
        for value in endpoint.referenced_values() {
            values.add(value.expose_secret(), MIN_VALUE_CHARS);
        }
        match &endpoint.transport {
            Transport::Stdio(stdio) => {
                for (name, value) in &stdio.env {
                    if !is_plain_setting(name, value.expose_secret()).await {
                        values.add(value.expose_secret(), MIN_LITERAL_CHARS);
                    }
                }
                for value in inherited.passed_values() {
                    values.add(value.expose_secret(), MIN_VALUE_CHARS);
                }
                inherited.proxies().iter().for_each(|proxy| values.add_url(proxy));
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
                if let Some(secret) = http.oauth.as_ref().and_then(|oauth| oauth.client_secret.as_ref()) {
                    values.add(secret.expose_secret(), MIN_VALUE_CHARS);
                }
            }
        }
        let mut values = values.0;
        values.sort_by(|one, other| one.expose_secret().cmp(other.expose_secret()));
        values.dedup_by(|one, other| one.expose_secret() == other.expose_secret());
        let values =
            (!values.is_empty()).then(|| Arc::new(MaskedValues { values, searcher: OnceLock::new() }));
        Self { values, token: AccessToken::default() }
    }

    /// Adds the OAuth tokens of the server.
    #[must_use]
    pub(super) fn with_token(self, token: &AccessToken) -> Self {
        Self { token: token.clone(), ..self }
    }

    /// Returns the text with the values replaced.
    pub(super) fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact_bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(redacted) => Cow::Owned(String::from_utf8_lossy(&redacted).into_owned()),
        }
    }

    /// Returns the redacted text as one line of at most `limit` characters ([`text::sanitize`]).
    pub(super) fn redacted_line(&self, text: &str, limit: usize) -> String {
        text::sanitize(&self.redact(text), limit)
    }

    fn redact_bytes<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let spans = self.value_spans(text);
        if spans.is_empty() {
            return Cow::Borrowed(text);
        }
        let (mut redacted, mut done) = (Vec::with_capacity(text.len()), 0);
        for span in spans {
            redacted.extend_from_slice(text.get(done..span.start).unwrap_or_default());
            redacted.extend_from_slice(REDACTED);
            done = span.end;
        }
        redacted.extend_from_slice(text.get(done..).unwrap_or_default());
        Cow::Owned(redacted)
    }

    /// Returns the ranges of values in order. Adjacent and overlapping ones are merged.
    fn value_spans(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut spans = self.values.as_ref().map(|values| values.matches(text)).unwrap_or_default();
        self.token.for_each_recent(|token| {
            let token = token.expose_secret().as_bytes();
            spans.extend(memchr::memmem::find_iter(text, token).map(|start| start..start + token.len()));
        });
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
        let build = || {
            let values = self.values.iter().map(ExposeSecret::expose_secret);
            // The only small kind: 1 to 3 KiB for the values of most servers.
            AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(values).ok()
        };
        match self.searcher.get_or_init(build) {
            Some(searcher) => searcher.find_overlapping_iter(text).map(|found| found.range()).collect(),
            // The values are too large for one searcher, which takes gigabytes of them: redact everything.
            None => std::iter::once(0..text.len()).collect(),
        }
    }
}

impl fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretMask")
    }
}

/// The parts of a variable's name, in upper case, that make its value a secret whatever it looks like.
const SECRET_NAME_PARTS: [&str; 14] = [
    "TOKEN",
    "SECRET",
    "PASS",
    "PWD",
    "KEY",
    "CREDENTIAL",
    "AUTH",
    "COOKIE",
    "SESSION",
    "PRIVATE",
    "SALT",
    "SIGNATURE",
    "PIN",
    "OTP",
];

/// Returns true if a literal variable is a setting that is no secret: a number or the path of an existing file.
async fn is_plain_setting(name: &str, value: &str) -> bool {
    if value.chars().count() < MIN_LITERAL_CHARS {
        return true;
    }
    let name = name.to_ascii_uppercase();
    if SECRET_NAME_PARTS.iter().any(|part| name.contains(part)) {
        return false;
    }
    let is_path = value.starts_with('/') && !value.contains('\n');
    value.parse::<f64>().is_ok() || (is_path && tokio::fs::try_exists(value).await.unwrap_or_default())
}

#[derive(Default)]
struct ValueCollector(Vec<SecretString>);

impl ValueCollector {
    /// Adds each line of a value that has at least `min_chars` characters, both plain and JSON-escaped.
    fn add(&mut self, value: &str, min_chars: usize) {
        let lines = value.lines().map(str::trim).filter(|line| line.chars().count() >= min_chars);
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

    /// Adds one line, split into parts of equal length if it is too long for one pattern.
    fn add_line(&mut self, line: &str) {
        let size = line.len().div_ceil(line.len().div_ceil(MAX_PATTERN_BYTES));
        let mut rest = line;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
            self.0.push(part.into());
            rest = after;
        }
    }

    /// Adds the user name, the password and the query values, both percent-encoded and decoded.
    fn add_url(&mut self, url: &Url) {
        let query = url.query().unwrap_or_default().split('&');
        let query_values = query.map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
        for encoded in [url.username(), url.password().unwrap_or_default()].into_iter().chain(query_values) {
            self.add(encoded, MIN_VALUE_CHARS);
            for (_, decoded) in form_urlencoded::parse(format!("={encoded}").as_bytes()) {
                self.add(&decoded, MIN_VALUE_CHARS);
            }
        }
    }
}

/// Redacts a byte stream that arrives in chunks. Also finds values that are split across chunks or across long lines.
#[derive(Default)]
pub(super) struct SecretMaskStream {
    mask: SecretMask,
    buffer: Vec<u8>,
}

impl SecretMaskStream {
    pub(super) fn new(mask: SecretMask) -> Self {
        Self { mask, buffer: Vec::new() }
    }

    /// Adds a chunk and returns the redacted output so far: whole lines, and most of a very long unfinished line.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(bytes);
        let lines = self.buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let cut = if self.mask.values.is_none() {
            self.buffer.len()
        } else if self.buffer.len() - lines > MAX_HELD_BYTES {
            // A value may begin in the last bytes: keep them.
            let cut = self.buffer.len() - MAX_PATTERN_BYTES;
            let spans = self.mask.value_spans(&self.buffer);
            let split_value = spans.iter().find(|span| span.contains(&cut));
            split_value.map_or(cut, |span| span.end)
        } else {
            lines
        };
        let ready = self.buffer.drain(..cut).collect::<Vec<_>>();
        self.mask.redact_bytes(&ready).into_owned()
    }

    /// Returns the redacted bytes that are held back.
    pub(super) fn pending(&self) -> Cow<'_, [u8]> {
        self.mask.redact_bytes(&self.buffer)
    }

    /// Returns the redacted rest. Call it at the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.buffer);
        self.mask.redact_bytes(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{
        DigestKey, HttpEndpoint, HttpTransportKind, InheritedVariables, ProtocolMode, StdioEndpoint,
    };

    fn mask_for(transport: Transport, referenced: &[&str]) -> SecretMask {
        mask_with_environment(transport, referenced, &ChildEnvironment::default())
    }

    fn mask_with_environment(
        transport: Transport,
        referenced: &[&str],
        inherited: &ChildEnvironment,
    ) -> SecretMask {
        let referenced = referenced.iter().map(|value| SecretString::from(*value)).collect();
        let endpoint = Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"k"))
            .with_referenced_values(referenced);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(SecretMask::for_endpoint(&endpoint, inherited))
    }

    /// Returns the mask of a stdio server with these literal variables and these referenced values.
    fn stdio_mask(literals: &[&str], referenced: &[&str]) -> SecretMask {
        let env = literals.iter().map(|value| ("X".to_owned(), SecretString::from(*value))).collect();
        let stdio = StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env };
        mask_for(Transport::Stdio(stdio), referenced)
    }

    fn http_mask(url: &str, headers: &[&str]) -> SecretMask {
        let headers = headers.iter().map(|value| (http::header::AUTHORIZATION, (*value).into())).collect();
        mask_for(
            Transport::Http(HttpEndpoint {
                kind: HttpTransportKind::StreamableHttp,
                url: url.parse().unwrap(),
                headers,
                ca: None,
                oauth: None,
            }),
            &[],
        )
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
            // A value within another, one that overlaps another, and one that occurs in the replacement.
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
    fn literal_numbers_and_existing_paths_are_shown_unless_their_name_is_that_of_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        for (name, value, shown) in [
            ("MAX_BYTES", "10485760", true),
            ("RATIO", "0.12345678", true),
            ("PIN_CODE", "12345678", false),
            ("api_key", "1234567890", false),
            ("PHONE", "+49 1234567", false),
            ("DATA_DIR", &path, true),
            ("DATA_DIR", "/no/such/path", false),
            ("TOKEN_FILE", &path, false),
            ("NAME", "correct horse", false),
            ("MODE", "true", true),
        ] {
            let env = vec![(name.to_owned(), value.into())];
            let stdio = StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env };
            let redacted = mask_for(Transport::Stdio(stdio), &[]).redact(value).into_owned();
            assert_eq!(redacted == value, shown, "{name}={value}: {redacted}");
        }
        // A value that is also referenced is a secret.
        assert_eq!(stdio_mask(&["10485760"], &["10485760"]).redact("10485760"), "<redacted>");
    }

    #[test]
    fn inherited_secrets_are_redacted() {
        let rules = InheritedVariables::new(false, &["GITHUB_TOKEN".to_owned()]).unwrap();
        let variables =
            [("GITHUB_TOKEN", "ghp_1"), ("HTTPS_PROXY", "http://name:p%40ss@proxy"), ("HOME", "/home/me")];
        let inherited =
            ChildEnvironment::select(variables.map(|(name, value)| (name.into(), value.into())), &rules);
        let stdio = StdioEndpoint { command: "c".into(), args: Vec::new(), cwd: None, env: Vec::new() };
        let mask = mask_with_environment(Transport::Stdio(stdio), &[], &inherited);
        assert_eq!(
            mask.redact("ghp_1 via http://name:p%40ss@proxy, p@ss, /home/me"),
            "<redacted> via http://<redacted>:<redacted>@proxy, <redacted>, /home/me"
        );
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
            let mut stream = SecretMaskStream::new(mask.clone());
            let mut output = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                output.extend(stream.push(chunk));
                assert!(stream.buffer.len() <= MAX_HELD_BYTES, "{size}");
            }
            assert!(stream.pending().ends_with(b" <redacted>"));
            output.extend(stream.finish());
            assert_eq!(String::from_utf8(output).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn redacted_line_redacts_before_truncating() {
        let mask = stdio_mask(&[], &["secret-1"]);
        assert_eq!(mask.redacted_line("\u{1b}[1m a secret-1 ", 9), "[1m a <r…");
    }
}
