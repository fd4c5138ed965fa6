use std::sync::Arc;

/// Which view: the path that an agent connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ViewName {
    /// `/mcp`: all that this process reconciles.
    All,
    /// `/ns/NAMESPACE/mcp`: one namespace.
    Namespace(Arc<str>),
}

impl ViewName {
    /// The one namespace that is seen here; `None` for all.
    pub fn namespace(&self) -> Option<&Arc<str>> {
        match self {
            Self::All => None,
            Self::Namespace(namespace) => Some(namespace),
        }
    }

    /// True if objects of this namespace are seen here.
    pub fn shows(&self, namespace: &str) -> bool {
        self.namespace().is_none_or(|own| **own == *namespace)
    }
}
