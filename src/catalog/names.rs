//! Names as agents see them: unique, short, plain, and the same whatever order servers come in.

use std::borrow::Cow;

use crate::resource::{Digest, ObjectKey};

/// The longest name that is made here: agents put prefixes of their own before it and cut at 64.
const LONGEST: usize = 48;
/// Hexadecimal digits of a hash tail.
const TAIL: usize = 6;

/// What a name is made from. Ordered by namespace, server and tool: the order in which equal names go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity<'a> {
    pub(super) server: &'a ObjectKey,
    pub(super) tool: &'a str,
}

/// How the names of one server are made in one view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming<'a> {
    /// The namespace, where it stands before the prefix.
    pub(super) namespace: Option<&'a str>,
    /// The declared prefix; empty for none.
    pub(super) prefix: &'a str,
}

impl Naming<'_> {
    /// The names that a tool asks for, by wish: the plain one is number 0, the others carry a hash tail.
    ///
    /// The list has no end, so that no server can take all the names of another's tool.
    pub(super) fn wish(&self, identity: Identity<'_>, number: u32) -> String {
        let whole = self.whole(identity.tool);
        let plain = self.namespace.is_none() && self.prefix.is_empty();
        if number == 0 && (plain || whole.len() <= LONGEST) {
            return whole.into_owned();
        }
        tailed(&fold(&whole), identity, number)
    }

    fn whole<'a>(&self, tool: &'a str) -> Cow<'a, str> {
        match (self.namespace, self.prefix) {
            (None, "") => Cow::Borrowed(tool),
            (Some(namespace), "") => Cow::Owned(fold(&format!("{namespace}_{tool}"))),
            (None, prefix) => Cow::Owned(fold(&format!("{prefix}_{tool}"))),
            (Some(namespace), prefix) => Cow::Owned(fold(&format!("{namespace}_{prefix}_{tool}"))),
        }
    }
}

/// Only `[A-Za-z0-9_-]`, everything else an underscore, and no two underscores in a row.
fn fold(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    for char in name.chars() {
        if char.is_ascii_alphanumeric() || char == '-' {
            folded.push(char);
        } else if !folded.ends_with('_') {
            folded.push('_');
        }
    }
    folded
}

/// The start of a folded name and a tail that only this tool has.
fn tailed(folded: &str, identity: Identity<'_>, number: u32) -> String {
    let Identity { server, tool } = identity;
    let whole = format!("{}\0{}\0{tool}\0{number}", server.namespace, server.name);
    let start: String = folded.chars().take(LONGEST - 1 - TAIL).collect();
    format!("{}_{}", start.trim_end_matches('_'), Digest::of(whole.as_bytes()).short(TAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: Option<&str>, prefix: &str, tool: &str, number: u32) -> String {
        let server = ObjectKey::new("default", "server");
        let identity = Identity { server: &server, tool };
        Naming { namespace, prefix }.wish(identity, number)
    }

    #[test]
    fn names_are_prefixed_folded_and_short() {
        for (namespace, prefix, tool, expected) in [
            (None, "gh", "search", "gh_search"),
            (None, "gh", "_private", "gh_private"),
            (None, "gh", "a.b/c  d", "gh_a_b_c_d"),
            (None, "gh", "a__b", "gh_a_b"),
            (None, "gh_", "x-y", "gh_x-y"),
            (None, "gh", "äöü", "gh_"),
            (Some("team-a"), "gh", "search", "team-a_gh_search"),
            (Some("team-a"), "", "a.b", "team-a_a_b"),
            (None, "", "a.b", "a.b"),
            (None, "", "", ""),
            (
                None,
                "",
                "a__very.long/name–that is left as it is, whatever the length",
                "a__very.long/name–that is left as it is, whatever the length",
            ),
            (None, "p", &"x".repeat(46), &format!("p_{}", "x".repeat(46))),
        ] {
            assert_eq!(name(namespace, prefix, tool, 0), expected);
        }
    }

    #[test]
    fn what_is_too_long_or_taken_gets_a_tail() {
        for (prefix, tool, number) in [
            ("p", "x".repeat(47), 0),
            ("p", "x".repeat(200), 1),
            ("", "a.b".to_owned(), 1),
            ("", "ü".repeat(100), 1),
            ("p", format!("{}_{}", "x".repeat(38), "y".repeat(20)), 0),
        ] {
            let name = name(None, prefix, &tool, number);
            assert!(name.len() <= LONGEST && !name.contains("__"), "{name}");
            let (_, tail) = name.rsplit_once('_').unwrap();
            assert!(tail.len() == TAIL && tail.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        }
        assert_ne!(name(None, "p", "x", 1), name(None, "p", "x", 2));
    }
}
