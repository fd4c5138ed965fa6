//! `docs/faults.md`, which is generated from the table of faults.

use super::table::{AgentView, FAULTS, Fault, FaultStatus, FaultTransport};

const INTRODUCTION: &str = "# Faults of servers

For everybody who wonders why a server is missing, or what a server with a fault does to the others. Each row is tested:
real servers with these faults run beside healthy ones, in both protocol eras. [status.md](status.md) explains the
conditions and what to do.

No other server notices any of these faults: the test checks that the healthy servers keep their processes, sessions
and lists, and that calls to them are answered as fast as before. This page is generated from the test.

| the server | over | its status | agents | other servers |
|---|---|---|---|---|
";

#[test]
fn faults_page_matches_the_table() {
    let rows: String = FAULTS.iter().map(row).collect();
    let page = format!("{INTRODUCTION}{rows}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
    if std::env::var_os("EVENKEEL_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let is_current = std::fs::read_to_string(path).is_ok_and(|current| current == page);
    assert!(
        is_current,
        "docs/faults.md is stale; run EVENKEEL_BLESS=1 cargo test --test behaviour faults_page"
    );
}

fn row(fault: &Fault) -> String {
    let transports = fault.transports.iter().map(|transport| match transport {
        FaultTransport::Stdio => "stdio",
        FaultTransport::Http => "HTTP",
    });
    let transports = transports.collect::<Vec<_>>().join(", ");
    let status = match fault.status {
        FaultStatus::NotReady(reason, _) => format!("`Ready=False`, `{reason}`"),
        FaultStatus::Degraded(reason, _) => format!("`Ready=True`, `Degraded`: `{reason}`"),
        FaultStatus::Ready => "`Ready=True`".to_owned(),
    };
    let agents = match fault.agents {
        AgentView::NoTools => "none of its tools, until it is attached",
        AgentView::Tools => "all of its tools, which work",
        AgentView::CallFails(_) => "its tools; such a call fails at once, with the reason",
    };
    format!("| {} | {transports} | {status} | {agents} | nothing |\n", fault.description)
}
