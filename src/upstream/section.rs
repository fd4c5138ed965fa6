use std::sync::Arc;
use std::time::Duration;

use super::handle::UpstreamHandle;
use super::item::Item;
use super::lists::ServerLists;
use super::matcher::NameMatcher;
use super::responder::Responder;
use crate::plan::ConnectionTarget;
use crate::resource::ObjectKey;
use crate::wire::ListKind;

/// What one server offers, after its filters: made once per change of the server, shared by generations.
#[derive(Debug)]
pub struct Section {
    /// The server.
    pub key: ObjectKey,
    /// Stands before the names of tools and prompts; empty for none.
    pub prefix: String,
    /// What it lists, after the filters.
    pub lists: Arc<ServerLists>,
    /// Which resources may be read beside those that are listed; `None` for all.
    pub resource_filter: Option<Box<NameMatcher>>,
    /// What the server wants models to know of it; its own words.
    pub instructions: Option<Arc<str>>,
    /// Who answers.
    pub responder: Responder,
    /// How long a call may take.
    pub call_timeout: Duration,
}

impl Section {
    /// What a target exposes of what its server lists.
    pub fn new(
        target: &ConnectionTarget,
        lists: &Arc<ServerLists>,
        instructions: Option<Arc<str>>,
        handle: UpstreamHandle,
    ) -> Self {
        let expose = &target.spec.expose;
        let [tools, prompts, resources] =
            [&expose.tools, &expose.prompts, &expose.resources].map(NameMatcher::from_filter);
        let chosen = |list, matcher: &Option<NameMatcher>| {
            let exposed = |item: &&Item| matcher.as_ref().is_none_or(|matcher| matcher.permits(item.name()));
            lists.items(list).iter().filter(exposed).cloned().collect()
        };
        let lists = if let (None, None, None) = (&tools, &prompts, &resources) {
            lists.clone()
        } else {
            Arc::new(ServerLists {
                tools: chosen(ListKind::Tools, &tools),
                prompts: chosen(ListKind::Prompts, &prompts),
                resources: chosen(ListKind::Resources, &resources),
                templates: chosen(ListKind::Templates, &resources),
            })
        };
        Self {
            key: target.key.clone(),
            prefix: target.prefix().to_owned(),
            lists,
            resource_filter: resources.map(Box::new),
            instructions,
            responder: Responder::Server(handle),
            call_timeout: target.spec.timeouts.call.get(),
        }
    }

    /// True if publishing this in place of `other` would change nothing.
    pub fn is_equivalent_to(&self, other: &Self) -> bool {
        self.prefix == other.prefix
            && self.call_timeout == other.call_timeout
            && self.lists == other.lists
            && self.resource_filter == other.resource_filter
            && self.instructions == other.instructions
    }

    /// True if agents may read this resource of the server, listed or not.
    pub fn permits_resource(&self, uri: &str) -> bool {
        self.resource_filter.as_ref().is_none_or(|matcher| matcher.permits(uri))
    }
}
