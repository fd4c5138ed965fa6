use proptest::prelude::*;

use super::*;
use crate::catalog::Lists;
use crate::catalog::testing::{section, tool};

const DEFAULT: ViewName = ViewName::Everything;

fn publish(namespace: &str, name: &str, prefix: &str, tools: &[&str]) -> Step {
    Step::Publish(Arc::new(section(namespace, name, prefix, tools)))
}

fn withdraw(namespace: &str, name: &str) -> Step {
    let problem = Problem::new(Reason::Removed, "its file was deleted");
    Step::Withdraw(ObjectKey::new(namespace, name), problem)
}

fn start() -> Generation {
    Generation::new(Some("default".into()), Instant::now())
}

impl Generation {
    fn next(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.after(steps, Instant::now())
    }
}

fn generation(steps: impl IntoIterator<Item = Step>) -> Generation {
    start().next(steps)
}

fn names(view: &View) -> Vec<String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(&view.of(List::Tools).page(None).unwrap().items).unwrap();
    list.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn owner<'a>(view: &'a View, name: &str) -> (&'a str, &'a str) {
    let route = view.of(List::Tools).route(name).unwrap();
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
    assert_eq!(names(generation.view(&DEFAULT)), ["gh_search", "team-a_a_b", "team-a_gh_search"]);
    assert_eq!(names(generation.view(&team)), ["a.b", "gh_search"]);
    assert!(generation.view(&ViewName::Namespace("none".into())).of(List::Tools).is_empty());
    assert!(generation.conflicting().is_empty());
}

#[test]
fn the_first_keeps_an_equal_name_and_the_other_is_told() {
    let both = [publish("default", "a-b", "x", &["t"]), publish("default", "a_b", "x", &["t", "u"])];
    let before = generation(both.clone());
    let view = before.view(&DEFAULT);
    assert_eq!(owner(view, "x_t"), ("a-b", "t"));
    let [conflict, _in_its_namespace] = before.conflicts(&ObjectKey::new("default", "a_b")) else {
        panic!("{:?}", before.conflicting());
    };
    assert_eq!((&*conflict.wanted, &*conflict.holder.name), ("x_t", "a-b"));
    assert_eq!(owner(view, &conflict.given), ("a_b", "t"));
    assert!(before.conflicts(&ObjectKey::new("default", "a-b")).is_empty());

    // The first goes: its name passes on, the tail is remembered, nothing else moves.
    let after = before.next([withdraw("default", "a-b")]);
    let view = after.view(&DEFAULT);
    assert_eq!(names(view), ["x_t", "x_u"]);
    assert_eq!(owner(view, "x_t"), ("a_b", "t"));
    assert!(view.of(List::Tools).gone(&conflict.given).unwrap().problem.message.contains("\"x_t\""));
    assert!(after.conflicting().is_empty());

    // And comes back.
    let again = after.next([both[0].clone()]);
    assert_eq!(names(again.view(&DEFAULT)), names(before.view(&DEFAULT)));
    assert!(again.view(&DEFAULT).of(List::Tools).gone(&conflict.given).is_none());
}

#[test]
fn two_tools_of_one_server_can_fold_to_one_name() {
    let generation = generation([publish("default", "s", "s", &["a.b", "a b", "a_b"])]);
    let view = generation.view(&DEFAULT);
    assert_eq!(view.of(List::Tools).len(), 3);
    assert_eq!(owner(view, "s_a_b"), ("s", "a b"));
    let conflicts = generation.conflicts(&ObjectKey::new("default", "s"));
    let given: Vec<_> = conflicts.iter().map(|conflict| &*conflict.name).collect();
    assert_eq!(given, ["a.b", "a_b", "a.b", "a_b"]);
}

#[test]
fn a_name_made_to_meet_a_tail_takes_no_name_away() {
    let two = [publish("default", "a", "", &["t"]), publish("default", "z", "", &["t"])];
    let tail = generation(two.clone()).conflicts(&ObjectKey::new("default", "z"))[0].given.clone();
    let generation = generation(two).next([publish("default", "a", "", &["t", &tail])]);
    let view = generation.view(&DEFAULT);
    assert_eq!(owner(view, &tail), ("a", &*tail));
    assert_eq!(view.of(List::Tools).len(), 3);
    let given = &generation.conflicts(&ObjectKey::new("default", "z"))[0].given;
    assert_eq!(owner(view, given), ("z", "t"));
    assert_ne!(given, &tail);
}

#[test]
fn what_went_is_remembered_with_its_reason() {
    let generation = generation([publish("default", "s", "s", &["a", "b"])]);
    let fewer = generation.next([publish("default", "s", "s", &["a"])]);
    let gone = fewer.view(&DEFAULT).of(List::Tools).gone("s_b").unwrap();
    assert!(gone.problem.message.contains("no longer offers"), "{gone:?}");
    let none = fewer.next([withdraw("default", "s"), withdraw("default", "never-there")]);
    let gone = none.view(&DEFAULT).of(List::Tools).gone("s_a").unwrap();
    assert_eq!(gone.server, ObjectKey::new("default", "s"));
    assert_eq!(gone.problem.message, "its file was deleted");
    assert!(none.view(&DEFAULT).of(List::Tools).gone("s_c").is_none());
    let back = none.next([publish("default", "s", "s", &["a"])]);
    assert!(back.view(&DEFAULT).of(List::Tools).gone("s_a").is_none());
}

#[test]
fn memory_of_what_went_is_bounded() {
    let many: Vec<String> = (0..5_000).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let generation = generation([publish("default", "s", "", &many), publish("default", "s", "", &[])]);
    let view = generation.view(&DEFAULT);
    let remembered = many.iter().filter(|name| view.of(List::Tools).gone(name).is_some()).count();
    assert_eq!(remembered, 4_096);
    assert!(view.of(List::Tools).gone("t4999").is_some());
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
        generation.view(&view).of(List::Tools).gone("s_t").is_some()
    };
    assert!(names.iter().all(|name| remembers(&generation, name)), "they went just now");
    generation = generation.after([publish("n00", "s", "s", &["t"])], now);
    now += 2 * REMEMBERED;
    for name in &names {
        generation = generation.after([publish(&format!("later-{name}"), "s", "s", &["t"])], now);
    }
    assert!(!names.iter().any(|name| remembers(&generation, name)));
    assert_eq!(
        generation.view(&ViewName::Namespace("n00".into())).of(List::Tools).len(),
        1,
        "one that is there"
    );
    assert_eq!(generation.namespaces.len(), names.len() + 1);
}

#[test]
fn the_version_moves_only_with_the_list() {
    let version = |generation: &Generation, view: &ViewName| generation.view(view).of(List::Tools).version();
    let team = ViewName::Namespace("team-a".into());
    let first = generation([publish("default", "s", "s", &["a"]), publish("team-a", "s", "s", &["a"])]);
    let same = first.next([publish("default", "s", "s", &["a"])]);
    assert_eq!(version(&first, &DEFAULT), version(&same, &DEFAULT));
    let mut other = section("default", "s", "s", &[]);
    other.lists = Arc::new(Lists { tools: vec![tool("a", "other words")], ..Lists::default() });
    let changed = same.next([Step::Publish(Arc::new(other))]);
    assert!(version(&changed, &DEFAULT) > version(&same, &DEFAULT));
    assert_eq!(version(&changed, &team), version(&same, &team));
    // The newer route is in force though nothing is listed differently.
    let route = same.view(&DEFAULT).of(List::Tools).route("s_a").unwrap();
    assert!(Arc::ptr_eq(route.section(), same.section(&ObjectKey::new("default", "s")).unwrap()));
}

#[test]
fn a_list_is_paged_and_a_cursor_outlives_its_name() {
    let many: Vec<String> = (0..2_500).map(|number| format!("t{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let first = generation([publish("default", "s", "", &many)]);
    let page = first.view(&DEFAULT).of(List::Tools).page(None).unwrap();
    let cursor = page.cursor.unwrap();
    let next = first.next([withdraw("default", "s"), publish("default", "z", "", &["t0500", "t1500"])]);
    let rest = next.view(&DEFAULT).of(List::Tools).page(Some(&cursor)).unwrap();
    let items = String::from_utf8_lossy(&rest.items);
    assert!(items.contains("t1500") && !items.contains("t0500"), "{items}");
    assert_eq!(rest.cursor, None);
    assert!(next.view(&DEFAULT).of(List::Tools).page(Some("*")).is_err());

    let big = "x".repeat(600_000);
    let mut heavy = section("default", "s", "", &[]);
    let tools = ["a", "b", "c"].iter().map(|name| tool(name, &big)).collect();
    heavy.lists = Arc::new(Lists { tools, ..Lists::default() });
    let heavy = first.next([Step::Publish(Arc::new(heavy))]);
    let mut cursor = None;
    let mut pages = 0;
    while let Page { cursor: Some(next), .. } =
        heavy.view(&DEFAULT).of(List::Tools).page(cursor.as_deref()).unwrap()
    {
        cursor = Some(next);
        pages += 1;
    }
    assert_eq!(pages, 1);
}

use crate::catalog::Page;

/// Few servers, prefixes and names, so that they meet all the time, tails included.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tools = [
        "t",
        "t.",
        "t_",
        "x_t",
        "a_x_t",
        "x_t_5f5c5e",
        "very-long-name-that-does-not-fit-into-what-there-is",
    ];
    let section = (
        prop::sample::select(vec!["a", "default"]),
        prop::sample::select(vec!["s1", "s2", "s3"]),
        prop::sample::select(vec!["", "x", "x_"]),
        prop::sample::subsequence(tools.to_vec(), 0..=tools.len()),
    );
    let step = (section, any::<bool>()).prop_map(|((namespace, name, prefix, tools), there)| {
        if there { publish(namespace, name, prefix, &tools) } else { withdraw(namespace, name) }
    });
    prop::collection::vec(step, 1..16)
}

fn told(generation: &Generation) -> (Vec<Page>, Vec<Conflict>) {
    let views = [DEFAULT, ViewName::Namespace("a".into()), ViewName::Namespace("default".into())];
    let lists = views.map(|view| generation.view(&view).of(List::Tools).page_after(None));
    let conflicts = generation.conflicting().values().flat_map(|conflicts| conflicts.iter().cloned());
    (lists.into(), conflicts.collect())
}

proptest! {
    #[test]
    fn what_agents_see_does_not_depend_on_how_it_came_about(steps in steps(), seed in any::<u64>()) {
        let mut generation = start();
        for step in steps {
            let next = generation.next([step]);
            for view in [DEFAULT, ViewName::Namespace("a".into())] {
                let [before, after] = [&generation, &next].map(|generation| generation.view(&view).of(List::Tools));
                // Put together once, and again only where the list changed.
                prop_assert_eq!(before.page(None).unwrap(), before.page_after(None));
                let same = before.page_after(None) == after.page_after(None);
                prop_assert!(same || before.version() < after.version());
            }
            generation = next;
        }
        let mut sections: Vec<_> = generation.sections().cloned().map(Step::Publish).collect();
        // A shuffle is enough of a permutation, and shrinks.
        sections.sort_by_key(|step| crate::resource::Digest::of(format!("{seed}{}", step.key()).as_bytes()));
        let all = generation.sections().map(|section| section.lists.tools.len()).sum::<usize>();
        prop_assert_eq!(generation.view(&DEFAULT).of(List::Tools).len(), all);
        prop_assert_eq!(told(&generation), told(&start().next(sections)));
    }
}
