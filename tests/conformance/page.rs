//! Makes `docs/conformance.md` from the list.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use crate::differences::{Entry, Found, List, Outcome, Server};
use crate::suite::VERSION;

#[test]
fn the_page_is_what_the_list_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let expected = page(&List::read());
    if std::env::var_os("EVENKEEL_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/conformance.md is stale; run EVENKEEL_BLESS=1 cargo test --all-features --test conformance page"
    );
}

fn page(list: &List) -> String {
    let mut page = format!(
        "<!-- Made from tests/conformance/differences.yaml by tests/conformance/page.rs. -->\n\
         # Conformance\n\n\
         The official conformance suite (`@modelcontextprotocol/conformance` {VERSION}) judges a server that offers all that the \
         suite asks for, first directly and then through evenkeel. Whatever it finds only through evenkeel is listed here. \
         `cargo test --all-features --test conformance` runs it, and fails when there is a difference more than listed, or one \
         less.\n\n\
         ## Scenarios that pass\n\n\
         The suite is the agent. The server speaks to evenkeel in either generation of the protocol, over either transport; \
         directly it speaks that of the agent, over HTTP.\n\n"
    );
    page += "| agent | scenarios | directly |";
    for server in Server::ALL {
        write!(page, " {server} |").unwrap();
    }
    page += "\n|---|---|---|---|---|---|---|\n";
    for (revision, scenarios) in &list.revisions {
        write!(page, "| {revision} | {0} | {0} |", scenarios.run).unwrap();
        for server in Server::ALL {
            let listed = list.of(revision, server);
            let failed = listed.iter().filter(|(.., outcome)| *outcome == Outcome::Failed);
            let failed: BTreeSet<&String> = failed.map(|(scenario, ..)| scenario).collect();
            write!(page, " {} |", scenarios.run - failed.len()).unwrap();
        }
        page.push('\n');
    }
    page += "\nScenarios of extensions, which are optional to every revision, are left out. For 2025-06-18 the suite has no list of \
             what is required; of the others it does not require:\n\n";
    for (revision, scenarios) in list.revisions.iter().filter(|(_, scenarios)| !scenarios.optional.is_empty())
    {
        writeln!(page, "- {revision}: {}", named(&scenarios.optional)).unwrap();
    }
    page += "\n## Differences\n";
    for (index, entry) in list.differences.iter().enumerate() {
        write!(page, "\n{}. {}\n\n{}", index + 1, entry.reason, table(entry)).unwrap();
    }
    page
}

fn table(entry: &Entry) -> String {
    let mut table =
        "   | agent | server | fails | warning | not judged |\n   |---|---|---|---|---|\n".to_owned();
    for found in &entry.found {
        let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        let servers = if found.servers == Server::ALL { "all".into() } else { servers.join(", ") };
        write!(table, "   | {} | {servers} |", found.agents.join(", ")).unwrap();
        for outcome in [Outcome::Failed, Outcome::Warning, Outcome::NotJudged] {
            write!(table, " {} |", named(&scenarios(found, outcome))).unwrap();
        }
        table.push('\n');
    }
    table
}

/// Returns the scenarios in which `outcome` is the worst.
fn scenarios(found: &Found, outcome: Outcome) -> BTreeSet<String> {
    let worst = found.checks.iter().map(|(scenario, checks)| (scenario, checks.values().max()));
    worst.filter(|(_, worst)| *worst == Some(&outcome)).map(|(scenario, _)| scenario.clone()).collect()
}

fn named(scenarios: &BTreeSet<String>) -> String {
    let quoted: Vec<String> = scenarios.iter().map(|scenario| format!("`{scenario}`")).collect();
    quoted.join(", ")
}
