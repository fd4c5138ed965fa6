use super::item::Item;
use crate::resource::Digest;
use crate::wire::ListKind;

/// The lists of a server. Each list is sorted by name and contains each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerLists {
    /// The tools.
    pub tools: Vec<Item>,
    /// The prompts.
    pub prompts: Vec<Item>,
    /// The resources, by URI.
    pub resources: Vec<Item>,
    /// The resource templates, by URI template.
    pub templates: Vec<Item>,
}

impl ServerLists {
    /// Returns one of the lists.
    pub fn items(&self, list: ListKind) -> &[Item] {
        match list {
            ListKind::Tools => &self.tools,
            ListKind::Prompts => &self.prompts,
            ListKind::Resources => &self.resources,
            ListKind::Templates => &self.templates,
        }
    }

    /// Returns one of the lists, mutable.
    pub fn items_mut(&mut self, list: ListKind) -> &mut Vec<Item> {
        match list {
            ListKind::Tools => &mut self.tools,
            ListKind::Prompts => &mut self.prompts,
            ListKind::Resources => &mut self.resources,
            ListKind::Templates => &mut self.templates,
        }
    }

    /// Returns the digest of all items.
    pub fn digest(&self) -> Digest {
        let items = ListKind::ALL.into_iter().flat_map(|list| self.items(list));
        Digest::of_parts(items.flat_map(|item| [item.raw().as_bytes(), b"\n"]))
    }
}
