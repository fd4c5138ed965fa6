//! Names and URIs as agents see them: unique, and the same whatever order servers come in.

use std::borrow::Cow;

use crate::resource::{Digest, ObjectKey};
use crate::wire::List;

/// The longest name that is made here: agents put prefixes of their own before it and cut at 64.
const LONGEST: usize = 48;
/// Hexadecimal digits of a hash tail.
const TAIL: usize = 6;

/// What a name is made from. Ordered by namespace, server and own name: the order in which equal names go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity<'a> {
    pub(super) server: &'a ObjectKey,
    pub(super) name: &'a str,
}

/// How the names of one list of one server are made in one view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming<'a> {
    /// Tools and prompts have names. Resources and templates have URIs, which carry no prefix: answers and
    /// links hold them too.
    pub(super) list: List,
    /// The namespace, where it stands before the prefix.
    pub(super) namespace: Option<&'a str>,
    /// The declared prefix; empty for none.
    pub(super) prefix: &'a str,
}

impl Naming<'_> {
    /// The names that an item asks for, by wish: the plain one is number 0, the others carry a hash tail.
    ///
    /// The list has no end, so that no server can take all the names of another's item.
    pub(super) fn wish(&self, identity: Identity<'_>, number: u32) -> String {
        if matches!(self.list, List::Resources | List::Templates) {
            return match number {
                0 => identity.name.to_owned(),
                _ => format!("{}{}", identity.name, uri_tail(identity, number)),
            };
        }
        let whole = self.whole(identity.name);
        let plain = self.namespace.is_none() && self.prefix.is_empty();
        if number == 0 && (plain || whole.len() <= LONGEST) {
            return whole.into_owned();
        }
        tailed(&fold(&whole), identity, number)
    }

    fn whole<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match (self.namespace, self.prefix) {
            (None, "") => Cow::Borrowed(name),
            (Some(namespace), "") => Cow::Owned(fold(&format!("{namespace}_{name}"))),
            (None, prefix) => Cow::Owned(fold(&format!("{prefix}_{name}"))),
            (Some(namespace), prefix) => Cow::Owned(fold(&format!("{namespace}_{prefix}_{name}"))),
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

/// The start of a folded name and a tail that only this item has.
fn tailed(folded: &str, identity: Identity<'_>, number: u32) -> String {
    let start: String = folded.chars().take(LONGEST - 1 - TAIL).collect();
    format!("{}_{}", start.trim_end_matches('_'), tail(identity, number))
}

/// What stands behind a URI that another server has too: a fragment, which names a part of the same thing.
pub(super) fn uri_tail(identity: Identity<'_>, number: u32) -> String {
    let mark = if identity.name.contains('#') { '-' } else { '#' };
    format!("{mark}{}", tail(identity, number))
}

fn tail(identity: Identity<'_>, number: u32) -> String {
    let Identity { server, name } = identity;
    let whole = format!("{}\0{}\0{name}\0{number}", server.namespace, server.name);
    Digest::of(whole.as_bytes()).short(TAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: Option<&str>, prefix: &str, tool: &str, number: u32) -> String {
        let server = ObjectKey::new("default", "server");
        let identity = Identity { server: &server, name: tool };
        Naming { list: List::Tools, namespace, prefix }.wish(identity, number)
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

    #[test]
    fn a_uri_stays_as_it_is_but_for_a_tail() {
        let server = ObjectKey::new("default", "server");
        for (uri, start) in [("file:///a__b c", "file:///a__b c#"), ("a:b#c", "a:b#c-")] {
            let identity = Identity { server: &server, name: uri };
            let naming = Naming { list: List::Resources, namespace: Some("team-a"), prefix: "p" };
            assert_eq!(naming.wish(identity, 0), uri);
            let tailed = naming.wish(identity, 1);
            assert_eq!((&tailed[..start.len()], tailed.len()), (start, start.len() + TAIL));
        }
    }
}
