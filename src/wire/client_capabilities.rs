//! The client capabilities by which an agent lets servers ask it for input.

use super::json_edit::{Members, parse_members};

/// The capabilities that let a server ask an agent for input: elicitation, sampling and roots.
///
/// Other capabilities (`experimental`, `extensions`, `tasks`) are not represented: evenkeel passes none of them on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCapabilities(u8);

impl ClientCapabilities {
    /// No capability.
    pub const NONE: Self = Self(0);
    /// Elicitation in form mode.
    pub const FORM_ELICITATION: Self = Self(1);
    /// Elicitation in URL mode.
    pub const URL_ELICITATION: Self = Self(1 << 1);
    /// Sampling.
    pub const SAMPLING: Self = Self(1 << 2);
    /// Sampling with tools. Implies [`Self::SAMPLING`].
    pub const SAMPLING_TOOLS: Self = Self(1 << 2 | 1 << 3);
    /// Sampling with the context of servers. Implies [`Self::SAMPLING`].
    pub const SAMPLING_CONTEXT: Self = Self(1 << 2 | 1 << 4);
    /// Roots.
    pub const ROOTS: Self = Self(1 << 5);
    /// Roots, whose changes the agent notifies. Implies [`Self::ROOTS`].
    pub const ROOTS_LIST_CHANGED: Self = Self(1 << 5 | 1 << 6);

    /// The capabilities that evenkeel declares to legacy servers, whose connections are shared by all agents: what at
    /// least one agent may support. A request that an agent does not support is declined.
    pub const OF_SHARED_CONNECTIONS: Self =
        Self(Self::FORM_ELICITATION.0 | Self::URL_ELICITATION.0 | Self::SAMPLING.0);

    /// Reads the JSON of an agent's capabilities. Anything else than an object has none.
    pub fn from_json(json: &str) -> Self {
        let Ok(members) = parse_members(json) else { return Self::NONE };
        let mut capabilities = Self::NONE;
        if let Some(elicitation) = object_member(&members, "elicitation") {
            let (form, url) = (elicitation.get("form").is_some(), elicitation.get("url").is_some());
            // Without a mode it is form mode (2025-11-25, Elicitation, Capabilities).
            if form || !url {
                capabilities = capabilities.with(Self::FORM_ELICITATION);
            }
            if url {
                capabilities = capabilities.with(Self::URL_ELICITATION);
            }
        }
        if let Some(sampling) = object_member(&members, "sampling") {
            capabilities = capabilities.with(Self::SAMPLING);
            for (key, capability) in [("tools", Self::SAMPLING_TOOLS), ("context", Self::SAMPLING_CONTEXT)] {
                if object_member(&sampling, key).is_some() {
                    capabilities = capabilities.with(capability);
                }
            }
        }
        if let Some(roots) = object_member(&members, "roots") {
            let notifies = roots.get("listChanged").is_some_and(|notifies| notifies.get() == "true");
            capabilities = capabilities.with(if notifies { Self::ROOTS_LIST_CHANGED } else { Self::ROOTS });
        }
        capabilities
    }

    /// Returns the JSON of these capabilities.
    pub fn to_json(self) -> String {
        let object = |members: &[(Self, &str)]| {
            let members = members.iter().filter(|(capability, _)| self.contains(*capability));
            let members: Vec<_> = members.map(|(_, member)| *member).collect();
            format!("{{{}}}", members.join(","))
        };
        let mut members = Vec::new();
        if self.contains(Self::FORM_ELICITATION) || self.contains(Self::URL_ELICITATION) {
            let modes = [(Self::FORM_ELICITATION, r#""form":{}"#), (Self::URL_ELICITATION, r#""url":{}"#)];
            members.push(format!(r#""elicitation":{}"#, object(&modes)));
        }
        if self.contains(Self::SAMPLING) {
            let parts =
                [(Self::SAMPLING_TOOLS, r#""tools":{}"#), (Self::SAMPLING_CONTEXT, r#""context":{}"#)];
            members.push(format!(r#""sampling":{}"#, object(&parts)));
        }
        if self.contains(Self::ROOTS) {
            let parts = [(Self::ROOTS_LIST_CHANGED, r#""listChanged":true"#)];
            members.push(format!(r#""roots":{}"#, object(&parts)));
        }
        format!("{{{}}}", members.join(","))
    }

    /// Returns the capabilities as a number, for [`Self::from_bits`].
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Returns the capabilities of [`Self::bits`].
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns these capabilities and others.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Returns these capabilities without roots.
    #[must_use]
    pub fn without_roots(self) -> Self {
        self.without(Self::ROOTS_LIST_CHANGED)
    }

    /// Returns these capabilities without others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Returns true if these include all of the others.
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// Returns the members of a member that is an object.
fn object_member<'a>(members: &Members<'a>, key: &str) -> Option<Members<'a>> {
    parse_members(members.get(key)?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_and_written() {
        for (json, written) in [
            ("{}", "{}"),
            ("[]", "{}"),
            (r#"{"elicitation":{}}"#, r#"{"elicitation":{"form":{}}}"#),
            (r#"{"elicitation":{"form":{"applyDefaults":true}}}"#, r#"{"elicitation":{"form":{}}}"#),
            (r#"{"elicitation":{"url":{}}}"#, r#"{"elicitation":{"url":{}}}"#),
            (r#"{"elicitation":{"url":{},"form":{}}}"#, r#"{"elicitation":{"form":{},"url":{}}}"#),
            (r#"{"elicitation":null,"sampling":true}"#, "{}"),
            (r#"{"sampling":{}}"#, r#"{"sampling":{}}"#),
            (r#"{"sampling":{"context":{},"tools":{}}}"#, r#"{"sampling":{"tools":{},"context":{}}}"#),
            (r#"{"roots":{"listChanged":false},"extensions":{"a/b":{}}}"#, r#"{"roots":{}}"#),
            (r#"{"roots":{"listChanged":true,"x":1}}"#, r#"{"roots":{"listChanged":true}}"#),
        ] {
            let capabilities = ClientCapabilities::from_json(json);
            assert_eq!(capabilities.to_json(), written, "{json}");
            assert_eq!(ClientCapabilities::from_json(written), capabilities, "{json}");
            assert_eq!(ClientCapabilities::from_bits(capabilities.bits()), capabilities);
            assert!(!capabilities.without_roots().to_json().contains("roots"));
        }
    }
}
