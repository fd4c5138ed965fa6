mod histories;

use super::*;
use crate::catalog::NameHolder;
use crate::catalog::testing::{section, tool};
use crate::upstream::ServerLists;

const DEFAULT: ViewName = ViewName::Everything;

fn publish(namespace: &str, name: &str, prefix: &str, tools: &[&str]) -> CatalogUpdate {
    CatalogUpdate::Publish(Arc::new(section(namespace, name, prefix, tools)))
}

fn withdraw(namespace: &str, name: &str) -> CatalogUpdate {
    let problem = Problem::new(Reason::Removed, "its file was deleted");
    CatalogUpdate::Withdraw(ObjectKey::new(namespace, name), problem)
}

/// A server that was created in this second.
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

fn start() -> Generation {
    Generation::new(Some("default".into()), ReservedNames::default(), Instant::now())
}

impl Generation {
    fn next(&self, steps: impl IntoIterator<Item = CatalogUpdate>) -> Self {
        self.after(steps, self.made_at)
    }

    fn later(&self, by: Duration) -> Self {
        self.after([], self.made_at + by)
    }

    /// The first generation of the next run, with what was written down of these servers.
    fn restarted(&self, servers: impl IntoIterator<Item = ObjectKey>) -> Self {
        let mut kept = ReservedNames::default();
        for server in servers {
            for (own, until) in self.names_of(&server) {
                kept.keep(&server, own, until);
            }
        }
        Self::new(Some("default".into()), kept, self.made_at)
    }
}

fn generation(steps: impl IntoIterator<Item = CatalogUpdate>) -> Generation {
    start().next(steps)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// The one name under which a tool is listed.
fn name_of(generation: &Generation, server: &str, tool: &str) -> String {
    let view = generation.view(&DEFAULT);
    let found = view
        .of(ListKind::Tools)
        .routes()
        .filter(|(_, route)| route.section().key == key(server) && route.name() == tool);
    let [(name, _)] = found.collect::<Vec<_>>()[..] else { panic!("{server} {tool}") };
    name.to_owned()
}

fn gone(generation: &Generation, name: &str) -> String {
    let table = generation.view(&DEFAULT).of(ListKind::Tools);
    assert!(table.route(name).is_none(), "{name}");
    table.gone(name).map(|gone| gone.problem.message.clone()).unwrap_or_default()
}

fn names(view: &View) -> Vec<String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(&view.of(ListKind::Tools).page(None).unwrap().items).unwrap();
    list.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn owner<'a>(view: &'a View, name: &str) -> (&'a str, &'a str) {
    let route = view.of(ListKind::Tools).route(name).unwrap();
    (&route.section().key.name, route.name())
}

#[test]
fn the_home_namespace_is_not_named_and_others_are() {
    let generation = generation([
        publish("default", "gh", "gh", &["search"]),
        publish("team-a", "gh", "gh", &["search"]),
        publish("team-a", "raw", "", &["a.b"]),
    ]);
    let team = ViewName::Namespace("team-a".into());
    let all = names(generation.view(&DEFAULT));
    assert_eq!((&*all[0], &*all[2]), ("gh_search", "team-a_gh_search"));
    assert!(all[1].starts_with("team-a_a_b_"), "{all:?}");
    assert_eq!(names(generation.view(&team)), ["a.b", "gh_search"]);
    assert!(generation.view(&ViewName::Namespace("none".into())).of(ListKind::Tools).is_empty());
    assert!(generation.conflicting().is_empty());
}

#[test]
fn who_was_created_first_has_an_equal_name_and_the_other_is_told() {
    let before = generation([
        declare("default", "a", 2, "x"),
        declare("default", "b", 1, "x"),
        publish("default", "a", "x", &["t", "u"]),
        publish("default", "b", "x", &["t"]),
    ]);
    let view = before.view(&DEFAULT);
    assert_eq!(owner(view, "x_t"), ("b", "t"));
    let [conflict, _in_its_namespace] = before.conflicts(&key("a")) else {
        panic!("{:?}", before.conflicting());
    };
    assert_eq!((&*conflict.wanted, &*conflict.holder.name, conflict.holding), ("x_t", "b", NameHolder::Has));
    assert_eq!(owner(view, &conflict.given), ("a", "t"));
    assert!(before.conflicts(&key("b")).is_empty());
    let tailed =
        view.of(ListKind::Tools).tailed().find(|(_, route)| route.section().key == key("b")).unwrap().0;
    assert_eq!(owner(view, tailed), ("b", "t"), "it is routed though it is not listed");
    assert_eq!(names(view).len(), 3);

    // It goes, and keeps its name while it is declared.
    let away = before.next([withdraw("default", "b")]).later(2 * KEPT_FOR);
    assert_eq!(gone(&away, "x_t"), "its file was deleted");
    assert_eq!(away.conflicts(&key("a"))[0].holding, NameHolder::Has);
    assert_eq!(name_of(&away, "a", "t"), conflict.given);
    let created = jiff::Timestamp::from_second(1).unwrap();
    let suspended =
        away.next([CatalogUpdate::Declare(key("b"), CatalogDeclaration { created, prefix: None })]);
    assert_eq!(name_of(&suspended.later(2 * KEPT_FOR), "a", "t"), conflict.given);
    let back = suspended.next([publish("default", "b", "x", &["t"])]);
    assert_eq!(owner(back.view(&DEFAULT), "x_t"), ("b", "t"));

    // It is declared no more: an hour later the other has the name, and can be reached by the tail still.
    let removed = away.next([remove("default", "b")]);
    assert_eq!(removed.conflicts(&key("a"))[0].holding, NameHolder::Had);
    assert_eq!(removed.due(), Some(removed.made_at + KEPT_FOR));
    assert_eq!(names(removed.later(KEPT_FOR / 2).view(&DEFAULT)), names(away.view(&DEFAULT)));
    let free = removed.later(KEPT_FOR);
    assert_eq!(names(free.view(&DEFAULT)), ["x_t", "x_u"]);
    for name in ["x_t", &*conflict.given] {
        assert_eq!(owner(free.view(&DEFAULT), name), ("a", "t"));
    }
    assert!(free.conflicting().is_empty() && free.number() > removed.number());
    assert_eq!((free.due(), free.later(KEPT_FOR).number()), (None, free.number()));
}

#[test]
fn who_has_a_name_keeps_it_from_an_older_server_that_wants_it_later() {
    let before = generation([
        declare("default", "old", 1, "y"),
        declare("default", "new", 2, "x"),
        publish("default", "old", "y", &["t"]),
        publish("default", "new", "x", &["t"]),
    ]);
    let edited = before.next([declare("default", "old", 1, "x"), publish("default", "old", "x", &["t"])]);
    assert_eq!(owner(edited.view(&DEFAULT), "x_t"), ("new", "t"));
    let tailed = name_of(&edited, "old", "t");
    assert_eq!(gone(&edited, "y_t"), format!("it is called {tailed:?} now"));
    // So it is after a restart, whoever comes first.
    for first in ["old", "new"] {
        let again = edited.restarted([key("old"), key("new")]).next([
            declare("default", "old", 1, "x"),
            declare("default", "new", 2, "x"),
            CatalogUpdate::Complete,
            publish("default", first, "x", &["t"]),
        ]);
        let both = again.next(["old", "new"].map(|name| publish("default", name, "x", &["t"])));
        assert_eq!(names(both.view(&DEFAULT)), names(edited.view(&DEFAULT)), "{first} first");
        assert_eq!(owner(both.view(&DEFAULT), "x_t"), ("new", "t"));
    }
}

#[test]
fn a_name_is_kept_over_a_restart_for_a_server_that_is_away_and_an_hour_for_one_that_is_gone() {
    let before = generation([declare("default", "a", 1, "x"), publish("default", "a", "x", &["t"])]);
    for declared in [true, false] {
        let mut steps = vec![declare("default", "b", 2, "x"), CatalogUpdate::Complete, CatalogUpdate::Settle];
        if declared {
            steps.insert(0, declare("default", "a", 1, "x"));
        }
        let again =
            before.restarted([key("a")]).next(steps).next([publish("default", "b", "x", &["t", "u"])]);
        assert_ne!(name_of(&again, "b", "t"), "x_t");
        assert_eq!(name_of(&again, "b", "u"), "x_u", "nobody had it");
        let later = again.later(KEPT_FOR);
        assert_eq!(name_of(&later, "b", "t") == "x_t", !declared);
    }
}

#[test]
fn at_the_start_equal_names_wait_for_older_servers_to_be_attached_or_fail() {
    let declared =
        [declare("default", "a", 1, "x"), declare("default", "b", 2, "x"), CatalogUpdate::Complete];
    let first = generation(declared).next([publish("default", "b", "x", &["t"])]);
    let given = name_of(&first, "b", "t");
    assert_eq!(
        (&*first.conflicts(&key("b"))[0].given, first.conflicts(&key("b"))[0].holding),
        (&*given, NameHolder::MayHave)
    );
    let both = first.next([publish("default", "a", "x", &["t"])]);
    assert_eq!(owner(both.view(&DEFAULT), "x_t"), ("a", "t"));
    assert_eq!(both.conflicts(&key("b"))[0].holding, NameHolder::Has);
    let failed = first.next([CatalogUpdate::Settle]);
    assert_eq!(name_of(&failed, "b", "t"), "x_t");
    assert_eq!(gone(&failed, "x_u"), "");
    assert_eq!(owner(failed.view(&DEFAULT), &given), ("b", "t"));
    assert!(failed.conflicting().is_empty() && failed.number() > first.number());
    let late = failed.next([publish("default", "a", "x", &["t"])]);
    assert_eq!(owner(late.view(&DEFAULT), "x_t"), ("b", "t"), "agents know it by then");
}

#[test]
fn a_tool_that_comes_later_takes_no_name_of_another() {
    let before = generation([declare("default", "s", 1, "x"), publish("default", "s", "x", &["поиск"])]);
    let name = name_of(&before, "s", "поиск");
    let tools = ["а_удалить_все", "поиск", "a_b", "a.b", "a b", "a__b"];
    let after = before.next([publish("default", "s", "x", &tools)]);
    assert_eq!(name_of(&after, "s", "поиск"), name);
    assert_eq!(name_of(&after, "s", "a_b"), "x_a_b");
    assert_eq!(names(after.view(&DEFAULT)).len(), tools.len());
    assert!(after.conflicting().is_empty(), "no other server is to blame");

    // Another prefix can make the name of one tool from that of another.
    let edited = generation([declare("default", "s", 1, "x"), publish("default", "s", "x", &["a_b"])])
        .next([publish("default", "s", "x_a", &["b", "a_b"])]);
    assert_eq!(gone(&edited, "x_a_b"), "it is called \"x_a_a_b\" now");
    assert_ne!(name_of(&edited, "s", "b"), "x_a_b");
    let conflict = &edited.conflicts(&key("s"))[0];
    assert_eq!((&*conflict.holder.name, conflict.holding), ("s", NameHolder::Had));
    // It gave its names up: they are free in an hour, though it is declared, also after a restart.
    let restarted = edited.restarted([key("s")]).next([declare("default", "s", 1, "x_a")]);
    for edited in [edited, restarted] {
        let published = edited.later(KEPT_FOR).next([publish("default", "s", "x_a", &["b", "a_b"])]);
        assert_eq!(name_of(&published, "s", "b"), "x_a_b");
    }
}

#[test]
fn a_name_made_to_meet_a_tail_has_a_tail_itself() {
    let tail = name_of(&generation([publish("default", "a", "", &["ü"])]), "a", "ü");
    let generation =
        generation([publish("default", "z", "", &["t", &tail]), publish("default", "a", "", &["ü"])]);
    assert_eq!(owner(generation.view(&DEFAULT), &tail), ("a", "ü"));
    assert_eq!(generation.view(&DEFAULT).of(ListKind::Tools).len(), 3);
}

#[test]
fn a_uri_is_kept_as_a_name_is() {
    let publish = |name: &str| {
        let mut section = section("default", name, name, &[]);
        let item = crate::upstream::Item::read(ListKind::Resources, r#"{"uri":"x:1"}"#).unwrap();
        section.lists = Arc::new(ServerLists { resources: vec![item], ..ServerLists::default() });
        CatalogUpdate::Publish(Arc::new(section))
    };
    let owner = |generation: &Generation| {
        let place = generation.view(&DEFAULT).resource("x:1");
        place.map(|place| place.section.key.name.to_string())
    };
    let both = generation([
        declare("default", "b", 1, "b"),
        declare("default", "a", 2, "a"),
        publish("b"),
        publish("a"),
    ]);
    assert_eq!(owner(&both).as_deref(), Some("b"));
    let one = both.next([remove("default", "b"), withdraw("default", "b")]);
    assert_ne!(owner(&one.later(KEPT_FOR / 2)).as_deref(), Some("b"));
    assert!(one.view(&DEFAULT).of(ListKind::Resources).route("x:1").is_none());
    assert_eq!(owner(&one.later(KEPT_FOR)).as_deref(), Some("a"));
}

#[test]
fn what_went_is_remembered_with_its_reason() {
    let generation = generation([publish("default", "s", "s", &["a", "b"])]);
    let fewer = generation.next([publish("default", "s", "s", &["a"])]);
    let gone = fewer.view(&DEFAULT).of(ListKind::Tools).gone("s_b").unwrap();
    assert!(gone.problem.message.contains("no longer offers"), "{gone:?}");
    let none = fewer.next([withdraw("default", "s"), withdraw("default", "never-there")]);
    let gone = none.view(&DEFAULT).of(ListKind::Tools).gone("s_a").unwrap();
    assert_eq!(gone.server, ObjectKey::new("default", "s"));
    assert_eq!(gone.problem.message, "its file was deleted");
    assert!(none.view(&DEFAULT).of(ListKind::Tools).gone("s_c").is_none());
    let back = none.next([publish("default", "s", "s", &["a"])]);
    assert!(back.view(&DEFAULT).of(ListKind::Tools).gone("s_a").is_none());
}

#[test]
fn memory_of_what_went_is_bounded() {
    let many: Vec<String> = (0..5_000).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let generation =
        generation([publish("default", "s", "", &many)]).next([publish("default", "s", "", &[])]);
    let view = generation.view(&DEFAULT);
    let remembered = many.iter().filter(|name| view.of(ListKind::Tools).gone(name).is_some()).count();
    assert_eq!(remembered, 4_096);
    assert!(view.of(ListKind::Tools).gone("t4999").is_some());
}

#[test]
fn a_namespace_that_is_long_gone_is_forgotten() {
    let names: Vec<_> = (0..=FEW).map(|number| format!("n{number:02}")).collect();
    let mut now = Instant::now();
    let mut generation = start();
    for name in &names {
        generation = generation.after([publish(name, "s", "s", &["t"])], now);
        generation = generation.after([withdraw(name, "s")], now);
    }
    let remembers = |generation: &Generation, name: &str| {
        let view = ViewName::Namespace(name.into());
        generation.view(&view).of(ListKind::Tools).gone("s_t").is_some()
    };
    assert!(names.iter().all(|name| remembers(&generation, name)), "they went just now");
    generation = generation.after([publish("n00", "s", "s", &["t"])], now);
    now += 2 * REMEMBERED;
    for name in &names {
        generation = generation.after([publish(&format!("later-{name}"), "s", "s", &["t"])], now);
    }
    assert!(!names.iter().any(|name| remembers(&generation, name)));
    assert_eq!(
        generation.view(&ViewName::Namespace("n00".into())).of(ListKind::Tools).len(),
        1,
        "one that is there"
    );
    assert_eq!(generation.namespaces.len(), names.len() + 1);
}

#[test]
fn the_version_moves_only_with_the_list() {
    let version =
        |generation: &Generation, view: &ViewName| generation.view(view).of(ListKind::Tools).version();
    let team = ViewName::Namespace("team-a".into());
    let first = generation([publish("default", "s", "s", &["a"]), publish("team-a", "s", "s", &["a"])]);
    let same = first.next([publish("default", "s", "s", &["a"])]);
    assert_eq!(version(&first, &DEFAULT), version(&same, &DEFAULT));
    let mut other = section("default", "s", "s", &[]);
    other.lists = Arc::new(ServerLists { tools: vec![tool("a", "other words")], ..ServerLists::default() });
    let changed = same.next([CatalogUpdate::Publish(Arc::new(other))]);
    assert!(version(&changed, &DEFAULT) > version(&same, &DEFAULT));
    assert_eq!(version(&changed, &team), version(&same, &team));
    // The newer route is in force though nothing is listed differently.
    let route = same.view(&DEFAULT).of(ListKind::Tools).route("s_a").unwrap();
    assert!(Arc::ptr_eq(route.section(), same.section(&ObjectKey::new("default", "s")).unwrap()));
}

#[test]
fn a_list_is_paged_and_a_cursor_outlives_its_name() {
    let many: Vec<String> = (0..2_500).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let first = generation([publish("default", "s", "", &many)]);
    let page = first.view(&DEFAULT).of(ListKind::Tools).page(None).unwrap();
    let cursor = page.cursor.unwrap();
    let next = first.next([withdraw("default", "s"), publish("default", "z", "", &["t0500", "t1500"])]);
    let rest = next.view(&DEFAULT).of(ListKind::Tools).page(Some(&cursor)).unwrap();
    let items = String::from_utf8_lossy(&rest.items);
    assert!(items.contains("t1500") && !items.contains("t0500"), "{items}");
    assert_eq!(rest.cursor, None);
    assert!(next.view(&DEFAULT).of(ListKind::Tools).page(Some("*")).is_err());

    let big = "x".repeat(600_000);
    let mut heavy = section("default", "s", "", &[]);
    let tools = ["a", "b", "c"].iter().map(|name| tool(name, &big)).collect();
    heavy.lists = Arc::new(ServerLists { tools, ..ServerLists::default() });
    let heavy = first.next([CatalogUpdate::Publish(Arc::new(heavy))]);
    let mut cursor = None;
    let mut pages = 0;
    while let ListPage { cursor: Some(next), .. } =
        heavy.view(&DEFAULT).of(ListKind::Tools).page(cursor.as_deref()).unwrap()
    {
        cursor = Some(next);
        pages += 1;
    }
    assert_eq!(pages, 1);
}

use crate::catalog::ListPage;
