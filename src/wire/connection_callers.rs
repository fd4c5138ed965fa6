use super::client_capabilities::ClientCapabilities;

/// The callers that use a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionCallers {
    /// All callers. A request of the server is for the caller of the call to which it belongs.
    #[default]
    All,
    /// One caller with these capabilities, for which every request of the server is.
    One(ClientCapabilities),
}

impl ConnectionCallers {
    /// Returns the capabilities that the handshake declares.
    pub(super) fn declared_capabilities(self) -> ClientCapabilities {
        match self {
            Self::All => ClientCapabilities::OF_SHARED_CONNECTIONS,
            Self::One(capabilities) => capabilities,
        }
    }
}
