use std::sync::Arc;

/// The name of a view, from the endpoint path that an agent connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ViewName {
    /// `/mcp`: all namespaces that this process reconciles.
    All,
    /// `/ns/NAMESPACE/mcp`: one namespace.
    Namespace(Arc<str>),
}

impl ViewName {
    /// Returns the only namespace that the view shows; `None` for all namespaces.
    pub fn namespace(&self) -> Option<&Arc<str>> {
        match self {
            Self::All => None,
            Self::Namespace(namespace) => Some(namespace),
        }
    }

    /// Returns true if the view shows objects of this namespace.
    pub fn shows(&self, namespace: &str) -> bool {
        self.namespace().is_none_or(|shown| **shown == *namespace)
    }
}
