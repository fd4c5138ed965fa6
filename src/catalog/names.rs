//! Names and URIs as listed to agents: the bare form, if no character had to change, and the hash-suffixed form.

use std::borrow::Cow;

use crate::resource::{Digest, ObjectKey};
use crate::upstream::ViewName;
use crate::wire::ListKind;

/// The longest generated name: agents prepend prefixes of their own and cut names at 64 characters.
const MAX_GENERATED_NAME_BYTES: usize = 48;
/// The longest name that stays unchanged where it has no prefix: the longest that MCP advises.
const MAX_UNPREFIXED_NAME_BYTES: usize = 128;
/// The length of a hash suffix.
const HASH_SUFFIX_BYTES: usize = 6;

/// An item of a server. Ordered by namespace, server and the server's own name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemId<'a> {
    pub(super) server: &'a ObjectKey,
    pub(super) name: &'a str,
}

/// The rules that form the names of one list of one server in one view.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameScheme<'a> {
    /// The list. Tools and prompts have names. Resources and templates have URIs, which carry no prefix, because
    /// responses and links contain them too.
    pub(super) list: ListKind,
    /// The namespace, where names carry it before the prefix.
    pub(super) namespace: Option<&'a str>,
    /// The declared prefix; empty for none.
    pub(super) prefix: &'a str,
}

/// A name of one list in one view, as 64 bits of its digest: short, and free of secrets that a URI may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameId(u64);

impl NameId {
    /// Returns the id that was stored as this number.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns the id as a number for storage.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Returns the id of a name of this list in this view.
    pub(super) fn new(view: &ViewName, list: ListKind, name: &str) -> Self {
        let namespace = view.namespace().map_or("", |namespace| &**namespace);
        Self(digest_of_parts(&[namespace.as_bytes(), list.method().as_bytes(), name.as_bytes()]))
    }
}

impl ItemId<'_> {
    /// Returns 64 bits of the digest of the item's own name.
    pub(super) fn item_digest(&self) -> u64 {
        digest_of_parts(&[self.name.as_bytes()])
    }

    /// Returns the hash suffix of the item's names. A different `number` gives a different suffix, in case two items
    /// have the same.
    pub(super) fn hash_suffix(&self, number: u32) -> HashSuffix {
        let Self { server, name } = self;
        let number = number.to_be_bytes();
        let hash =
            digest_of_parts(&[server.namespace.as_bytes(), server.name.as_bytes(), name.as_bytes(), &number]);
        let [first, two, three, four, five, last, ..] = hash.to_be_bytes();
        let select = |byte: u8, characters: &[u8]| {
            let character = characters.get(usize::from(byte) % characters.len());
            character.copied().map_or('0', char::from)
        };
        let middle = |byte| select(byte, b"0123456789abcdef");
        let (first, last) = (select(first, b"0123456789"), select(last, b"abcdef"));
        HashSuffix([first, middle(two), middle(three), middle(four), middle(five), last])
    }
}

/// A hash suffix: a digit, hexadecimal digits, a letter from a to f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashSuffix([char; HASH_SUFFIX_BYTES]);

impl NameScheme<'_> {
    /// Returns the name without a hash suffix.
    ///
    /// `None` if characters would have to be dropped, replaced or cut, since another item could then have the same
    /// name. Also `None` if the name looks hash-suffixed: no bare name is equal to a suffixed one.
    pub(super) fn bare_name<'a>(&self, name: &'a str) -> Option<Cow<'a, str>> {
        if self.is_uri() {
            return (!has_hash_suffix(name, &['#', '-'])).then_some(Cow::Borrowed(name));
        }
        let full_name = self.prefixed_name(name);
        let legal = if self.is_unprefixed() {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            full_name.len() <= MAX_UNPREFIXED_NAME_BYTES && full_name.bytes().all(legal)
        } else {
            full_name.len() <= MAX_GENERATED_NAME_BYTES && is_normalized(&full_name)
        };
        (legal && !name.is_empty() && !has_hash_suffix(&full_name, &['_'])).then_some(full_name)
    }

    /// Returns the name with this hash suffix.
    pub(super) fn suffixed_name(&self, name: &str, HashSuffix(suffix): HashSuffix) -> String {
        let mut suffixed = if self.is_uri() {
            // A fragment identifies a part of the same resource.
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
        suffixed.extend(suffix);
        suffixed
    }

    /// Returns true if some item can have this name, bare or hash-suffixed. May return true for a name that none can
    /// have, but never false for one that an item can have.
    pub(super) fn can_form(&self, name: &str) -> bool {
        if self.is_uri() || self.is_unprefixed() || name.starts_with(&*self.prefixed_name("")) {
            return true;
        }
        // A hash-suffixed name begins with the prefix in its normalized form, which may be cut.
        let prefix = normalize(&self.prefixed_name(""));
        let prefix = prefix.strip_prefix('_').unwrap_or(&prefix).trim_end_matches('_');
        has_hash_suffix(name, &['_'])
            && name
                .get(..name.len().saturating_sub(1 + HASH_SUFFIX_BYTES))
                .is_some_and(|start| start.starts_with(prefix) || prefix.starts_with(start))
    }

    /// Returns true if this item can have this name, bare or hash-suffixed; of URIs, if the name begins with `item`.
    /// Errs like [`NameScheme::can_form`].
    pub(super) fn can_form_of(&self, item: &str, name: &str) -> bool {
        if self.is_uri() {
            return name.starts_with(item);
        }
        self.bare_name(item).as_deref() == Some(name) || has_hash_suffix(name, &['_'])
    }

    fn is_uri(&self) -> bool {
        matches!(self.list, ListKind::Resources | ListKind::Templates)
    }

    fn is_unprefixed(&self) -> bool {
        self.namespace.is_none() && self.prefix.is_empty()
    }

    /// Prepends the namespace and the prefix to a name. An underscore at the end of the prefix serves as the separator.
    fn prefixed_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let separator = if self.prefix.is_empty() || self.prefix.ends_with('_') { "" } else { "_" };
        match self.namespace {
            None if self.is_unprefixed() => Cow::Borrowed(name),
            None => Cow::Owned(format!("{}{separator}{name}", self.prefix)),
            Some(namespace) => Cow::Owned(format!("{namespace}_{}{separator}{name}", self.prefix)),
        }
    }
}

/// Returns true if [`normalize`] leaves a name unchanged.
fn is_normalized(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    name.bytes().all(legal) && !name.contains("__")
}

/// Replaces every character outside `[A-Za-z0-9_-]` with an underscore, and collapses runs of underscores into one.
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

/// Returns true if a name ends in one of these separators and something that could be a hash suffix. No word and no
/// number looks like a hash suffix.
pub(super) fn has_hash_suffix(name: &str, separators: &[char]) -> bool {
    let Some((start, suffix)) =
        name.len().checked_sub(HASH_SUFFIX_BYTES).and_then(|at| name.split_at_checked(at))
    else {
        return false;
    };
    let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    start.ends_with(separators)
        && suffix.bytes().all(hexadecimal)
        && suffix.starts_with(|first: char| first.is_ascii_digit())
        && suffix.ends_with(|last: char| last.is_ascii_alphabetic())
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

    fn suffixed_name(scheme: NameScheme<'_>, tool: &str, number: u32) -> String {
        let server = ObjectKey::new("default", "server");
        scheme.suffixed_name(tool, ItemId { server: &server, name: tool }.hash_suffix(number))
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
            assert!(scheme(namespace, prefix).can_form(expected), "{expected}");
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
            let scheme = scheme(namespace, prefix);
            assert_eq!(scheme.bare_name(tool), None, "{tool}");
            let full_name = scheme.prefixed_name(tool);
            assert_eq!(is_normalized(&full_name), normalize(&full_name) == full_name);
            for number in 0..2 {
                let name = suffixed_name(scheme, tool, number);
                assert!(name.starts_with(start) && has_hash_suffix(&name, &['_']), "{name}");
                assert!(name.len() <= MAX_GENERATED_NAME_BYTES && !name.contains("__"), "{name}");
                assert!(scheme.can_form(&name), "{name}");
            }
            assert_ne!(suffixed_name(scheme, tool, 0), suffixed_name(scheme, tool, 1));
        }
    }

    #[test]
    fn name_without_the_prefix_cannot_be_formed() {
        for (namespace, prefix, name, expected) in [
            (None, "gh", "gh_", true),
            (None, "gh", "gh", false),
            (None, "gh", "ghx_a", false),
            (None, "gh", "gx_a_1a2b3c", false),
            (Some("team-a"), "gh", "gh_a", false),
            (Some("team-a"), "", "a", false),
            (None, "", "a", true),
            // No character of the prefix is left in hash-suffixed names.
            (None, "поиск", "a_1a2b3c", true),
            (None, "поиск", "a", false),
        ] {
            assert_eq!(scheme(namespace, prefix).can_form(name), expected, "{namespace:?} {prefix} {name}");
        }
        let cut = scheme(None, "a-prefix-that-is-longer-than-the-longest-generated-name");
        assert!(cut.can_form(&suffixed_name(cut, "t", 0)));
    }

    #[test]
    fn uri_changes_only_by_its_hash_suffix() {
        let server = ObjectKey::new("default", "server");
        let scheme = NameScheme { list: ListKind::Resources, namespace: Some("team-a"), prefix: "p" };
        for (uri, start) in [("file:///a__b c", "file:///a__b c#"), ("a:b#c", "a:b#c-")] {
            assert_eq!(scheme.bare_name(uri).as_deref(), Some(uri));
            let suffixed = scheme.suffixed_name(uri, ItemId { server: &server, name: uri }.hash_suffix(0));
            assert_eq!((&suffixed[..start.len()], suffixed.len()), (start, start.len() + HASH_SUFFIX_BYTES));
            assert_eq!(scheme.bare_name(&suffixed), None, "it looks hash-suffixed");
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
