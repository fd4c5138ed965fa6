use std::fmt;
use std::sync::Arc;

/// The key of one object of a kind: `namespace/name`. Cheap to clone; ordered by namespace, then by name.
///
/// ```
/// use evenkeel::resource::ObjectKey;
///
/// assert_eq!(ObjectKey::new("team-a", "search").to_string(), "team-a/search");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace; `default` for objects in files that name none.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Creates a key from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Returns true if Kubernetes accepts a text as the name of an object: a DNS subdomain of at most 253 bytes.
pub fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Returns true if Kubernetes accepts a text as the name of a namespace: a DNS label of at most 63 bytes.
pub fn is_namespace_name(text: &str) -> bool {
    text.len() <= 63 && is_dns_label(text)
}

fn is_dns_label(text: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| is_alphanumeric(byte) || byte == b'-')
        && text.bytes().next().is_some_and(is_alphanumeric)
        && text.bytes().next_back().is_some_and(is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_kubernetes_does() {
        let [longest_label, longest_name] = [63, 253].map(|length| "a".repeat(length));
        for (text, name, namespace) in [
            ("a", true, true),
            ("team-a", true, true),
            ("0", true, true),
            (&longest_label, true, true),
            (&longest_name, true, false),
            ("a.b-c", true, false),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a..b", false, false),
            ("A", false, false),
            ("a_b", false, false),
            ("a/b", false, false),
            ("a,b", false, false),
            (&format!("{longest_name}a"), false, false),
        ] {
            assert_eq!((is_object_name(text), is_namespace_name(text)), (name, namespace), "{text}");
        }
    }
}
