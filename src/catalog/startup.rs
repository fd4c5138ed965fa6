//! Which unknown names may still appear during startup.

use std::sync::Arc;

use super::Generation;
use super::expected::ExpectedItem;
use super::names::NameScheme;
use crate::resource::ObjectKey;
use crate::upstream::ViewName;
use crate::wire::ListKind;

impl Generation {
    /// Returns true if an item with this name, which is not listed now, may appear before startup is over: the list of
    /// declarations is not complete, or a declared server that was not attached yet and has not failed yet can have an
    /// item with this name. The cost depends on the number of such servers.
    pub fn may_appear(&self, view: &ViewName, list: ListKind, name: &str) -> bool {
        if self.declared.is_settled() {
            return false;
        }
        if !self.declared.is_complete() || !self.expected.complete {
            return true;
        }
        let is_attached = |key: &ObjectKey| self.section(key).is_some();
        let mut pending = self.declared.pending_prefixes(is_attached);
        let by_server = pending.any(|(namespace, prefix)| {
            view.shows(namespace) && self.scheme(view, list, namespace, prefix).can_form(name)
        });
        by_server
            || self.expected.items().any(|expected| {
                let ExpectedItem { list: expected_list, namespace, name: expected_name } = expected;
                *expected_list == list
                    && view.shows(namespace)
                    && self.scheme(view, list, namespace, "").can_form_of(expected_name, name)
            })
    }

    fn scheme<'a>(
        &'a self,
        view: &ViewName,
        list: ListKind,
        namespace: &'a Arc<str>,
        prefix: &'a str,
    ) -> NameScheme<'a> {
        match view {
            ViewName::All => self.view(view).table(list).scheme_of(namespace, prefix),
            ViewName::Namespace(_) => NameScheme { list, namespace: None, prefix },
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::time::Instant;

    use super::*;
    use crate::catalog::testing::section;
    use crate::catalog::{CatalogDeclaration, CatalogUpdate, ReservedNames};
    use crate::resource::{Problem, Reason};

    fn declare(namespace: &str, name: &str, prefix: Option<&str>) -> CatalogUpdate {
        let prefix = prefix.map(Arc::from);
        CatalogUpdate::Declare(
            ObjectKey::new(namespace, name),
            CatalogDeclaration { created: Timestamp::UNIX_EPOCH, prefix },
        )
    }

    fn generation(updates: Vec<CatalogUpdate>) -> Generation {
        let complete = [CatalogUpdate::DeclarationsComplete, CatalogUpdate::ExpectedComplete];
        let empty = Generation::new(Some("default".into()), ReservedNames::default(), Instant::now());
        empty.with_updates(updates.into_iter().chain(complete), Instant::now())
    }

    fn may_appear(generation: &Generation, namespace: Option<&str>, name: &str) -> bool {
        let view = namespace.map_or(ViewName::All, |namespace| ViewName::Namespace(namespace.into()));
        let [tools, prompts] =
            [ListKind::Tools, ListKind::Prompts].map(|list| generation.may_appear(&view, list, name));
        assert_eq!(tools, prompts, "{name}");
        tools
    }

    #[test]
    fn only_names_with_the_prefix_of_a_pending_server_may_appear() {
        let pending = generation(vec![
            declare("default", "github", Some("gh")),
            declare("team", "jira", Some("jira_")),
            declare("default", "suspended", None),
        ]);
        for (namespace, name, expected) in [
            (None, "gh_search", true),
            (None, "gh_a_1a2b3c", true),
            (None, "ghsearch", false),
            (None, "github_search", false),
            (None, "suspended_a", false),
            (None, "jira_search", false),
            (None, "team_jira_search", true),
            (Some("team"), "jira_search", true),
            (Some("team"), "gh_search", false),
            (Some("default"), "gh_search", true),
            (Some("default"), "jira_search", false),
            (Some("absent"), "gh_search", false),
        ] {
            assert_eq!(may_appear(&pending, namespace, name), expected, "{namespace:?} {name}");
        }
        let uri = |namespace: &str| {
            let view = ViewName::Namespace(namespace.into());
            pending.may_appear(&view, ListKind::Resources, "file:///a")
        };
        assert!(uri("team") && !uri("absent"), "a URI has no prefix");
        let unprefixed = generation(vec![declare("default", "any", Some(""))]);
        assert!(may_appear(&unprefixed, None, "x.y") && !may_appear(&unprefixed, Some("team"), "x.y"));
    }

    #[test]
    fn server_that_was_attached_or_failed_is_not_waited_for() {
        let key = || ObjectKey::new("default", "s");
        let pending = generation(vec![declare("default", "s", Some("s"))]);
        assert!(may_appear(&pending, None, "s_other"));
        let number = pending.number();
        for update in [
            CatalogUpdate::Publish(Arc::new(section("default", "s", "s", &["t"]))),
            CatalogUpdate::Attempted(key()),
            CatalogUpdate::Withdraw(key(), Problem::new(Reason::Timeout, "slow")),
            CatalogUpdate::Remove(key()),
            declare("default", "s", None),
            CatalogUpdate::Settle,
        ] {
            let next = pending.with_updates([update.clone()], Instant::now());
            assert!(!may_appear(&next, None, "s_other"), "{update:?}");
            assert!(next.number() > number, "a call that waits is woken: {update:?}");
        }
        // A server that is declared during startup after it was removed is waited for.
        let removed = pending
            .with_updates([CatalogUpdate::Attempted(key()), CatalogUpdate::Remove(key())], Instant::now());
        let again = removed.with_updates([declare("default", "s", Some("s"))], Instant::now());
        assert!(may_appear(&again, None, "s_other"));
    }

    #[test]
    fn every_name_may_appear_until_the_declarations_are_complete() {
        for complete in [CatalogUpdate::DeclarationsComplete, CatalogUpdate::ExpectedComplete] {
            let empty = Generation::new(None, ReservedNames::default(), Instant::now());
            let half = empty.with_updates([complete], Instant::now());
            assert!(may_appear(&half, None, "x"));
        }
        assert!(!may_appear(&generation(Vec::new()), None, "x"));
    }

    #[test]
    fn expected_items_may_appear_until_they_are_offered() {
        let item = |list, name: &str| ExpectedItem { list, namespace: "team".into(), name: name.into() };
        let items = [
            item(ListKind::Prompts, "notes"),
            item(ListKind::Tools, "read_skill"),
            item(ListKind::Resources, "skill://team/notes/"),
        ];
        let key = || ObjectKey::new("team", "agent skill notes");
        let expected = generation(vec![CatalogUpdate::Expect(key(), items.into())]);
        let team = ViewName::Namespace("team".into());
        for (view, list, name, may_appear) in [
            (&team, ListKind::Prompts, "notes", true),
            (&ViewName::All, ListKind::Prompts, "team_notes", true),
            (&ViewName::All, ListKind::Prompts, "notes", false),
            (&team, ListKind::Prompts, "notes_1a2b3c", true),
            (&team, ListKind::Prompts, "other", false),
            (&team, ListKind::Tools, "read_skill", true),
            (&team, ListKind::Tools, "notes", false),
            (&team, ListKind::Resources, "skill://team/notes/a.md", true),
            (&team, ListKind::Resources, "file:///a", false),
        ] {
            assert_eq!(expected.may_appear(view, list, name), may_appear, "{view:?} {list:?} {name}");
        }
        let offered = expected.with_updates([CatalogUpdate::Expect(key(), Arc::default())], Instant::now());
        assert!(!offered.may_appear(&team, ListKind::Prompts, "notes"));
    }
}
