use crate::resource::Reason;

/// What becomes of one object when its declaration is replaced by another: what the fleet does, and what a plan tells.
/// `T` is what the fleet needs to do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclarationChange<T = ()> {
    /// Connect a server that is not there yet, or is no longer suspended.
    Attach(T),
    /// The connection itself changed: make a new one. All parts that differ are named.
    Replace(T, Vec<String>),
    /// Names, filters or limits changed: apply these parts to what is there.
    Refilter(T, Vec<String>),
    /// A look was asked for: retry what failed, read the lists of what is healthy.
    Refresh(T),
    /// Nothing that matters differs: what is there stays, and stands for the newest declaration.
    Stay(T),
    /// Take it away.
    Detach(Reason),
}

/// How an object stands in one of two declarations that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence<P> {
    /// It is not declared.
    Absent,
    /// It is declared, and not attached.
    Detached,
    /// It is attached, or is to be.
    Attached(P),
}

impl DeclarationChange {
    /// Gives the step from one declaration of an object to another. `compare` is asked only where both are attached.
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

    /// Gives the same step with what is needed to do it.
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
    /// Gives the word for it in plans and logs.
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

    /// Gives the names of the parts that differ, where that is why.
    pub fn changed_parts(&self) -> &[String] {
        match self {
            Self::Replace(_, parts) | Self::Refilter(_, parts) => parts,
            Self::Attach(_) | Self::Refresh(_) | Self::Stay(_) | Self::Detach(_) => &[],
        }
    }
}
