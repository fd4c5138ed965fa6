//! Decides whether the namespace in a path exists.

use std::sync::Arc;

use tokio::sync::watch;

use crate::catalog::Generation;
use crate::resource::{Desired, ObjectKey};
use crate::text::sanitize;
use crate::upstream::ViewName;

/// The maximum number of namespaces that an error names.
const MAX_NAMED_NAMESPACES: usize = 20;
/// The maximum length of a namespace in an error. A valid name has at most 63 characters.
const MAX_NAME_CHARS: usize = 63;

/// The namespaces that agents may use in the path of a view.
///
/// A namespace is known if anything is declared in it or agents got items from it recently, and the namespaces of the
/// source itself always are. Until the source has been read once, each is.
#[derive(Clone, Debug)]
pub struct KnownNamespaces {
    of_source: Arc<[Arc<str>]>,
    desired: watch::Receiver<Arc<Desired>>,
}

impl KnownNamespaces {
    /// Creates the set from the namespaces of the source, which may be empty, and the declared objects.
    pub fn new(of_source: Arc<[Arc<str>]>, desired: watch::Receiver<Arc<Desired>>) -> Self {
        Self { of_source, desired }
    }

    /// Returns the error text for the namespace of a view that is not known; `None` for any other view.
    pub(super) fn unknown_text(&self, generation: &Generation, view: &ViewName) -> Option<String> {
        // The catalog first, which takes no lock: most namespaces have items.
        let namespace = view.namespace().filter(|namespace| !generation.has_namespace(namespace))?;
        // A short copy, so that the lock is not held.
        let desired = self.desired.borrow().clone();
        unknown_namespace_text(namespace, &self.of_source, &desired)
    }
}

/// Returns the error text for a namespace that is neither one of the source nor that of a declared object.
fn unknown_namespace_text(namespace: &str, of_source: &[Arc<str>], desired: &Desired) -> Option<String> {
    let is_complete = desired.source.synced && desired.source.skills_synced;
    if !is_complete || of_source.iter().any(|known| **known == *namespace) || declares(desired, namespace) {
        return None;
    }
    let keys = desired.servers.keys().chain(desired.skills.keys());
    let mut known: Vec<&Arc<str>> = of_source.iter().chain(keys.map(|key| &key.namespace)).collect();
    known.sort_unstable();
    known.dedup();
    let more = known.len().saturating_sub(MAX_NAMED_NAMESPACES);
    let named: Vec<&str> = known.iter().take(MAX_NAMED_NAMESPACES).map(|name| &***name).collect();
    let list = match (named.join(", "), more) {
        (names, _) if names.is_empty() => "There is no namespace yet".to_owned(),
        (names, 0) => format!("Namespaces: {names}"),
        (names, more) => format!("Namespaces: {names}, and {more} more"),
    };
    Some(format!(
        "Nothing is declared in the namespace {:?}. {list}. Connect to one of them, or to /mcp for all; a namespace \
         exists as soon as a server or a skill is declared in it.",
        sanitize(namespace, MAX_NAME_CHARS)
    ))
}

fn declares(desired: &Desired, namespace: &str) -> bool {
    let first = ObjectKey::new(namespace, "");
    let server = desired.servers.range(first.clone()..).next().map(|(key, _)| key);
    let skill = desired.skills.range(first..).next().map(|(key, _)| key);
    server.into_iter().chain(skill).any(|key| *key.namespace == *namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::SourceState;
    use crate::resource::testing::declared_server;

    fn desired(namespaces: impl IntoIterator<Item = String>, skills_synced: bool) -> Desired {
        let server = Arc::new(declared_server("s", 1));
        let keys = namespaces.into_iter().map(|namespace| ObjectKey::new(namespace, "s"));
        Desired {
            servers: keys.map(|key| (key, server.clone())).collect(),
            source: Arc::new(SourceState { synced: true, skills_synced, ..SourceState::default() }),
            ..Desired::default()
        }
    }

    #[test]
    fn namespace_is_known_if_it_is_declared_or_of_the_source_or_nothing_has_been_read() {
        let of_source = [Arc::from("default")];
        let declared = desired(["team-a", "team-b"].map(String::from), true);
        let unread = desired([], false);
        for (namespace, desired, is_known) in [
            ("team-a", &declared, true),
            ("team-b", &declared, true),
            ("default", &declared, true),
            ("team", &declared, false),
            ("team-a0", &declared, false),
            ("zzz", &declared, false),
            ("", &declared, false),
            ("zzz", &unread, true),
        ] {
            let text = unknown_namespace_text(namespace, &of_source, desired);
            assert_eq!(text.is_none(), is_known, "{namespace}: {text:?}");
        }
    }

    #[test]
    fn text_names_the_known_namespaces() {
        let many = desired((10..40).map(|number| format!("n{number}")), true);
        for (namespace, of_source, desired, expected) in [
            ("typo", &[][..], &desired(["b", "a"].map(String::from), true), "\"typo\". Namespaces: a, b."),
            ("x", &[Arc::from("b")], &desired(["a".to_owned()], true), "Namespaces: a, b."),
            ("x", &[], &desired([], true), "There is no namespace yet."),
            ("x", &[], &many, "n28, n29, and 10 more."),
            (&"x".repeat(10_000), &[], &desired([], true), "x…\"."),
        ] {
            let text = unknown_namespace_text(namespace, of_source, desired).unwrap();
            assert!(text.contains(expected) && text.len() < 500, "{text}");
        }
    }
}
