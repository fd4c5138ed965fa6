/// The requests that one server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoutedMethod {
    /// `tools/call`
    Call,
    /// `prompts/get`
    Prompt,
    /// `resources/read`
    Read,
    /// `completion/complete`
    Complete,
}

impl RoutedMethod {
    /// The request with this method, if one server answers it.
    pub(super) fn of(method: &str) -> Option<Self> {
        let all = [Self::Call, Self::Prompt, Self::Read, Self::Complete];
        all.into_iter().find(|ask| ask.method() == method)
    }

    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Call => "tools/call",
            Self::Prompt => "prompts/get",
            Self::Read => "resources/read",
            Self::Complete => "completion/complete",
        }
    }
}
