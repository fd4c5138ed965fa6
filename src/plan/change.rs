use crate::resource::Reason;

/// The effect of a new declaration on one object: the action that the fleet takes and that `evenkeel plan` prints. `T`
/// is the data that the fleet needs for the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclarationChange<T = ()> {
    /// Connects a server that is new or no longer suspended.
    Attach(T),
    /// Makes a new connection because parts that define it changed. Names all parts that differ.
    Replace(T, Vec<String>),
    /// Applies changed names, filters or limits to the existing connection. Names the parts that differ.
    Refilter(T, Vec<String>),
    /// Performs a requested reconcile: retries a failed server, and reads the lists of a healthy one again.
    Refresh(T),
    /// Keeps everything, because nothing relevant differs. The connection now represents the newest declaration.
    Stay(T),
    /// Removes the server.
    Detach(Reason),
}

/// The state of an object in one of two declarations that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence<P> {
    /// The object is not declared.
    Absent,
    /// The object is declared but not attached.
    Detached,
    /// The object is attached, or should be.
    Attached(P),
}

impl DeclarationChange {
    /// Returns the change from one declaration of an object to another. Calls `compare` only if both are attached.
    pub fn between<P>(before: Presence<P>, after: Presence<P>, compare: impl FnOnce(P, P) -> Self) -> Self {
        use Presence::{Absent, Attached, Detached};
        match (before, after) {
            (Attached(before), Attached(after)) => compare(before, after),
            (Absent | Detached, Attached(_)) => Self::Attach(()),
            (Attached(_), Detached) => Self::Detach(Reason::Suspended),
            (Attached(_) | Detached, Absent) => Self::Detach(Reason::Removed),
            (Absent | Detached, Detached) | (Absent, Absent) => Self::Stay(()),
        }
    }

    /// Returns the same change with the data that is needed to apply it.
    pub fn with_target<T>(self, target: T) -> DeclarationChange<T> {
        match self {
            Self::Attach(()) => DeclarationChange::Attach(target),
            Self::Replace((), parts) => DeclarationChange::Replace(target, parts),
            Self::Refilter((), parts) => DeclarationChange::Refilter(target, parts),
            Self::Refresh(()) => DeclarationChange::Refresh(target),
            Self::Stay(()) => DeclarationChange::Stay(target),
            Self::Detach(reason) => DeclarationChange::Detach(reason),
        }
    }
}

impl<T> DeclarationChange<T> {
    /// Returns the name of the action in plans and logs.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Attach(_) => "attach",
            Self::Replace(..) => "replace",
            Self::Refilter(..) => "refilter",
            Self::Refresh(_) => "refresh",
            Self::Stay(_) => "stay",
            Self::Detach(Reason::Suspended) => "suspend",
            Self::Detach(_) => "detach",
        }
    }

    /// Returns the names of the parts that differ; empty if the action has none.
    pub fn changed_parts(&self) -> &[String] {
        match self {
            Self::Replace(_, parts) | Self::Refilter(_, parts) => parts,
            Self::Attach(_) | Self::Refresh(_) | Self::Stay(_) | Self::Detach(_) => &[],
        }
    }
}
