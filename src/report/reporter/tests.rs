use std::sync::Mutex;

use imbl::OrdMap;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::catalog::{ReservedNames, catalog};
use crate::report::testing::{observation, section};
use crate::resource::SourceProblem;
use crate::resource::testing::{at, declared_server, key, server_spec, source_id};

/// Collects log lines.
#[derive(Clone, Default)]
struct LogLines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl LogLines {
    /// Returns the lines since the last call.
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Runs a test with a reporter, its snapshots and its log.
fn with_reporter(test: impl FnOnce(Reporter, watch::Receiver<StatusSnapshot>, LogLines)) {
    let lines = LogLines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_max_level(Level::DEBUG)
        .finish();
    let (reporter, store) = Reporter::new(source_id(), at(0));
    tracing::subscriber::with_default(subscriber, || test(reporter, store, lines));
}

fn synced_source() -> Arc<SourceState> {
    Arc::new(SourceState { synced: true, revision: "r1".into(), ..SourceState::default() })
}

fn desired(names: &[&str]) -> Desired {
    Desired {
        servers: names.iter().map(|name| (key(name), Arc::new(declared_server(name, 1)))).collect(),
        source: synced_source(),
        ..Desired::default()
    }
}

#[test]
fn state_change_is_logged_once() {
    with_reporter(|mut reporter, _, lines| {
        let both = Arc::new(desired(&["a", "b"]));
        reporter.apply_desired(&both, at(1));
        assert_eq!(
            lines.take(),
            [
                "DEBUG declared in a.yaml:1 resource=McpServer/default/a reason=Created",
                "DEBUG waiting for an attempt to connect resource=McpServer/default/a reason=Connecting",
                "DEBUG declared in b.yaml:1 resource=McpServer/default/b reason=Created",
                "DEBUG waiting for an attempt to connect resource=McpServer/default/b reason=Connecting",
            ]
        );
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(2));
        let problem = Problem::new(Reason::Exited, "exited with code 3");
        let failed = |attempt| Phase::Failed { problem: problem.clone(), retry_at: Some(at(60)), attempt };
        reporter.apply_observation(observation("b", 1, failed(2), None), at(2));
        assert_eq!(
            lines.take(),
            [
                " INFO attached over stdio, 3 tools resource=McpServer/default/a reason=Attached",
                " WARN exited with code 3; retrying at 00:01:00 UTC, attempt 2 \
                 resource=McpServer/default/b reason=Exited",
            ]
        );
        // An unchanged state, and a further failure for the same reason.
        reporter.apply_desired(&both, at(3));
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(3));
        let retrying = Phase::Connecting { attempt: 2, last_problem: Some(problem.clone()) };
        reporter.apply_observation(observation("b", 1, retrying, None), at(3));
        reporter.apply_observation(observation("b", 1, failed(3), None), at(3));
        assert_eq!(lines.take(), [""; 0]);

        reporter.apply_desired(&Arc::new(desired(&["b"])), at(4));
        reporter.apply_observation(observation("a", 1, Phase::Detached(Reason::Removed), None), at(5));
        assert_eq!(
            lines.take(),
            [
                " INFO no longer declared resource=McpServer/default/a reason=Removed",
                "DEBUG detached resource=McpServer/default/a reason=Detached",
            ]
        );
        assert!(reporter.observations.len() == 1, "observations of removed servers are dropped");
    });
}

#[test]
fn changes_while_stopped_are_reported_once() {
    with_reporter(|mut reporter, _, lines| {
        let desired_of = |objects: &[(&str, i64)]| Desired {
            servers: objects
                .iter()
                .map(|(name, generation)| (key(name), Arc::new(declared_server(name, *generation))))
                .collect(),
            ..Desired::default()
        };
        let mut occurrences = reporter.subscribe_occurrences();
        // All objects but "d" are older than this run.
        reporter.started_at = at(10);
        let previous = Arc::new(desired_of(&[("a", 1), ("b", 1), ("c", 1)]));
        let mut current = desired_of(&[("a", 1), ("b", 2)]);
        let mut created = declared_server("d", 1);
        created.meta.created_at = at(11);
        current.servers.insert(key("d"), Arc::new(created));
        current.previous_run = Some(previous.clone());
        // First not completely read, then read, then read again.
        reporter.apply_desired(&Arc::new(current.clone()), at(11));
        for second in 12..14 {
            current.source = Arc::new(SourceState {
                foreign_documents: usize::from(second == 13),
                ..SourceState::clone(&synced_source())
            });
            reporter.apply_desired(&Arc::new(current.clone()), at(second));
        }
        let mut reported = Vec::new();
        while let Ok(occurrence) = occurrences.try_recv() {
            if occurrence.action != EventAction::Reconcile {
                reported.push(format!("{} {}", occurrence.regarding.key.name, occurrence.reason));
            }
        }
        assert_eq!(reported, ["b Updated", "d Created", "c Removed"], "{:?}", lines.take());
        // Removed and declared once more: it is not the object of the earlier run.
        current.servers.remove(&key("a"));
        reporter.apply_desired(&Arc::new(current.clone()), at(14));
        let mut recreated = declared_server("a", 1);
        (recreated.meta.created_at, recreated.meta.uid) = (at(15), "another".into());
        current.servers.insert(key("a"), Arc::new(recreated));
        reporter.apply_desired(&Arc::new(current), at(15));
        let reported = std::iter::from_fn(|| occurrences.try_recv().ok()).map(|occurrence| occurrence.reason);
        assert_eq!(reported.collect::<Vec<_>>(), [Reason::Removed, Reason::Created]);
    });
}

#[test]
fn unchanged_state_is_not_published() {
    with_reporter(|mut reporter, mut store, _| {
        let both = Arc::new(desired(&["a", "b"]));
        reporter.apply_desired(&both, at(1));
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(2));
        reporter.publish();
        store.borrow_and_update();
        // The same declarations in another map and the same observation, later.
        let rebuilt = Desired {
            servers: both.servers.iter().map(|(key, object)| (key.clone(), object.clone())).collect(),
            source: synced_source(),
            ..Desired::default()
        };
        reporter.apply_desired(&Arc::new(rebuilt), at(9));
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(9));
        reporter.apply_conflicts(&OrdMap::new(), at(9));
        reporter.publish();
        assert!(!store.has_changed().unwrap());
    });
}

#[test]
fn single_change_updates_a_single_object() {
    with_reporter(|mut reporter, mut store, _| {
        let names: Vec<_> = (0..1000).map(|n| format!("s{n:04}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut many = desired(&names);
        reporter.apply_desired(&Arc::new(many.clone()), at(1));
        reporter.publish();
        let before = store.borrow_and_update().clone();
        many.servers.insert(key("s0500"), Arc::new(declared_server("s0500", 2)));
        reporter.apply_desired(&Arc::new(many), at(2));
        reporter.publish();
        let after = store.borrow_and_update().clone();
        // The object and its event.
        assert_eq!(after.resource_version, before.resource_version + 2);
        for (key, object) in &after.servers {
            let same = before.servers.get(key).is_some_and(|before| Arc::ptr_eq(before, object));
            assert_eq!(same, *key.name != *"s0500", "{key}");
        }
        assert_eq!(after.servers[&key("s0500")].resource_version, after.resource_version);
    });
}

#[test]
fn recreated_object_gets_a_new_status() {
    with_reporter(|mut reporter, _, lines| {
        reporter.apply_desired(&Arc::new(desired(&["a"])), at(1));
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(2));
        lines.take();
        let mut recreated = declared_server("a", 1);
        recreated.meta.uid = "another".into();
        let mut changed = desired(&[]);
        changed.servers.insert(key("a"), Arc::new(recreated));
        reporter.apply_desired(&Arc::new(changed), at(3));
        let status = &reporter.snapshot.servers[&key("a")].status;
        let actual = find_condition(&status.conditions, ConditionType::Ready).unwrap();
        assert_eq!((actual.status.as_str(), actual.last_transition_time.0), ("False", at(3)));
        let actual: Vec<_> =
            lines.take().iter().filter_map(|line| Some(line.rsplit_once('=')?.1.to_owned())).collect();
        assert_eq!(actual, ["Removed", "Created", "Connecting"]);
    });
}

#[test]
fn occurrences_carry_both_spec_digests() {
    with_reporter(|mut reporter, _, _| {
        let mut occurrences = reporter.subscribe_occurrences();
        let mut drain = || {
            std::iter::from_fn(|| occurrences.try_recv().ok())
                .map(|occurrence| {
                    let Occurrence { action, warning, reason, note, previous_digest, digest, .. } =
                        &*occurrence;
                    let short =
                        |digest: &Option<Digest>| digest.map_or("-".into(), |digest| digest.hex_prefix(2));
                    let prefix = if *warning { "!" } else { "" };
                    let digests = format!("{}>{}", short(previous_digest), short(digest));
                    format!("{prefix}{action:?}/{reason} {note} {digests}")
                })
                .collect::<Vec<_>>()
        };
        let (one, two) = (Digest::of(b"spec"), Digest::of(b"2"));
        let (one, two) = (one.hex_prefix(2), two.hex_prefix(2));
        let mut old = declared_server("old", 3);
        old.meta.created_at = at(-5);
        let mut fleet = desired(&["a"]);
        fleet.servers.insert(key("old"), Arc::new(old));
        reporter.apply_desired(&Arc::new(fleet.clone()), at(1));
        // An object that was created in an earlier run is not reported again.
        assert_eq!(drain(), [format!("Create/Created declared in a.yaml:1 ->{one}")]);

        let problem = Problem::new(Reason::Exited, "exited with code 3");
        let failed = |attempt| Phase::Failed { problem: problem.clone(), retry_at: Some(at(60)), attempt };
        for second in [2, 4] {
            reporter.apply_observation(observation("a", 1, failed(2), None), at(second));
            reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(second + 1));
        }
        let twice = [
            format!("!Reconcile/Exited exited with code 3 {one}>{one}"),
            format!("Reconcile/Attached attached over stdio, 3 tools {one}>{one}"),
        ];
        assert_eq!(drain(), [&twice[..], &twice[..]].concat());
        let exited = reporter.snapshot.events.values().find(|event| event.latest.reason == Reason::Exited);
        let exited = exited.unwrap();
        assert_eq!((exited.count, exited.first_at, exited.latest.at), (2, at(2), at(4)));
        assert_eq!(exited.latest.regarding.to_string(), "McpServer/default/a");

        let mut changed = declared_server("a", 2);
        changed.spec_digest = Some(Digest::of(b"2"));
        fleet.servers.insert(key("a"), Arc::new(changed));
        reporter.apply_desired(&Arc::new(fleet.clone()), at(6));
        assert_eq!(drain(), [format!("Update/Updated generation 2, declared in a.yaml:1 {one}>{two}")]);
        // Read again without a change.
        let mut same = declared_server("a", 2);
        same.spec_digest = Some(Digest::of(b"2"));
        fleet.servers.insert(key("a"), Arc::new(same));
        reporter.apply_desired(&Arc::new(fleet.clone()), at(7));
        assert_eq!(drain(), [""; 0]);

        fleet.servers.remove(&key("a"));
        reporter.apply_desired(&Arc::new(fleet), at(8));
        reporter.apply_observation(observation("a", 2, Phase::Detached(Reason::Removed), None), at(9));
        assert_eq!(
            drain(),
            [
                format!("Delete/Removed no longer declared {two}>-"),
                "Reconcile/Detached detached ->-".to_owned()
            ]
        );
    });
}

#[test]
fn unready_reasons_are_listed_until_ready() {
    with_reporter(|mut reporter, _, _| {
        assert_eq!(reporter.snapshot.unready_reasons(true).len(), 1, "the source");
        let mut required = desired(&["c"]);
        for (name, suspend) in [("a", false), ("b", false), ("d", true)] {
            let mut server = declared_server(name, 1);
            let spec = json!({ "stdio": { "command": "c" }, "required": true, "suspend": suspend });
            server.spec = Some(server_spec(spec));
            required.servers.insert(key(name), Arc::new(server));
        }
        reporter.apply_desired(&Arc::new(required.clone()), at(1));
        assert_eq!(
            reporter.snapshot.unready_reasons(true),
            [
                "McpServer/default/a: Connecting: waiting for an attempt to connect",
                "McpServer/default/b: Connecting: waiting for an attempt to connect",
            ]
        );
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(2));
        assert_eq!(reporter.snapshot.unready_reasons(true).len(), 1);
        reporter.apply_observation(observation("b", 1, Phase::Attached, Some(1)), at(3));
        assert!(reporter.snapshot.unready_reasons(true).is_empty());
        let failed = Phase::Failed {
            problem: Problem::new(Reason::Exited, "exited"),
            retry_at: Some(at(9)),
            attempt: 2,
        };
        reporter.apply_observation(observation("a", 1, failed, None), at(4));
        assert!(reporter.snapshot.unready_reasons(true).is_empty(), "readiness is not revoked");
    });
}

#[test]
fn source_fault_is_logged_once() {
    with_reporter(|mut reporter, _, lines| {
        let fault = SourceProblem::new(None, Problem::new(Reason::ParseError, "a.yaml:3: not YAML"));
        let with = |faults| {
            let state = SourceState { problems: faults, ..SourceState::clone(&synced_source()) };
            Arc::new(Desired { source: Arc::new(state), ..Desired::default() })
        };
        reporter.apply_desired(&with(vec![fault.clone()]), at(1));
        reporter.apply_desired(&with(vec![fault]), at(2));
        reporter.apply_desired(&with(Vec::new()), at(3));
        reporter.apply_desired(&with(Vec::new()), at(4));
        assert_eq!(
            lines.take(),
            [
                " WARN a.yaml:3: not YAML resource=Source/directory reason=ParseError",
                " INFO everything was read resource=Source/directory reason=Available",
            ]
        );
    });
}

#[tokio::test]
async fn run_follows_its_inputs_until_stopped() {
    let (reporter, mut store) = Reporter::new(source_id(), at(0));
    let (desired_tx, desired_rx) = watch::channel(Arc::new(Desired::default()));
    let (observation_tx, observations) = mpsc::unbounded_channel();
    let (catalog, publisher, generations) =
        catalog(Some("default".into()), ReservedNames::default(), mpsc::unbounded_channel().0);
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(generations.run(stop.clone()));
    let inputs = ReporterInputs {
        desired: desired_rx,
        observations,
        catalog,
        session_counts: watch::channel(OrdMap::new()).1,
        auth_states: watch::channel(OrdMap::new()).1,
        skill_states: watch::channel(SkillStates::default()).1,
        sync_results: watch::channel(SyncResults::default()).1,
    };
    let task = tokio::spawn(reporter.run(inputs, stop.clone()));

    // An observation may arrive before its declaration: it is kept.
    observation_tx.send(observation("a", 1, Phase::Attached, Some(1))).unwrap();
    desired_tx.send(Arc::new(desired(&["a", "b"]))).unwrap();
    // Both servers claim the name x_t.
    for name in ["a", "b"] {
        publisher.publish(Arc::new(section(name, "x", "t")));
    }
    let is_reported = |store: &StatusSnapshot| {
        let reason = |name, kind| {
            let object = store.servers.get(&key(name))?;
            Some(find_condition(&object.status.conditions, kind)?.reason.clone())
        };
        reason("a", ConditionType::Ready).is_some_and(|reason| reason == "Attached")
            && reason("b", ConditionType::Accepted).is_some_and(|reason| reason == "NameConflict")
    };
    store.wait_for(is_reported).await.unwrap();

    // A closed input does not end the others.
    drop(desired_tx);
    drop(publisher);
    let reconnecting = Phase::Connecting { attempt: 2, last_problem: None };
    observation_tx.send(observation("a", 1, reconnecting, None)).unwrap();
    store.wait_for(|store| !is_reported(store)).await.unwrap();

    stop.cancel();
    task.await.unwrap();
    publishing.await.unwrap();
}

#[test]
fn source_status_counts_servers_and_tools() {
    with_reporter(|mut reporter, store, _| {
        let counts = |reporter: &mut Reporter| {
            reporter.publish();
            let ServerCounts { servers, attached, tools } = store.borrow().source.status.counts;
            (servers, attached, tools)
        };
        reporter.apply_desired(&Arc::new(desired(&["a", "b", "c"])), at(1));
        assert_eq!(counts(&mut reporter), (3, 0, 0));
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(2));
        reporter.apply_observation(observation("b", 1, Phase::Attached, Some(1)), at(2));
        assert_eq!(counts(&mut reporter), (3, 2, 6));
        let version = store.borrow().source.resource_version;
        reporter.apply_observation(observation("a", 1, Phase::Attached, Some(1)), at(3));
        assert_eq!(counts(&mut reporter), (3, 2, 6));
        assert_eq!(store.borrow().source.resource_version, version, "written only when it changes");
        // A further read of the source keeps them.
        let mut dirty = desired(&["b", "c"]);
        dirty.source =
            Arc::new(SourceState { revision: "r2".into(), ..SourceState::clone(&synced_source()) });
        reporter.apply_desired(&Arc::new(dirty), at(4));
        assert_eq!(counts(&mut reporter), (2, 1, 3));
        reporter.apply_desired(&Arc::new(Desired { source: synced_source(), ..Desired::default() }), at(5));
        assert_eq!(counts(&mut reporter), (0, 0, 0));
    });
}
