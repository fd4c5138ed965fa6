use crate::resource::ObjectKey;
use crate::upstream::ViewName;
use crate::wire::ListKind;

/// An item that is listed with a hash suffix because another server holds its bare name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameConflict {
    /// The view in which the item is listed.
    pub view: ViewName,
    /// The list that the item is in.
    pub list: ListKind,
    /// The server's own name for the item.
    pub name: String,
    /// The name that the item would have without the conflict.
    pub bare_name: String,
    /// The name under which the item is listed.
    pub assigned_name: String,
    /// The server that holds the bare name.
    pub holder: ObjectKey,
    /// The holder's claim to the bare name.
    pub holder_state: NameHolderState,
}

/// A server's claim to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameHolderState {
    /// The server lists an item under the name, or is declared and listed one when it was last attached.
    Current,
    /// The server is no longer declared: the name stays reserved for one hour.
    Former,
    /// The server was created earlier, has the same prefix, and its first attach is still pending.
    Prospective,
}
