use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::fleet::UpstreamHandle;
use crate::plan::Target;
use crate::resource::{Digest, Filter, ObjectKey};
use crate::skills::{Library, Volume};
use crate::wire::List;

/// What one server offers, after its filters: made once per change of the server, shared by generations.
#[derive(Debug)]
pub struct Section {
    /// The server.
    pub key: ObjectKey,
    /// Stands before the names of tools and prompts; empty for none.
    pub prefix: String,
    /// What it lists.
    pub lists: Lists,
    /// Which resources may be read beside those that are listed; `None` for all.
    pub resources: Option<Box<Filter>>,
    /// What the server wants models to know of it; its own words.
    pub instructions: Option<Arc<str>>,
    /// Who answers.
    pub by: Answering,
    /// How long a call may take.
    pub call_timeout: Duration,
}

/// Who answers for what a section lists.
#[derive(Clone, Debug)]
pub enum Answering {
    /// A server, and the way to it.
    Server(UpstreamHandle),
    /// The tools that read skills.
    Library(Arc<Library>),
    /// A skill.
    Skill(Arc<Volume>),
}

/// What a server lists, each list in the order of its items' names and each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Tools.
    pub tools: Vec<Item>,
    /// Prompts.
    pub prompts: Vec<Item>,
    /// Resources, by URI.
    pub resources: Vec<Item>,
    /// Resource templates, by URI template.
    pub templates: Vec<Item>,
}

/// One item of a list.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// The server's own name for it, or its URI or URI template.
    pub name: String,
    /// The whole item as the server wrote it, a JSON object.
    pub raw: Bytes,
}

impl Lists {
    /// One of the lists.
    pub fn of(&self, list: List) -> &[Item] {
        match list {
            List::Tools => &self.tools,
            List::Prompts => &self.prompts,
            List::Resources => &self.resources,
            List::Templates => &self.templates,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, list: List) -> &mut Vec<Item> {
        match list {
            List::Tools => &mut self.tools,
            List::Prompts => &mut self.prompts,
            List::Resources => &mut self.resources,
            List::Templates => &mut self.templates,
        }
    }

    /// Digest of all that is listed.
    pub fn digest(&self) -> Digest {
        let items = List::ALL.into_iter().flat_map(|list| self.of(list));
        let text: Vec<u8> = items.flat_map(|item| item.raw.iter().copied().chain([b'\n'])).collect();
        Digest::of(&text)
    }
}

impl Section {
    /// What a target exposes of what its server lists.
    pub fn new(
        target: &Target,
        lists: &Lists,
        instructions: Option<Arc<str>>,
        handle: UpstreamHandle,
    ) -> Self {
        let expose = &target.settings.expose;
        let chosen = |list, filter| {
            let (allow, deny) = globs(filter);
            let items = lists.of(list).iter();
            items.filter(|item| allow.is_match(&item.name) && !deny.is_match(&item.name)).cloned().collect()
        };
        Self {
            key: target.key.clone(),
            prefix: expose.prefix.clone().unwrap_or_else(|| target.key.name.to_string()),
            lists: Lists {
                tools: chosen(List::Tools, &expose.tools),
                prompts: chosen(List::Prompts, &expose.prompts),
                resources: chosen(List::Resources, &expose.resources),
                templates: chosen(List::Templates, &expose.resources),
            },
            resources: (expose.resources != Filter::default()).then(|| Box::new(expose.resources.clone())),
            instructions,
            by: Answering::Server(handle),
            call_timeout: target.settings.timeouts.call.get(),
        }
    }

    /// True if publishing this in place of `other` would change nothing.
    pub fn offers_the_same(&self, other: &Self) -> bool {
        self.prefix == other.prefix
            && self.call_timeout == other.call_timeout
            && self.lists == other.lists
            && self.resources == other.resources
            && self.instructions == other.instructions
    }

    /// True if agents may read this resource of the server, listed or not.
    pub(super) fn permits(&self, uri: &str) -> bool {
        self.resources.as_ref().is_none_or(|filter| {
            let (allow, deny) = globs(filter);
            allow.is_match(uri) && !deny.is_match(uri)
        })
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
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
