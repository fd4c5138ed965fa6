use super::item::Item;
use crate::resource::Digest;
use crate::wire::ListKind;

/// What a server lists, each list in the order of its items' names and each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerLists {
    /// Tools.
    pub tools: Vec<Item>,
    /// Prompts.
    pub prompts: Vec<Item>,
    /// Resources, by URI.
    pub resources: Vec<Item>,
    /// Resource templates, by URI template.
    pub templates: Vec<Item>,
}

impl ServerLists {
    /// One of the lists.
    pub fn items(&self, list: ListKind) -> &[Item] {
        match list {
            ListKind::Tools => &self.tools,
            ListKind::Prompts => &self.prompts,
            ListKind::Resources => &self.resources,
            ListKind::Templates => &self.templates,
        }
    }

    /// The same, to be changed.
    pub fn items_mut(&mut self, list: ListKind) -> &mut Vec<Item> {
        match list {
            ListKind::Tools => &mut self.tools,
            ListKind::Prompts => &mut self.prompts,
            ListKind::Resources => &mut self.resources,
            ListKind::Templates => &mut self.templates,
        }
    }

    /// Digest of all that is listed.
    pub fn digest(&self) -> Digest {
        let items = ListKind::ALL.into_iter().flat_map(|list| self.items(list));
        Digest::of_parts(items.flat_map(|item| [item.raw().as_bytes(), b"\n"]))
    }
}
