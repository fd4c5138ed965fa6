/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallOutcome {
    /// With the server's result, whatever it says.
    Ok,
    /// With the server's JSON-RPC error.
    Error,
    /// It did not begin: the server is removed or not available.
    Refused,
    /// The connection failed.
    Failed,
    /// The server took too long.
    Timeout,
    /// The agent cancelled it or went away.
    Cancelled,
}

impl CallOutcome {
    pub(super) const ALL: [Self; 6] =
        [Self::Ok, Self::Error, Self::Refused, Self::Failed, Self::Timeout, Self::Cancelled];

    /// As it stands in labels.
    pub(super) fn label(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}
