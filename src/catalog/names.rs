//! Names and URIs as agents see them: the bare form, if nothing in it had to change, and the form with a hash tail.

use std::borrow::Cow;

use crate::resource::{Digest, ObjectKey};
use crate::upstream::ViewName;
use crate::wire::ListKind;

/// The longest name that is made here: agents put prefixes of their own before it and cut at 64.
const MAX_GENERATED_NAME_BYTES: usize = 48;
/// The longest name that is left alone where nothing stands before it: the longest that MCP advises.
const MAX_UNPREFIXED_NAME_BYTES: usize = 128;
/// Characters of a hash tail.
const HASH_SUFFIX_BYTES: usize = 6;

/// An item of a server. Ordered by namespace, server and own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemId<'a> {
    pub(super) server: &'a ObjectKey,
    pub(super) name: &'a str,
}

/// How the names of one list of one server are made in one view.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameScheme<'a> {
    /// Tools and prompts have names. Resources and templates have URIs, which carry no prefix: answers and
    /// links hold them too.
    pub(super) list: ListKind,
    /// The namespace, where it stands before the prefix.
    pub(super) namespace: Option<&'a str>,
    /// The declared prefix; empty for none.
    pub(super) prefix: &'a str,
}

/// A name of one list in one view, as 64 bits of its digest: short, and no secret that a URI may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(u64);

impl NameId {
    /// Makes the id that was written down as this number.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Gives the id as a number, to be written down.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Makes the id of a name of this list in this view.
    pub(super) fn new(view: &ViewName, list: ListKind, name: &str) -> Self {
        let namespace = view.namespace().map_or("", |namespace| &**namespace);
        Self(digest_of_parts(&[namespace.as_bytes(), list.method().as_bytes(), name.as_bytes()]))
    }
}

impl ItemId<'_> {
    /// Digests the item's own name to 64 bits.
    pub(super) fn item_digest(&self) -> u64 {
        digest_of_parts(&[self.name.as_bytes()])
    }

    /// Makes the tail of the item's names. `number` gives another one, should two items have the same.
    pub(super) fn hash_suffix(&self, number: u32) -> HashSuffix {
        let Self { server, name } = self;
        let number = number.to_be_bytes();
        let hash =
            digest_of_parts(&[server.namespace.as_bytes(), server.name.as_bytes(), name.as_bytes(), &number]);
        let [first, two, three, four, five, last, ..] = hash.to_be_bytes();
        let of = |byte: u8, characters: &[u8]| {
            let character = characters.get(usize::from(byte) % characters.len());
            character.copied().map_or('0', char::from)
        };
        let middle = |byte| of(byte, b"0123456789abcdef");
        let (first, last) = (of(first, b"0123456789"), of(last, b"abcdef"));
        HashSuffix([first, middle(two), middle(three), middle(four), middle(five), last])
    }
}

/// A hash tail: a digit, hexadecimal digits, a letter from a to f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashSuffix([char; HASH_SUFFIX_BYTES]);

impl NameScheme<'_> {
    /// Makes the name without a tail. `None` if characters would have to be dropped, replaced or cut, since another item
    /// could have the same name then, and if it looks as if it had a tail: no bare name is equal to one with a tail.
    pub(super) fn bare_name<'a>(&self, name: &'a str) -> Option<Cow<'a, str>> {
        if self.is_uri() {
            return (!has_hash_suffix(name, &['#', '-'])).then_some(Cow::Borrowed(name));
        }
        let whole = self.prefixed_name(name);
        let legal = if self.is_unprefixed() {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            whole.len() <= MAX_UNPREFIXED_NAME_BYTES && whole.bytes().all(legal)
        } else {
            whole.len() <= MAX_GENERATED_NAME_BYTES && is_normalized(&whole)
        };
        (legal && !name.is_empty() && !has_hash_suffix(&whole, &['_'])).then_some(whole)
    }

    /// Makes the name with this tail.
    pub(super) fn suffixed_name(&self, name: &str, HashSuffix(tail): HashSuffix) -> String {
        let mut tailed = if self.is_uri() {
            // A fragment names a part of the same thing.
            format!("{name}{}", if name.contains('#') { '-' } else { '#' })
        } else {
            let mut start = normalize(&self.prefixed_name(name));
            start.truncate(MAX_GENERATED_NAME_BYTES - 1 - HASH_SUFFIX_BYTES);
            let from = usize::from(start.starts_with('_'));
            match start.get(from..).unwrap_or_default().trim_end_matches('_') {
                "" => format!("{}_", self.list.item_noun()),
                start => format!("{start}_"),
            }
        };
        tailed.extend(tail);
        tailed
    }

    fn is_uri(&self) -> bool {
        matches!(self.list, ListKind::Resources | ListKind::Templates)
    }

    fn is_unprefixed(&self) -> bool {
        self.namespace.is_none() && self.prefix.is_empty()
    }

    /// Puts the namespace and the prefix before a name. An underscore at the end of the prefix is the one that is put there.
    fn prefixed_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let separator = if self.prefix.is_empty() || self.prefix.ends_with('_') { "" } else { "_" };
        match self.namespace {
            None if self.is_unprefixed() => Cow::Borrowed(name),
            None => Cow::Owned(format!("{}{separator}{name}", self.prefix)),
            Some(namespace) => Cow::Owned(format!("{namespace}_{}{separator}{name}", self.prefix)),
        }
    }
}

/// Tells whether [`fold`] leaves a name as it is.
fn is_normalized(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    name.bytes().all(legal) && !name.contains("__")
}

/// Only `[A-Za-z0-9_-]`, everything else an underscore, and no two underscores in a row.
fn normalize(name: &str) -> String {
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

/// Tells whether a name ends in one of these marks and what could be a tail. No word and no number looks like one.
pub(super) fn has_hash_suffix(name: &str, marks: &[char]) -> bool {
    let Some((start, tail)) =
        name.len().checked_sub(HASH_SUFFIX_BYTES).and_then(|at| name.split_at_checked(at))
    else {
        return false;
    };
    let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    start.ends_with(marks)
        && tail.bytes().all(hexadecimal)
        && tail.starts_with(|first: char| first.is_ascii_digit())
        && tail.ends_with(|last: char| last.is_ascii_alphabetic())
}

fn digest_of_parts(parts: &[&[u8]]) -> u64 {
    Digest::of_parts(parts.iter().flat_map(|part| [part, b"\0".as_slice()])).first_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(namespace: Option<&'static str>, prefix: &'static str) -> NameScheme<'static> {
        NameScheme { list: ListKind::Tools, namespace, prefix }
    }

    fn suffixed_name(naming: NameScheme<'_>, tool: &str, number: u32) -> String {
        let server = ObjectKey::new("default", "server");
        naming.suffixed_name(tool, ItemId { server: &server, name: tool }.hash_suffix(number))
    }

    #[test]
    fn valid_name_is_kept_unchanged_after_its_prefix() {
        for (namespace, prefix, tool, expected) in [
            (None, "gh", "search", "gh_search"),
            (None, "gh_", "x-y", "gh_x-y"),
            (None, "GitHub_MCP", "a", "GitHub_MCP_a"),
            (Some("team-a"), "gh", "search", "team-a_gh_search"),
            (Some("team-a"), "", "b", "team-a_b"),
            (None, "", "a.b", "a.b"),
            (None, "", "a__b", "a__b"),
            (None, "", "get_facade", "get_facade"),
            (None, "", "report_202401", "report_202401"),
            (None, "", &"x".repeat(128), &"x".repeat(128)),
            (None, "p", &"x".repeat(46), &format!("p_{}", "x".repeat(46))),
        ] {
            assert_eq!(scheme(namespace, prefix).bare_name(tool).as_deref(), Some(expected));
        }
    }

    #[test]
    fn changed_or_suffix_like_name_has_no_bare_form() {
        for (namespace, prefix, tool, start) in [
            (None, "gh", "_private", "gh_private_"),
            (None, "gh", "a.b/c  d", "gh_a_b_c_d_"),
            (None, "gh", "a__b", "gh_a_b_"),
            (None, "gh", "поиск", "gh_"),
            (None, "gh", "", "gh_"),
            (None, "a.b", "t", "a_b_t_"),
            (None, "gh__", "t", "gh_t_"),
            (None, "gh", "t_1a2b3c", "gh_t_1a2b3c_"),
            (Some("team-a"), "", "a.b", "team-a_a_b_"),
            (None, "p", &"x".repeat(47), "p_xxx"),
            (None, "", "", "tool_"),
            (None, "", "поиск", "tool_"),
            (None, "", "a/b", "a_b_"),
            (None, "", "t_1a2b3c", "t_1a2b3c_"),
            (None, "", &"x".repeat(129), "xxx"),
        ] {
            let naming = scheme(namespace, prefix);
            assert_eq!(naming.bare_name(tool), None, "{tool}");
            let whole = naming.prefixed_name(tool);
            assert_eq!(is_normalized(&whole), normalize(&whole) == whole);
            for number in 0..2 {
                let name = suffixed_name(naming, tool, number);
                assert!(name.starts_with(start) && has_hash_suffix(&name, &['_']), "{name}");
                assert!(name.len() <= MAX_GENERATED_NAME_BYTES && !name.contains("__"), "{name}");
            }
            assert_ne!(suffixed_name(naming, tool, 0), suffixed_name(naming, tool, 1));
        }
    }

    #[test]
    fn uri_changes_only_by_its_hash_suffix() {
        let server = ObjectKey::new("default", "server");
        let naming = NameScheme { list: ListKind::Resources, namespace: Some("team-a"), prefix: "p" };
        for (uri, start) in [("file:///a__b c", "file:///a__b c#"), ("a:b#c", "a:b#c-")] {
            assert_eq!(naming.bare_name(uri).as_deref(), Some(uri));
            let tailed = naming.suffixed_name(uri, ItemId { server: &server, name: uri }.hash_suffix(0));
            assert_eq!((&tailed[..start.len()], tailed.len()), (start, start.len() + HASH_SUFFIX_BYTES));
            assert_eq!(naming.bare_name(&tailed), None, "it looks like one with a tail");
        }
    }

    #[test]
    fn name_id_depends_on_view_list_and_name() {
        let (everything, team) = (ViewName::All, ViewName::Namespace("team-a".into()));
        let mut ids =
            vec![NameId::new(&everything, ListKind::Tools, "a"), NameId::new(&team, ListKind::Tools, "a")];
        ids.extend(["b", "a\0"].map(|name| NameId::new(&everything, ListKind::Tools, name)));
        ids.push(NameId::new(&everything, ListKind::Prompts, "a"));
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 5);
    }
}
