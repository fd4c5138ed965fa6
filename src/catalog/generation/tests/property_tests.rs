//! Random histories of updates: a name never routes to a different tool than before.

use proptest::prelude::*;

use super::*;

/// Generates updates with few servers, prefixes and names, so that conflicts are frequent.
fn history() -> impl Strategy<Value = Vec<Event>> {
    let tools = [
        "t",
        "t.",
        "t_",
        "x_t",
        "a_x_t",
        "поиск",
        "удалить",
        "very-long-name-that-does-not-fit-into-what-there-is",
    ];
    let server =
        || (prop::sample::select(vec!["a", "default"]), prop::sample::select(vec!["s1", "s2", "s3"]));
    let prefix = || prop::sample::select(vec!["", "x", "x_", "a_x"]);
    let tools = prop::sample::subsequence(tools.to_vec(), 0..=tools.len());
    let event = prop_oneof![
        3 => (server(), prefix(), 0..3_i64).prop_map(|(server, prefix, second)| Event::Declare(server, prefix, second)),
        6 => (server(), prefix(), tools).prop_map(|(server, prefix, tools)| Event::Publish(server, prefix, tools)),
        2 => server().prop_map(Event::Withdraw),
        2 => server().prop_map(Event::Remove),
        1 => Just(Event::Settle),
        2 => prop::sample::select(vec![1, 30, 61]).prop_map(Event::AdvanceMinutes),
        1 => any::<bool>().prop_map(Event::Restart),
    ];
    prop::collection::vec(event, 1..40)
}

type Server = (&'static str, &'static str);

#[derive(Clone, Debug)]
enum Event {
    Declare(Server, &'static str, i64),
    Publish(Server, &'static str, Vec<&'static str>),
    Withdraw(Server),
    Remove(Server),
    Settle,
    AdvanceMinutes(u64),
    /// A restart; true if the declarations are complete before the first server is published.
    Restart(bool),
}

/// The last target of each name: its server and tool, the last instant at which the name was routed or its server
/// declared, and false if the server released the name.
type RoutedNames = BTreeMap<(ViewName, String), (ObjectKey, String, Instant, bool)>;

/// Records the target of each name. Fails if a name has a new target within one hour, or while its server is declared.
fn assert_names_are_stable(
    generation: &Generation,
    declared: &BTreeMap<ObjectKey, CatalogUpdate>,
    routed: &mut RoutedNames,
) {
    let now = generation.created_at;
    for (server, _, last, is_reserved) in routed.values_mut() {
        if *is_reserved && declared.contains_key(server) && now.duration_since(*last) < RESERVATION_PERIOD {
            *last = now;
        }
    }
    for view in [EVERYTHING, ViewName::Namespace("a".into()), ViewName::Namespace("default".into())] {
        let table = generation.view(&view).table(ListKind::Tools);
        let routes: Vec<_> = table.routes().chain(table.suffixed()).collect();
        for (name, found) in routes {
            let route = table.route(name).unwrap();
            assert!(Arc::ptr_eq(route, found) || route.item_id() == found.item_id(), "{name}");
            let (server, tool) = (route.section().key.clone(), route.name().to_owned());
            let target = (server.clone(), tool.clone(), now, true);
            let previous = routed.insert((view.clone(), name.to_owned()), target);
            if let Some((last_server, last_tool, last, _)) = previous {
                let same = last_server == server && last_tool == tool;
                let expired = now.duration_since(last) >= RESERVATION_PERIOD;
                assert!(
                    same || expired,
                    "{view:?} {name} routed to {last_server} {last_tool}, and now to {server} {tool}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn name_never_routes_to_a_different_tool(history in history()) {
        let all: Vec<_> = ["a", "default"].into_iter()
            .flat_map(|namespace| ["s1", "s2", "s3"].map(|name| ObjectKey::new(namespace, name))).collect();
        let (mut generation, mut declared, mut routed) = (empty_generation(), BTreeMap::new(), RoutedNames::new());
        for event in history {
            let restarted = matches!(event, Event::Restart(_));
            let next = match event {
                Event::Declare((namespace, name), prefix, second) => {
                    let step = declare(namespace, name, second, prefix);
                    declared.insert(ObjectKey::new(namespace, name), step.clone());
                    generation.updated([step])
                }
                Event::Publish((namespace, name), prefix, tools) => {
                    let key = ObjectKey::new(namespace, name);
                    if generation.section(&key).is_some_and(|section| section.prefix != prefix) {
                        let given_up = routed.values_mut().filter(|(server, ..)| *server == key);
                        given_up.for_each(|(_, _, _, is_reserved)| *is_reserved = false);
                    }
                    generation.updated([publish(namespace, name, prefix, &tools)])
                }
                Event::Withdraw((namespace, name)) => generation.updated([withdraw(namespace, name)]),
                Event::Remove((namespace, name)) => {
                    declared.remove(&ObjectKey::new(namespace, name));
                    generation.updated([remove(namespace, name)])
                }
                Event::Settle => generation.updated([CatalogUpdate::Settle]),
                Event::AdvanceMinutes(minutes) => generation.advanced_by(Duration::from_mins(minutes)),
                Event::Restart(complete) => {
                    let next = generation.restarted(all.clone()).updated(declared.values().cloned());
                    if complete { next.updated([CatalogUpdate::DeclarationsComplete]) } else { next }
                }
            };
            for view in [EVERYTHING, ViewName::Namespace("a".into())] {
                let table = |generation: &Generation| generation.view(&view).table(ListKind::Tools).clone();
                let [before, after] = [&generation, &next].map(table);
                // The first page is built once, and again only if the list changed.
                prop_assert_eq!(before.page(None, Era::Modern).unwrap(), before.page_after(None, Era::Modern));
                let same = before.page_after(None, Era::Modern) == after.page_after(None, Era::Modern);
                prop_assert!(same || before.version() < after.version() || restarted);
            }
            generation = next;
            assert_names_are_stable(&generation, &declared, &mut routed);
            let items = generation.sections().map(|section| section.lists.tools.len()).sum::<usize>();
            let table = generation.view(&EVERYTHING).table(ListKind::Tools);
            prop_assert_eq!((table.len(), table.suffixed().count()), (items, items));
        }
    }

    /// A new process, another replica or another order of attaching give servers that are declared at startup the same
    /// names.
    #[test]
    fn initial_names_do_not_depend_on_attach_order(order in Just((0..4_usize).collect::<Vec<_>>()).prop_shuffle()) {
        let servers = [("s1", 3, "x"), ("s2", 1, "x"), ("s3", 2, "x"), ("s4", 2, "y")];
        let declared = servers.map(|(name, second, prefix)| declare("default", name, second, prefix));
        let mut generation = generation(declared).updated([CatalogUpdate::DeclarationsComplete]);
        for number in order {
            let (name, _, prefix) = servers[number];
            generation = generation.updated([publish("default", name, prefix, &["t", "u"])]);
        }
        let generation = generation.updated([CatalogUpdate::Settle]);
        prop_assert_eq!(owner(generation.view(&EVERYTHING), "x_t"), ("s2", "t"));
        prop_assert_eq!(owner(generation.view(&EVERYTHING), "y_t"), ("s4", "t"));
    }
}
