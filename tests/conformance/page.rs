//! Generates `docs/conformance.md` from the list of differences.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use crate::differences::{AffectedChecks, DifferenceList, Outcome, ServerKind};
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

/// The longest line of the page, in characters. Table rows are not wrapped.
const MAX_LINE_CHARS: usize = 118;

fn render_page(list: &DifferenceList) -> String {
    let mut page = String::from(
        "<!-- Generated from tests/conformance/differences.yaml by tests/conformance/page.rs. -->\n\
         # Conformance\n\n",
    );
    page += &wrap(
        "This page is for people who compare gateways: after reading it you know which results of the official MCP \
         conformance suite differ if a server is reached through evenkeel, and why.",
        "",
    );
    page += "\n";
    page += &wrap(
        &format!(
            "The suite (`@modelcontextprotocol/conformance` {SUITE_VERSION}) tests a fixture server with everything \
             that the suite requires, first directly and then through evenkeel. `cargo test --all-features \
             --test conformance` runs both, and fails if the differences are not exactly those listed here."
        ),
        "",
    );
    page += "\n## Scenarios that pass\n\n";
    page += &wrap(
        "The suite is the agent. Through evenkeel, the server uses either protocol era over either transport; in the \
         direct run it uses the era of the agent, over HTTP.",
        "",
    );
    page += &scenario_table(list, &ServerKind::SHARED);
    page.push('\n');
    page += &wrap(
        "The same with `isolation: Session` and `roots: true`, at `/as/ID/mcp`: the server has a connection for the \
         suite alone, and gets its roots.",
        "",
    );
    page += &scenario_table(list, &ServerKind::ISOLATED);
    page.push('\n');
    page += &wrap(
        "Scenarios of extensions, which are optional in every revision, are omitted. For 2025-06-18 the suite has no \
         list of required scenarios. The following scenarios are not required by the other revisions:",
        "",
    );
    page.push('\n');
    for (revision, scenarios) in list.revisions.iter().filter(|(_, scenarios)| !scenarios.optional.is_empty())
    {
        page += &wrap(&format!("- {revision}: {}", quoted_list(&scenarios.optional)), "  ");
    }
    page += "\n## Differences\n";
    for (index, entry) in list.differences.iter().enumerate() {
        page.push('\n');
        page += &wrap(&format!("{}. {}", index + 1, entry.reason), "   ");
        page.push('\n');
        for affected in &entry.found {
            page += &wrap(&format!("   - {}", describe_affected(affected)), "     ");
        }
    }
    page
}

/// Returns a table of the number of scenarios that do not fail, by agent and server, after an empty line.
fn scenario_table(list: &DifferenceList, servers: &[ServerKind]) -> String {
    let mut table = "\n| agent | scenarios | directly |".to_owned();
    for server in servers {
        write!(table, " {} |", server.to_string().replace(" over ", ", ")).unwrap();
    }
    table += "\n|---|---|---|";
    table += &"---|".repeat(servers.len());
    table.push('\n');
    for (revision, scenarios) in &list.revisions {
        write!(table, "| {revision} | {0} | {0} |", scenarios.run).unwrap();
        for server in servers {
            let listed = list.listed_for(revision, *server);
            let failed = listed.iter().filter(|(.., outcome)| *outcome == Outcome::Failed);
            let failed: BTreeSet<&String> = failed.map(|(scenario, ..)| scenario).collect();
            write!(table, " {} |", scenarios.run - failed.len()).unwrap();
        }
        table.push('\n');
    }
    table
}

/// Returns one line: the agents and servers, and the scenarios by outcome.
fn describe_affected(affected: &AffectedChecks) -> String {
    let mut line = format!("agent {}, {}:", affected.agents.join(", "), describe_servers(&affected.servers));
    for (name, outcome) in
        [("fails", Outcome::Failed), ("warning", Outcome::Warning), ("not judged", Outcome::NotJudged)]
    {
        let scenarios = scenarios(affected, outcome);
        if !scenarios.is_empty() {
            write!(line, " {name}: {};", quoted_list(&scenarios)).unwrap();
        }
    }
    line.trim_end_matches(';').to_owned()
}

/// Names servers, with one name for all of a kind.
fn describe_servers(servers: &[ServerKind]) -> String {
    let includes = |kinds: &[ServerKind]| kinds.iter().all(|kind| servers.contains(kind));
    match (includes(&ServerKind::SHARED), includes(&ServerKind::ISOLATED)) {
        (true, true) => "all servers".into(),
        (true, false) if servers.len() == ServerKind::SHARED.len() => "all shared servers".into(),
        (false, true) if servers.len() == ServerKind::ISOLATED.len() => "all isolated servers".into(),
        _ => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Wraps a text between words. Lines after the first begin with `indent`.
fn wrap(text: &str, indent: &str) -> String {
    let first_indent = &text[..text.len() - text.trim_start().len()];
    let (mut wrapped, mut line) = (String::new(), first_indent.to_owned());
    for word in text.split_whitespace() {
        let is_empty = line.trim().is_empty();
        if !is_empty && line.chars().count() + 1 + word.chars().count() > MAX_LINE_CHARS {
            wrapped += &line;
            wrapped.push('\n');
            line = format!("{indent}{word}");
        } else {
            if !is_empty {
                line.push(' ');
            }
            line += word;
        }
    }
    wrapped + &line + "\n"
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
