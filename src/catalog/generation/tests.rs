mod property_tests;

use super::*;
use crate::catalog::NameHolderState;
use crate::catalog::testing::{section, tool};
use crate::upstream::ServerLists;
use crate::wire::Era;

const EVERYTHING: ViewName = ViewName::All;

fn publish(namespace: &str, name: &str, prefix: &str, tools: &[&str]) -> CatalogUpdate {
    CatalogUpdate::Publish(Arc::new(section(namespace, name, prefix, tools)))
}

fn withdraw(namespace: &str, name: &str) -> CatalogUpdate {
    let problem = Problem::new(Reason::Removed, "its file was deleted");
    CatalogUpdate::Withdraw(ObjectKey::new(namespace, name), problem)
}

/// Declares a server that was created at this second.
fn declare(namespace: &str, name: &str, second: i64, prefix: &str) -> CatalogUpdate {
    let created = jiff::Timestamp::from_second(second).unwrap();
    CatalogUpdate::Declare(
        ObjectKey::new(namespace, name),
        CatalogDeclaration { created, prefix: Some(prefix.into()) },
    )
}

fn remove(namespace: &str, name: &str) -> CatalogUpdate {
    CatalogUpdate::Remove(ObjectKey::new(namespace, name))
}

fn empty_generation() -> Generation {
    Generation::new(Some("default".into()), ReservedNames::default(), Instant::now())
}

impl Generation {
    fn updated(&self, updates: impl IntoIterator<Item = CatalogUpdate>) -> Self {
        self.with_updates(updates, self.created_at)
    }

    fn advanced_by(&self, by: Duration) -> Self {
        self.with_updates([], self.created_at + by)
    }

    /// Returns the first generation after a restart, with the stored names of these servers.
    fn restarted(&self, servers: impl IntoIterator<Item = ObjectKey>) -> Self {
        let mut reserved = ReservedNames::default();
        for server in servers {
            for (name, until) in self.names_of(&server) {
                reserved.reserve(&server, name, until);
            }
        }
        Self::new(Some("default".into()), reserved, self.created_at)
    }
}

fn generation(updates: impl IntoIterator<Item = CatalogUpdate>) -> Generation {
    empty_generation().updated(updates)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// Returns the one name under which a tool is listed.
fn listed_name(generation: &Generation, server: &str, tool: &str) -> String {
    let view = generation.view(&EVERYTHING);
    let found = view
        .table(ListKind::Tools)
        .routes()
        .filter(|(_, route)| route.section().key == key(server) && route.name() == tool);
    let [(name, _)] = found.collect::<Vec<_>>()[..] else { panic!("{server} {tool}") };
    name.to_owned()
}

fn removal_message(generation: &Generation, name: &str) -> String {
    let table = generation.view(&EVERYTHING).table(ListKind::Tools);
    assert!(table.route(name).is_none(), "{name}");
    table.removed(name).map(|removed| removed.problem.message.clone()).unwrap_or_default()
}

fn tool_names(view: &View) -> Vec<String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(&view.table(ListKind::Tools).page(None, Era::Modern).unwrap().items).unwrap();
    list.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn owner<'a>(view: &'a View, name: &str) -> (&'a str, &'a str) {
    let route = view.table(ListKind::Tools).route(name).unwrap();
    (&route.section().key.name, route.name())
}

#[test]
fn names_outside_the_home_namespace_carry_the_namespace() {
    let generation = generation([
        publish("default", "gh", "gh", &["search"]),
        publish("team-a", "gh", "gh", &["search"]),
        publish("team-a", "raw", "", &["a.b"]),
    ]);
    let team = ViewName::Namespace("team-a".into());
    let all = tool_names(generation.view(&EVERYTHING));
    assert_eq!((&*all[0], &*all[2]), ("gh_search", "team-a_gh_search"));
    assert!(all[1].starts_with("team-a_a_b_"), "{all:?}");
    assert_eq!(tool_names(generation.view(&team)), ["a.b", "gh_search"]);
    assert!(generation.view(&ViewName::Namespace("none".into())).table(ListKind::Tools).is_empty());
    assert!(generation.all_conflicts().is_empty());
}

#[test]
fn contested_name_goes_to_older_server_and_newer_reports_conflict() {
    let before = generation([
        declare("default", "a", 2, "x"),
        declare("default", "b", 1, "x"),
        publish("default", "a", "x", &["t", "u"]),
        publish("default", "b", "x", &["t"]),
    ]);
    let view = before.view(&EVERYTHING);
    assert_eq!(owner(view, "x_t"), ("b", "t"));
    let [conflict, _in_namespace_view] = before.conflicts(&key("a")) else {
        panic!("{:?}", before.all_conflicts());
    };
    assert_eq!(
        (&*conflict.bare_name, &*conflict.holder.name, conflict.holder_state),
        ("x_t", "b", NameHolderState::Current)
    );
    assert_eq!(owner(view, &conflict.assigned_name), ("a", "t"));
    assert!(before.conflicts(&key("b")).is_empty());
    let suffixed =
        view.table(ListKind::Tools).suffixed().find(|(_, route)| route.section().key == key("b")).unwrap().0;
    assert_eq!(owner(view, suffixed), ("b", "t"), "the suffixed name is routed though it is not listed");
    assert_eq!(tool_names(view).len(), 3);

    // Server b is withdrawn: its name stays reserved while it is declared.
    let withdrawn = before.updated([withdraw("default", "b")]).advanced_by(2 * RESERVATION_PERIOD);
    assert_eq!(removal_message(&withdrawn, "x_t"), "its file was deleted");
    assert_eq!(withdrawn.conflicts(&key("a"))[0].holder_state, NameHolderState::Current);
    assert_eq!(listed_name(&withdrawn, "a", "t"), conflict.assigned_name);
    let created = jiff::Timestamp::from_second(1).unwrap();
    let suspended =
        withdrawn.updated([CatalogUpdate::Declare(key("b"), CatalogDeclaration { created, prefix: None })]);
    assert_eq!(listed_name(&suspended.advanced_by(2 * RESERVATION_PERIOD), "a", "t"), conflict.assigned_name);
    let reattached = suspended.updated([publish("default", "b", "x", &["t"])]);
    assert_eq!(owner(reattached.view(&EVERYTHING), "x_t"), ("b", "t"));

    // Server b is removed: one hour later server a has the bare name, and its suffixed name is still routed.
    let removed = withdrawn.updated([remove("default", "b")]);
    assert_eq!(removed.conflicts(&key("a"))[0].holder_state, NameHolderState::Former);
    assert_eq!(removed.next_expiry_at(), Some(removed.created_at + RESERVATION_PERIOD));
    assert_eq!(
        tool_names(removed.advanced_by(RESERVATION_PERIOD / 2).view(&EVERYTHING)),
        tool_names(withdrawn.view(&EVERYTHING))
    );
    let free = removed.advanced_by(RESERVATION_PERIOD);
    assert_eq!(tool_names(free.view(&EVERYTHING)), ["x_t", "x_u"]);
    for name in ["x_t", &*conflict.assigned_name] {
        assert_eq!(owner(free.view(&EVERYTHING), name), ("a", "t"));
    }
    assert!(free.all_conflicts().is_empty() && free.number() > removed.number());
    assert_eq!((free.next_expiry_at(), free.advanced_by(RESERVATION_PERIOD).number()), (None, free.number()));
}

#[test]
fn assigned_name_is_not_taken_over_by_an_older_server() {
    let before = generation([
        declare("default", "old", 1, "y"),
        declare("default", "new", 2, "x"),
        publish("default", "old", "y", &["t"]),
        publish("default", "new", "x", &["t"]),
    ]);
    let edited = before.updated([declare("default", "old", 1, "x"), publish("default", "old", "x", &["t"])]);
    assert_eq!(owner(edited.view(&EVERYTHING), "x_t"), ("new", "t"));
    let suffixed = listed_name(&edited, "old", "t");
    assert_eq!(removal_message(&edited, "y_t"), format!("it was renamed to {suffixed:?}"));
    // The names are the same after a restart, whichever server is published first.
    for first in ["old", "new"] {
        let again = edited.restarted([key("old"), key("new")]).updated([
            declare("default", "old", 1, "x"),
            declare("default", "new", 2, "x"),
            CatalogUpdate::DeclarationsComplete,
            publish("default", first, "x", &["t"]),
        ]);
        let both = again.updated(["old", "new"].map(|name| publish("default", name, "x", &["t"])));
        assert_eq!(
            tool_names(both.view(&EVERYTHING)),
            tool_names(edited.view(&EVERYTHING)),
            "{first} is published first"
        );
        assert_eq!(owner(both.view(&EVERYTHING), "x_t"), ("new", "t"));
    }
}

#[test]
fn names_survive_restart_while_declared_and_one_hour_after_removal() {
    let before = generation([declare("default", "a", 1, "x"), publish("default", "a", "x", &["t"])]);
    for declared in [true, false] {
        let mut updates =
            vec![declare("default", "b", 2, "x"), CatalogUpdate::DeclarationsComplete, CatalogUpdate::Settle];
        if declared {
            updates.insert(0, declare("default", "a", 1, "x"));
        }
        let again = before.restarted([key("a")]).updated(updates).updated([publish(
            "default",
            "b",
            "x",
            &["t", "u"],
        )]);
        assert_ne!(listed_name(&again, "b", "t"), "x_t");
        assert_eq!(listed_name(&again, "b", "u"), "x_u", "no server had it");
        let later = again.advanced_by(RESERVATION_PERIOD);
        assert_eq!(listed_name(&later, "b", "t") == "x_t", !declared);
    }
}

#[test]
fn contested_name_waits_for_older_servers_until_startup_settles() {
    let declared = [
        declare("default", "a", 1, "x"),
        declare("default", "b", 2, "x"),
        CatalogUpdate::DeclarationsComplete,
    ];
    let first = generation(declared).updated([publish("default", "b", "x", &["t"])]);
    let given = listed_name(&first, "b", "t");
    assert_eq!(
        (&*first.conflicts(&key("b"))[0].assigned_name, first.conflicts(&key("b"))[0].holder_state),
        (&*given, NameHolderState::Prospective)
    );
    let both = first.updated([publish("default", "a", "x", &["t"])]);
    assert_eq!(owner(both.view(&EVERYTHING), "x_t"), ("a", "t"));
    assert_eq!(both.conflicts(&key("b"))[0].holder_state, NameHolderState::Current);
    let failed = first.updated([CatalogUpdate::Settle]);
    assert_eq!(listed_name(&failed, "b", "t"), "x_t");
    assert_eq!(removal_message(&failed, "x_u"), "");
    assert_eq!(owner(failed.view(&EVERYTHING), &given), ("b", "t"));
    assert!(failed.all_conflicts().is_empty() && failed.number() > first.number());
    let late = failed.updated([publish("default", "a", "x", &["t"])]);
    assert_eq!(owner(late.view(&EVERYTHING), "x_t"), ("b", "t"), "agents have listed it by then");
}

#[test]
fn new_tool_never_takes_the_name_of_an_existing_one() {
    let before = generation([declare("default", "s", 1, "x"), publish("default", "s", "x", &["поиск"])]);
    let name = listed_name(&before, "s", "поиск");
    let tools = ["а_удалить_все", "поиск", "a_b", "a.b", "a b", "a__b"];
    let after = before.updated([publish("default", "s", "x", &tools)]);
    assert_eq!(listed_name(&after, "s", "поиск"), name);
    assert_eq!(listed_name(&after, "s", "a_b"), "x_a_b");
    assert_eq!(tool_names(after.view(&EVERYTHING)).len(), tools.len());
    assert!(after.all_conflicts().is_empty(), "no other server is involved");

    // With another prefix, one tool can get the former name of another.
    let edited = generation([declare("default", "s", 1, "x"), publish("default", "s", "x", &["a_b"])])
        .updated([publish("default", "s", "x_a", &["b", "a_b"])]);
    assert_eq!(removal_message(&edited, "x_a_b"), "it was renamed to \"x_a_a_b\"");
    assert_ne!(listed_name(&edited, "s", "b"), "x_a_b");
    let conflict = &edited.conflicts(&key("s"))[0];
    assert_eq!((&*conflict.holder.name, conflict.holder_state), ("s", NameHolderState::Former));
    // Its released names are free after one hour, though it is declared, also after a restart.
    let restarted = edited.restarted([key("s")]).updated([declare("default", "s", 1, "x_a")]);
    for edited in [edited, restarted] {
        let published =
            edited.advanced_by(RESERVATION_PERIOD).updated([publish("default", "s", "x_a", &["b", "a_b"])]);
        assert_eq!(listed_name(&published, "s", "b"), "x_a_b");
    }
}

#[test]
fn name_that_looks_suffixed_gets_a_hash_suffix() {
    let suffixed = listed_name(&generation([publish("default", "a", "", &["ü"])]), "a", "ü");
    let generation =
        generation([publish("default", "z", "", &["t", &suffixed]), publish("default", "a", "", &["ü"])]);
    assert_eq!(owner(generation.view(&EVERYTHING), &suffixed), ("a", "ü"));
    assert_eq!(generation.view(&EVERYTHING).table(ListKind::Tools).len(), 3);
}

#[test]
fn resource_uris_are_reserved_like_names() {
    let publish = |name: &str| {
        let mut section = section("default", name, name, &[]);
        let item = crate::upstream::Item::parse(ListKind::Resources, r#"{"uri":"x:1"}"#).unwrap();
        section.lists = Arc::new(ServerLists { resources: vec![item], ..ServerLists::default() });
        CatalogUpdate::Publish(Arc::new(section))
    };
    let owner = |generation: &Generation| {
        let route = generation.view(&EVERYTHING).resolve_resource("x:1");
        route.map(|route| route.section.key.name.to_string())
    };
    let both = generation([
        declare("default", "b", 1, "b"),
        declare("default", "a", 2, "a"),
        publish("b"),
        publish("a"),
    ]);
    assert_eq!(owner(&both).as_deref(), Some("b"));
    let one = both.updated([remove("default", "b"), withdraw("default", "b")]);
    assert_ne!(owner(&one.advanced_by(RESERVATION_PERIOD / 2)).as_deref(), Some("b"));
    assert!(one.view(&EVERYTHING).table(ListKind::Resources).route("x:1").is_none());
    assert_eq!(owner(&one.advanced_by(RESERVATION_PERIOD)).as_deref(), Some("a"));
}

#[test]
fn removed_name_is_recorded_with_its_reason() {
    let generation = generation([publish("default", "s", "s", &["a", "b"])]);
    let fewer = generation.updated([publish("default", "s", "s", &["a"])]);
    let removed = fewer.view(&EVERYTHING).table(ListKind::Tools).removed("s_b").unwrap();
    assert!(removed.problem.message.contains("no longer offers"), "{removed:?}");
    let none = fewer.updated([withdraw("default", "s"), withdraw("default", "never-there")]);
    let removed = none.view(&EVERYTHING).table(ListKind::Tools).removed("s_a").unwrap();
    assert_eq!(removed.server, ObjectKey::new("default", "s"));
    assert_eq!(removed.problem.message, "its file was deleted");
    assert!(none.view(&EVERYTHING).table(ListKind::Tools).removed("s_c").is_none());
    let reattached = none.updated([publish("default", "s", "s", &["a"])]);
    assert!(reattached.view(&EVERYTHING).table(ListKind::Tools).removed("s_a").is_none());
}

#[test]
fn removed_names_are_bounded() {
    let many: Vec<String> = (0..5_000).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let generation =
        generation([publish("default", "s", "", &many)]).updated([publish("default", "s", "", &[])]);
    let view = generation.view(&EVERYTHING);
    let recorded = many.iter().filter(|name| view.table(ListKind::Tools).removed(name).is_some()).count();
    assert_eq!(recorded, 4_096);
    assert!(view.table(ListKind::Tools).removed("t4999").is_some());
}

#[test]
fn stale_namespaces_are_removed() {
    let names: Vec<_> = (0..=MIN_NAMESPACES_BEFORE_CLEANUP).map(|number| format!("n{number:02}")).collect();
    let mut now = Instant::now();
    let mut generation = empty_generation();
    for name in &names {
        generation = generation.with_updates([publish(name, "s", "s", &["t"])], now);
        generation = generation.with_updates([withdraw(name, "s")], now);
    }
    let has_record = |generation: &Generation, name: &str| {
        let view = ViewName::Namespace(name.into());
        generation.view(&view).table(ListKind::Tools).removed("s_t").is_some()
    };
    assert!(names.iter().all(|name| has_record(&generation, name)), "just removed");
    generation = generation.with_updates([publish("n00", "s", "s", &["t"])], now);
    now += 2 * REMOVED_NAMESPACE_RETENTION;
    for name in &names {
        generation = generation.with_updates([publish(&format!("later-{name}"), "s", "s", &["t"])], now);
    }
    assert!(!names.iter().any(|name| has_record(&generation, name)));
    assert_eq!(
        generation.view(&ViewName::Namespace("n00".into())).table(ListKind::Tools).len(),
        1,
        "a namespace with items"
    );
    assert_eq!(generation.namespaces.len(), names.len() + 1);
}

#[test]
fn table_version_changes_only_when_the_list_changes() {
    let version =
        |generation: &Generation, view: &ViewName| generation.view(view).table(ListKind::Tools).version();
    let team = ViewName::Namespace("team-a".into());
    let first = generation([publish("default", "s", "s", &["a"]), publish("team-a", "s", "s", &["a"])]);
    let same = first.updated([publish("default", "s", "s", &["a"])]);
    assert_eq!(version(&first, &EVERYTHING), version(&same, &EVERYTHING));
    let mut other = section("default", "s", "s", &[]);
    other.lists =
        Arc::new(ServerLists { tools: vec![tool("a", "another description")], ..ServerLists::default() });
    let changed = same.updated([CatalogUpdate::Publish(Arc::new(other))]);
    assert!(version(&changed, &EVERYTHING) > version(&same, &EVERYTHING));
    assert_eq!(version(&changed, &team), version(&same, &team));
    // The newer route replaces the old one though the list is unchanged.
    let route = same.view(&EVERYTHING).table(ListKind::Tools).route("s_a").unwrap();
    assert!(Arc::ptr_eq(route.section(), same.section(&ObjectKey::new("default", "s")).unwrap()));
}

#[test]
fn first_page_has_items_of_every_server() {
    let many: Vec<String> = (0..2_500).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let servers = generation([
        publish("default", "a", "a", &many),
        publish("default", "m", "m", &many[..700]),
        publish("default", "z", "z", &["x", "y"]),
    ]);
    let (mut pages, mut cursor) = (Vec::new(), None);
    loop {
        let page =
            servers.view(&EVERYTHING).table(ListKind::Tools).page(cursor.as_deref(), Era::Legacy).unwrap();
        let tools: Vec<serde_json::Value> = serde_json::from_slice(&page.items).unwrap();
        pages.push(tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 1000, 202]);
    let of = |prefix: &str| pages[0].iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!([of("a_"), of("m_"), of("z_")], [499, 499, 2]);
    assert!(pages.iter().all(|page| page.is_sorted()));
    let all: BTreeSet<_> = pages.iter().flatten().collect();
    assert_eq!(all.len(), 3_202, "each item once");
}

#[test]
fn list_is_paged_and_cursor_survives_removal_of_its_name() {
    let many: Vec<String> = (0..2_500).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let first = generation([publish("default", "s", "", &many)]);
    let page = first.view(&EVERYTHING).table(ListKind::Tools).page(None, Era::Modern).unwrap();
    let cursor = page.cursor.unwrap();
    let fewer: Vec<&str> = many.iter().copied().filter(|name| !matches!(*name, "t0999" | "t1500")).collect();
    let next = first.updated([publish("default", "s", "", &fewer)]);
    let next_page = next.view(&EVERYTHING).table(ListKind::Tools).page(Some(&cursor), Era::Modern).unwrap();
    let items = String::from_utf8_lossy(&next_page.items);
    assert!(items.contains("t1000") && items.contains("t1501"), "{items}");
    assert!(!items.contains("t0998") && !items.contains("t1500"), "{items}");
    assert!(next.view(&EVERYTHING).table(ListKind::Tools).page(Some("*"), Era::Modern).is_err());

    let long_text = "x".repeat(600_000);
    let mut large = section("default", "s", "", &[]);
    let tools = ["a", "b", "c"].iter().map(|name| tool(name, &long_text)).collect();
    large.lists = Arc::new(ServerLists { tools, ..ServerLists::default() });
    let large = first.updated([CatalogUpdate::Publish(Arc::new(large))]);
    let mut cursor = None;
    let mut pages = 0;
    while let ListPage { cursor: Some(next), .. } =
        large.view(&EVERYTHING).table(ListKind::Tools).page(cursor.as_deref(), Era::Modern).unwrap()
    {
        cursor = Some(next);
        pages += 1;
    }
    assert_eq!(pages, 1);
}

use crate::catalog::ListPage;
