//! Generates `docs/conformance.md` from the list of differences.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use crate::differences::{AffectedChecks, DifferenceEntry, DifferenceList, Outcome, ServerKind};
use crate::suite::SUITE_VERSION;

#[test]
fn conformance_page_matches_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let expected = render_page(&DifferenceList::load());
    if std::env::var_os("EVENKEEL_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/conformance.md is stale; run EVENKEEL_BLESS=1 cargo test --all-features --test conformance page"
    );
}

fn render_page(list: &DifferenceList) -> String {
    let mut page = format!(
        "<!-- Generated from tests/conformance/differences.yaml by tests/conformance/page.rs. -->\n\
         # Conformance\n\n\
         The official conformance suite (`@modelcontextprotocol/conformance` {SUITE_VERSION}) tests a fixture server with \
         everything that the suite requires, first directly and then through evenkeel. This page lists the differences between \
         the two runs. `cargo test --all-features --test conformance` runs the suite, and fails if the differences are not \
         exactly those listed.\n\n\
         ## Scenarios that pass\n\n\
         The suite is the agent. Through evenkeel, the server uses either protocol era over either transport; in the direct \
         run it uses the era of the agent, over HTTP.\n\n"
    );
    page += "| agent | scenarios | directly |";
    for server in ServerKind::ALL {
        write!(page, " {server} |").unwrap();
    }
    page += "\n|---|---|---|---|---|---|---|\n";
    for (revision, scenarios) in &list.revisions {
        write!(page, "| {revision} | {0} | {0} |", scenarios.run).unwrap();
        for server in ServerKind::ALL {
            let listed = list.listed_for(revision, server);
            let failed = listed.iter().filter(|(.., outcome)| *outcome == Outcome::Failed);
            let failed: BTreeSet<&String> = failed.map(|(scenario, ..)| scenario).collect();
            write!(page, " {} |", scenarios.run - failed.len()).unwrap();
        }
        page.push('\n');
    }
    page += "\nScenarios of extensions, which are optional in every revision, are omitted. For 2025-06-18 the suite has no list \
    of required scenarios. The following scenarios are not required by the other revisions:\n\n";
    for (revision, scenarios) in list.revisions.iter().filter(|(_, scenarios)| !scenarios.optional.is_empty())
    {
        writeln!(page, "- {revision}: {}", quoted_list(&scenarios.optional)).unwrap();
    }
    page += "\n## Differences\n";
    for (index, entry) in list.differences.iter().enumerate() {
        write!(page, "\n{}. {}\n\n{}", index + 1, entry.reason, entry_table(entry)).unwrap();
    }
    page
}

fn entry_table(entry: &DifferenceEntry) -> String {
    let mut table =
        "   | agent | server | fails | warning | not judged |\n   |---|---|---|---|---|\n".to_owned();
    for affected in &entry.found {
        let servers: Vec<String> = affected.servers.iter().map(ToString::to_string).collect();
        let servers = if affected.servers == ServerKind::ALL { "all".into() } else { servers.join(", ") };
        write!(table, "   | {} | {servers} |", affected.agents.join(", ")).unwrap();
        for outcome in [Outcome::Failed, Outcome::Warning, Outcome::NotJudged] {
            write!(table, " {} |", quoted_list(&scenarios(affected, outcome))).unwrap();
        }
        table.push('\n');
    }
    table
}

/// Returns the scenarios in which `outcome` is the worst.
fn scenarios(affected: &AffectedChecks, outcome: Outcome) -> BTreeSet<String> {
    let worst = affected.checks.iter().map(|(scenario, checks)| (scenario, checks.values().max()));
    worst.filter(|(_, worst)| *worst == Some(&outcome)).map(|(scenario, _)| scenario.clone()).collect()
}

fn quoted_list(scenarios: &BTreeSet<String>) -> String {
    let quoted: Vec<String> = scenarios.iter().map(|scenario| format!("`{scenario}`")).collect();
    quoted.join(", ")
}
