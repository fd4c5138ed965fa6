//! Names that people gave to servers elsewhere, as names that Kubernetes and agents take. Pure.

use crate::resource::{Digest, is_object_name};

/// `metadata.name` for any text: the text itself if it is one, else what is left of it.
pub fn slug(name: &str) -> String {
    if is_object_name(name) {
        return name.to_owned();
    }
    let lower = name.to_ascii_lowercase();
    let slug = join_allowed_chars(&lower, '-', 63, |char| char.is_ascii_lowercase() || char.is_ascii_digit());
    if slug.is_empty() { format!("server-{}", Digest::of(name.as_bytes()).hex_prefix(8)) } else { slug }
}

/// `expose.prefix` that keeps such a text as far as it may; `None` if the name itself will do.
pub fn prefix(name: &str) -> Option<String> {
    if is_object_name(name) {
        return None;
    }
    let prefix =
        join_allowed_chars(name, '_', 32, |char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'));
    Some(prefix).filter(|prefix| prefix.contains(|char: char| char.is_ascii_alphanumeric()))
}

/// The characters that fit, with one `joint` for the others between them.
fn join_allowed_chars(text: &str, joint: char, max: usize, fits: impl Fn(char) -> bool) -> String {
    let parts: Vec<_> = text.split(|char| !fits(char)).filter(|part| !part.is_empty()).collect();
    let all: String = parts.join(&joint.to_string()).chars().take(max).collect();
    all.trim_matches(['-', joint]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_a_valid_object_name_and_prefix() {
        let long = "Ab".repeat(50);
        for (name, slugged, prefixed) in [
            ("github", "github", None),
            ("a.b-c", "a.b-c", None),
            ("GitHub", "github", Some("GitHub")),
            ("My  server (beta)!", "my-server-beta", Some("My_server_beta")),
            ("snake_case", "snake-case", Some("snake_case")),
            ("@scope/pkg", "scope-pkg", Some("scope_pkg")),
            ("-x-", "x", Some("x")),
            ("bad\u{1b}[2J\nname", "bad-2j-name", Some("bad_2J_name")),
            ("日本", "server-bb4f5a21", None),
            ("", "server-e3b0c442", None),
            (&long, &"ab".repeat(50)[..63], Some(&long[..32])),
        ] {
            let found = slug(name);
            assert!(is_object_name(&found), "{found}");
            if !found.starts_with("server-") {
                assert_eq!(found, slugged, "{name}");
            }
            assert_eq!(prefix(name).as_deref(), prefixed, "{name}");
        }
        assert_ne!(slug("日本"), slug("中国"));
    }
}
