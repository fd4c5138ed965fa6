//! Converts names that people gave to servers and skills for other programs into names that are valid for Kubernetes and agents.
//! Pure.

use crate::resource::{Digest, is_object_name};

/// Returns a valid `metadata.name` for any text: the text itself if it is valid, otherwise its valid characters. Without
/// any, the name begins with `kind`.
pub fn slug(name: &str, kind: &str) -> String {
    if is_object_name(name) {
        return name.to_owned();
    }
    let lower = name.to_ascii_lowercase();
    let slug = join_allowed_chars(&lower, '-', 63, |char| char.is_ascii_lowercase() || char.is_ascii_digit());
    if slug.is_empty() { format!("{kind}-{}", Digest::of(name.as_bytes()).hex_prefix(8)) } else { slug }
}

/// Returns an `expose.prefix` that preserves the text as far as possible; `None` if the name itself can be the prefix.
pub fn expose_prefix(name: &str) -> Option<String> {
    if is_object_name(name) {
        return None;
    }
    let prefix =
        join_allowed_chars(name, '_', 32, |char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'));
    Some(prefix).filter(|prefix| prefix.contains(|char: char| char.is_ascii_alphanumeric()))
}

/// Joins the runs of allowed characters of `text`, with one `joint` in place of the characters between them.
fn join_allowed_chars(text: &str, joint: char, max: usize, is_allowed: impl Fn(char) -> bool) -> String {
    let parts: Vec<_> = text.split(|char| !is_allowed(char)).filter(|part| !part.is_empty()).collect();
    let joined: String = parts.join(&joint.to_string()).chars().take(max).collect();
    joined.trim_matches(['-', joint]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_a_valid_object_name_and_prefix() {
        let long = "Ab".repeat(50);
        for (name, expected_slug, expected_prefix) in [
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
            let object_name = slug(name, "server");
            assert!(is_object_name(&object_name), "{object_name}");
            if !object_name.starts_with("server-") {
                assert_eq!(object_name, expected_slug, "{name}");
            }
            assert_eq!(expose_prefix(name).as_deref(), expected_prefix, "{name}");
        }
        assert_ne!(slug("日本", "skill"), slug("中国", "skill"));
    }
}
