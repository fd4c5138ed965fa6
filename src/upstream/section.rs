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

/// The items that one server offers, after its filters. Created once per change of the server and shared by catalog
/// generations.
#[derive(Debug)]
pub struct Section {
    /// The key of the server.
    pub key: ObjectKey,
    /// The prefix of the names of tools and prompts; empty for no prefix.
    pub prefix: String,
    /// The lists, after the filters.
    pub lists: Arc<ServerLists>,
    /// The filter for reading resources, including resources that are not listed; `None` permits all.
    pub resource_filter: Option<Box<NameMatcher>>,
    /// The instructions for models that the server sends. Not trusted.
    pub instructions: Option<Arc<str>>,
    /// The component that handles requests.
    pub responder: Responder,
    /// The time limit of a call.
    pub call_timeout: Duration,
}

impl Section {
    /// Applies the filters of a target to the lists of its server.
    pub fn new(
        target: &ConnectionTarget,
        lists: &Arc<ServerLists>,
        instructions: Option<Arc<str>>,
        handle: UpstreamHandle,
    ) -> Self {
        let expose = &target.spec.expose;
        let [tools, prompts, resources] =
            [&expose.tools, &expose.prompts, &expose.resources].map(NameMatcher::from_filter);
        let filtered = |list, matcher: &Option<NameMatcher>| {
            let exposed = |item: &&Item| matcher.as_ref().is_none_or(|matcher| matcher.permits(item.name()));
            lists.items(list).iter().filter(exposed).cloned().collect()
        };
        let lists = if let (None, None, None) = (&tools, &prompts, &resources) {
            lists.clone()
        } else {
            Arc::new(ServerLists {
                tools: filtered(ListKind::Tools, &tools),
                prompts: filtered(ListKind::Prompts, &prompts),
                resources: filtered(ListKind::Resources, &resources),
                templates: filtered(ListKind::Templates, &resources),
            })
        };
        Self {
            key: target.key.clone(),
            prefix: target.prefix().to_owned(),
            lists,
            resource_filter: resources.map(Box::new),
            instructions,
            responder: Responder::of_server(&target.spec, handle),
            call_timeout: target.spec.timeouts.call.get(),
        }
    }

    /// Returns true if publishing this in place of `other` would change nothing.
    pub fn is_equivalent_to(&self, other: &Self) -> bool {
        self.prefix == other.prefix
            && self.call_timeout == other.call_timeout
            && self.lists == other.lists
            && self.resource_filter == other.resource_filter
            && self.instructions == other.instructions
            && self.responder.is_equivalent_to(&other.responder)
    }

    /// Returns true if the server gets the roots of its callers.
    pub fn gets_roots(&self) -> bool {
        matches!(self.responder, Responder::Isolated { roots: true, .. })
    }

    /// Returns true if agents may read this resource of the server, listed or not.
    pub fn permits_resource(&self, uri: &str) -> bool {
        self.resource_filter.as_ref().is_none_or(|matcher| matcher.permits(uri))
    }
}
