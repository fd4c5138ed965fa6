use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::fleet::UpstreamHandle;
use crate::plan::Target;
use crate::resource::{Digest, Filter, ObjectKey};

/// What one server offers, after its filters: made once per change of the server, shared by generations.
#[derive(Debug)]
pub struct Section {
    /// The server.
    pub key: ObjectKey,
    /// Stands before names; empty for none.
    pub prefix: String,
    /// Its tools in the order of their names, each name once.
    pub tools: Vec<Tool>,
    /// The way to the server.
    pub handle: UpstreamHandle,
    /// How long a call may take.
    pub call_timeout: Duration,
}

/// One tool as its server lists it.
#[derive(Clone, PartialEq, Eq)]
pub struct Tool {
    /// The server's own name for it.
    pub name: String,
    /// The whole tool as the server wrote it, a JSON object.
    pub raw: Bytes,
}

impl Section {
    /// What a target exposes of the tools that its server lists.
    pub fn new(target: &Target, tools: &[Tool], handle: UpstreamHandle) -> Self {
        let expose = &target.settings.expose;
        let (allow, deny) = globs(&expose.tools);
        Self {
            key: target.key.clone(),
            prefix: expose.prefix.clone().unwrap_or_else(|| target.key.name.to_string()),
            tools: tools
                .iter()
                .filter(|tool| allow.is_match(&tool.name) && !deny.is_match(&tool.name))
                .cloned()
                .collect(),
            handle,
            call_timeout: target.settings.timeouts.call.get(),
        }
    }

    /// True if publishing this in place of `other` would change nothing.
    pub fn offers_the_same(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.call_timeout == other.call_timeout && self.tools == other.tools
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Digest of a list of tools.
pub fn digest(tools: &[Tool]) -> Digest {
    let text: Vec<u8> = tools.iter().flat_map(|tool| tool.raw.iter().copied().chain([b'\n'])).collect();
    Digest::of(&text)
}

/// The filter's two sets. Globs are checked where specs are read; one that is not valid matches nothing.
fn globs(filter: &Filter) -> (GlobSet, GlobSet) {
    let set = |globs: &[String]| {
        let mut builder = GlobSetBuilder::new();
        globs.iter().filter_map(|glob| Glob::new(glob).ok()).for_each(|glob| {
            builder.add(glob);
        });
        builder.build().unwrap_or_default()
    };
    (set(&filter.allow), set(&filter.deny))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_over_allow() {
        for (allow, deny, name, expected) in [
            (&["*"][..], &[][..], "search", true),
            (&["*"], &["delete_*"], "delete_repo", false),
            (&["get_*"], &[], "search", false),
            (&["get_*", "search"], &[], "search", true),
            (&[], &[], "search", false),
        ] {
            let filter = Filter {
                allow: allow.iter().map(ToString::to_string).collect(),
                deny: deny.iter().map(ToString::to_string).collect(),
            };
            let (allow, deny) = globs(&filter);
            assert_eq!(allow.is_match(name) && !deny.is_match(name), expected, "{filter:?} {name}");
        }
    }
}
