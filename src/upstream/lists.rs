use super::item::Item;
use crate::resource::Digest;
use crate::wire::List;

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
