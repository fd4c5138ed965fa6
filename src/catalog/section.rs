use std::sync::Arc;
use std::time::Duration;

use super::{Item, Matcher};
use crate::fleet::UpstreamHandle;
use crate::plan::Target;
use crate::resource::{Digest, ObjectKey};
use crate::skills::{Library, Volume};
use crate::wire::List;

/// What one server offers, after its filters: made once per change of the server, shared by generations.
#[derive(Debug)]
pub struct Section {
    /// The server.
    pub key: ObjectKey,
    /// Stands before the names of tools and prompts; empty for none.
    pub prefix: String,
    /// What it lists, after the filters.
    pub lists: Arc<Lists>,
    /// Which resources may be read beside those that are listed; `None` for all.
    pub resources: Option<Box<Matcher>>,
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
        Digest::of_parts(items.flat_map(|item| [item.raw().as_bytes(), b"\n"]))
    }
}

impl Section {
    /// What a target exposes of what its server lists.
    pub fn new(
        target: &Target,
        lists: &Arc<Lists>,
        instructions: Option<Arc<str>>,
        handle: UpstreamHandle,
    ) -> Self {
        let expose = &target.spec.expose;
        let [tools, prompts, resources] =
            [&expose.tools, &expose.prompts, &expose.resources].map(Matcher::of);
        let chosen = |list, matcher: &Option<Matcher>| {
            let exposed = |item: &&Item| matcher.as_ref().is_none_or(|matcher| matcher.permits(item.name()));
            lists.of(list).iter().filter(exposed).cloned().collect()
        };
        let lists = if let (None, None, None) = (&tools, &prompts, &resources) {
            lists.clone()
        } else {
            Arc::new(Lists {
                tools: chosen(List::Tools, &tools),
                prompts: chosen(List::Prompts, &prompts),
                resources: chosen(List::Resources, &resources),
                templates: chosen(List::Templates, &resources),
            })
        };
        Self {
            key: target.key.clone(),
            prefix: target.prefix().to_owned(),
            lists,
            resources: resources.map(Box::new),
            instructions,
            by: Answering::Server(handle),
            call_timeout: target.spec.timeouts.call.get(),
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
        self.resources.as_ref().is_none_or(|matcher| matcher.permits(uri))
    }
}
