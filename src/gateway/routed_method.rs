/// A method whose requests are forwarded to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoutedMethod {
    /// `tools/call`
    CallTool,
    /// `prompts/get`
    GetPrompt,
    /// `resources/read`
    ReadResource,
    /// `completion/complete`
    Complete,
}

impl RoutedMethod {
    /// Returns the variant for a method name, if requests for it are forwarded to a server.
    pub(super) fn from_method(method: &str) -> Option<Self> {
        let all = [Self::CallTool, Self::GetPrompt, Self::ReadResource, Self::Complete];
        all.into_iter().find(|routed| routed.as_str() == method)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::CallTool => "tools/call",
            Self::GetPrompt => "prompts/get",
            Self::ReadResource => "resources/read",
            Self::Complete => "completion/complete",
        }
    }
}
