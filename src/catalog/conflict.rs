use crate::resource::ObjectKey;
use crate::upstream::ViewName;
use crate::wire::ListKind;

/// An item that carries a hash tail because another has the name it would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameConflict {
    /// The view in which it is listed.
    pub view: ViewName,
    /// The list that it is in.
    pub list: ListKind,
    /// The server's own name of it.
    pub name: String,
    /// The name it would have.
    pub bare_name: String,
    /// The name it has.
    pub assigned_name: String,
    /// The server that the wanted name is of.
    pub holder: ObjectKey,
    /// How.
    pub holder_state: NameHolderState,
}

/// How a name is a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameHolderState {
    /// It lists an item by it, or is declared and did so when it was attached last.
    Current,
    /// It is declared no more: the name is kept for an hour.
    Former,
    /// It was created first, has the same prefix, and is attached for the first time just now.
    Prospective,
}
