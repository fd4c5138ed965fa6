//! Determines the lists of a server that are read: those that it has, as far as agents may see anything of them. Pure.

use crate::resource::{McpServerSpec, NameFilter};
use crate::wire::{ListKind, ServerCapabilities};

/// Returns the filter that applies to the items of a list.
pub(super) fn filter_of(spec: &McpServerSpec, list: ListKind) -> &NameFilter {
    match list {
        ListKind::Tools => &spec.expose.tools,
        ListKind::Prompts => &spec.expose.prompts,
        ListKind::Resources | ListKind::Templates => &spec.expose.resources,
    }
}

/// Returns true if this list is read: the server declares it, or `spec.capabilities` does, and the filter permits any
/// name.
pub(super) fn is_wanted(list: ListKind, declared: ServerCapabilities, spec: &McpServerSpec) -> bool {
    let is_declared = declared.list_changed(list).is_some() || is_declared_by_spec(list, spec);
    is_declared && !filter_of(spec, list).hides_all()
}

/// Returns all lists that are read.
pub(super) fn wanted_lists(
    declared: ServerCapabilities,
    spec: &McpServerSpec,
) -> impl Iterator<Item = ListKind> {
    ListKind::ALL.into_iter().filter(move |list| is_wanted(*list, declared, spec))
}

/// Returns true if the server has no tools by its own account and the declaration does not say otherwise.
pub(super) fn declares_no_tools(declared: ServerCapabilities, spec: &McpServerSpec) -> bool {
    let is_declared = declared.tools.is_some() || spec.capabilities.tools;
    !is_declared && !spec.expose.tools.hides_all()
}

fn is_declared_by_spec(list: ListKind, spec: &McpServerSpec) -> bool {
    match list {
        ListKind::Tools => spec.capabilities.tools,
        ListKind::Prompts => spec.capabilities.prompts,
        ListKind::Resources | ListKind::Templates => spec.capabilities.resources,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn list_is_read_if_it_is_declared_and_not_hidden() {
        let none = ServerCapabilities::default();
        let all = ServerCapabilities {
            tools: Some(false),
            prompts: Some(true),
            resources: Some(false),
            ..ServerCapabilities::default()
        };
        let [tools, prompts, resources, templates] = ListKind::ALL;
        for (declared, spec, expected) in [
            (none, json!({}), &[][..]),
            (all, json!({}), &ListKind::ALL),
            (none, json!({ "capabilities": { "tools": true } }), &[tools]),
            (none, json!({ "capabilities": { "resources": true } }), &[resources, templates]),
            (all, json!({ "capabilities": { "tools": false } }), &ListKind::ALL),
            (all, json!({ "expose": { "prompts": { "deny": ["*"] } } }), &[tools, resources, templates]),
            (all, json!({ "expose": { "resources": { "allow": [] } } }), &[tools, prompts]),
            (
                all,
                json!({ "expose": { "tools": { "deny": ["a*", "**"] } } }),
                &[prompts, resources, templates],
            ),
            (all, json!({ "expose": { "tools": { "deny": ["a*"] } } }), &ListKind::ALL),
            (
                none,
                json!({ "capabilities": { "prompts": true }, "expose": { "prompts": { "deny": ["*"] } } }),
                &[],
            ),
        ] {
            assert_eq!(wanted_lists(declared, &spec_of(&spec)).collect::<Vec<_>>(), expected, "{spec}");
        }
    }

    fn spec_of(fields: &Value) -> McpServerSpec {
        serde_json::from_value(fields.clone()).unwrap()
    }
}
