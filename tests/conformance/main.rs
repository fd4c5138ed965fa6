//! Runs the official conformance suite directly and through evenkeel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests"
)]

mod differences;
mod fixture;
mod page;
mod suite;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;

use differences::{
    DifferenceList, ScenarioCounts, ServerKind, differences_between, not_passed, scenario_differences,
};
use fixture::{Era, HttpFixture};
use suite::{Results, Suite};
use support::{Evenkeel, TestDirectory, example};

/// The maximum number of reruns of a scenario with unexpected results. The suite limits some checks to half a second,
/// which a busy machine may exceed.
const MAX_RERUNS: usize = 2;

#[tokio::test]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn differences_for_2025_06_18_are_as_listed() {
    check_differences("2025-06-18", Era::Legacy).await;
}

#[tokio::test]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn differences_for_2025_11_25_are_as_listed() {
    check_differences("2025-11-25", Era::Legacy).await;
}

#[tokio::test]
#[cfg_attr(without_python, ignore = "needs Python")]
async fn differences_for_2026_07_28_are_as_listed() {
    check_differences("2026-07-28", Era::Modern).await;
}

/// Runs the suite directly and through evenkeel, and fails unless the differences are exactly those that are listed.
async fn check_differences(revision: &str, era: Era) {
    let suite = Suite::install();
    let list = DifferenceList::load();
    let fixture = HttpFixture::start(era).await;
    let passed = |scenario: &str, results: &Results| not_passed(scenario, results).is_empty();
    let direct = run_with_reruns(&suite, &fixture.url, revision, passed).await;
    let failed: BTreeSet<_> = direct.keys().flat_map(|scenario| not_passed(scenario, &direct)).collect();
    assert_eq!(failed, BTreeSet::new(), "{revision}, directly");
    check_all_scenarios_ran(&suite, revision, &direct, &list.revisions[revision]);

    let mut mismatches = Vec::new();
    for server in ServerKind::SHARED.into_iter().chain(ServerKind::ISOLATED) {
        let listed = list.listed_for(revision, server);
        let as_listed = |scenario: &str, results: &Results| {
            let expected = listed.iter().filter(|(listed, ..)| listed == scenario).cloned().collect();
            scenario_differences(scenario, &direct, results) == expected
        };
        let (declared, _http) = declare_fixture(server).await;
        let evenkeel = Evenkeel::run(declared.path()).await;
        let url = if server.is_isolated() {
            evenkeel.wait_for("fixture", "Ready", "True", "Idle").await;
            evenkeel.url().replace("/mcp", "/as/suite/mcp")
        } else {
            evenkeel.wait_until_attached("fixture").await;
            evenkeel.url()
        };
        let protocol_version =
            evenkeel.get_server("fixture").await.unwrap()["status"]["protocolVersion"].clone();
        assert_eq!(protocol_version, if server.era() == Era::Legacy { "2025-11-25" } else { "2026-07-28" });
        let found = differences_between(&direct, &run_with_reruns(&suite, &url, revision, as_listed).await);
        let added = &found - &listed;
        mismatches.extend(added.iter().map(|added| format!("{server}: {added:?} is not listed")));
        let missing = &listed - &found;
        mismatches.extend(
            missing.iter().map(|missing| format!("{server}: {missing:?} is listed but was not found")),
        );
    }
    assert!(
        mismatches.is_empty(),
        "{revision}: differences.yaml does not match the differences found:\n{}",
        mismatches.join("\n")
    );
}

/// Runs a revision, and reruns each scenario with unexpected results up to [`MAX_RERUNS`] times.
async fn run_with_reruns(
    suite: &Suite,
    url: &str,
    revision: &str,
    is_expected: impl Fn(&str, &Results) -> bool,
) -> Results {
    let mut results = suite.run(url, revision).await;
    for _ in 0..MAX_RERUNS {
        let unexpected: Vec<String> =
            results.keys().filter(|scenario| !is_expected(scenario, &results)).cloned().collect();
        for scenario in unexpected {
            results.extend(suite.run_scenario(url, revision, &scenario).await);
        }
    }
    results
}

/// Panics if the suite ran other scenarios than those listed, or ran one without judging it.
fn check_all_scenarios_ran(suite: &Suite, revision: &str, direct: &Results, listed: &ScenarioCounts) {
    assert_eq!(direct.len(), listed.run, "{revision}: scenarios");
    for (scenario, checks) in direct {
        assert!(!checks.is_empty(), "{revision}: {scenario} has no checks");
    }
    if let Some(required) = suite.required_scenarios(revision) {
        let ran: BTreeSet<String> = direct.keys().cloned().collect();
        assert_eq!(&ran - &required, listed.optional, "{revision}: scenarios that are not required");
        assert_eq!(&required - &ran, BTreeSet::new(), "{revision}: required scenarios that did not run");
    }
}

/// Declares the fixture without a prefix. Over HTTP the fixture is stopped when the second value is dropped.
async fn declare_fixture(server: ServerKind) -> (TestDirectory, Option<HttpFixture>) {
    let (transport, http) = if server.uses_http() {
        let http = HttpFixture::start(server.era()).await;
        (format!("http: {{ url: \"{}\" }}", http.url), Some(http))
    } else {
        let program = example("conformance-fixture", &["tests/conformance/fixture"]);
        let era = if server.era() == Era::Legacy { "legacy" } else { "modern" };
        (format!("stdio: {{ command: \"{}\", args: [{era}] }}", program.display()), None)
    };
    let isolation = if server.is_isolated() { "isolation: Session\nroots: true\n" } else { "" };
    let declared = TestDirectory::new();
    declared.write_server("fixture", &format!("{transport}\n{isolation}expose: {{ prefix: \"\" }}"));
    (declared, http)
}
