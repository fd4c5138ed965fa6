/// The outcome of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallOutcome {
    /// The server returned a result, which may have `isError`.
    Ok,
    /// The server returned a JSON-RPC error.
    Error,
    /// The call was not sent: the server is removed or not available.
    Refused,
    /// The connection failed.
    Failed,
    /// The call exceeded its timeout.
    Timeout,
    /// The agent cancelled the call or disconnected.
    Cancelled,
}

impl CallOutcome {
    pub(super) const ALL: [Self; 6] =
        [Self::Ok, Self::Error, Self::Refused, Self::Failed, Self::Timeout, Self::Cancelled];

    /// Returns the value of the `outcome` label.
    pub(super) fn label(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}
