//! Requests of servers for input, and connections of callers, with agents whose HTTP requests reach two replicas in turn.

use serde_json::Value;

use crate::replica_set::{RoundRobinProxy, run_replicas, wait_until_served};
use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, PendingRequest, eventually, http, within};
use crate::test_namespace::{TestNamespace, server_yaml};

const CAPABILITIES: &str = r#"{"elicitation":{"form":{}}}"#;
const REQUESTS: &str = r#"[{"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}]"#;
const ACCEPTED: &str = r#"{"action":"accept","content":{"n":1}}"#;

/// Begins a call of the tool `ask`. `more` are further members of the params.
async fn ask(agent: &Agent, tool: &str, more: &str) -> PendingRequest {
    let params = format!(r#"{{"name":"{tool}","arguments":{{"requests":{REQUESTS}}}{more}}}"#);
    agent.start_request("tools/call", &params).await.unwrap()
}

/// Calls the tool `ask`, and answers the server's request for input. `skip` requests come between the two. Returns the
/// responses that the server got.
async fn ask_and_answer(agent: &Agent, tool: &str, skip: usize) -> Value {
    let mut call = ask(agent, tool, "").await;
    let asked = match agent.era {
        Era::Legacy => within("the request arrives", call.next_message()).await.unwrap().unwrap(),
        Era::Modern => call.result().await.unwrap(),
    };
    let asked: Value = serde_json::from_str(&asked).unwrap();
    for _ in 0..skip {
        agent.tool_names().await;
    }
    let result = match agent.era {
        Era::Legacy => {
            assert_eq!(agent.respond(&asked["id"].to_string(), ACCEPTED).await, 202, "{asked}");
            call.result().await.unwrap()
        }
        Era::Modern => {
            let state = &asked["requestState"];
            let more = format!(r#","inputResponses":{{"input":{ACCEPTED}}},"requestState":{state}"#);
            ask(agent, tool, &more).await.result().await.unwrap()
        }
    };
    let result: Value = serde_json::from_str(&result).unwrap();
    serde_json::from_str(result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"))).unwrap()
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn input_reaches_the_replica_that_asked_whichever_gets_the_response() {
    let ns = TestNamespace::create_shared().await;
    let remote = FakeHttpServer::start(Script::new("h", ServerEra::Legacy).tools(&["ask"])).await;
    let stdio = FakeStdioServer::new(Script::new("s", ServerEra::Legacy).tools(&["ask"]));
    let (program, file) = stdio.command();
    let replicas =
        run_replicas(&ns, &[&format!("--allow-stdio={} {}", program.display(), file.display())]).await;
    ns.apply_http_server("h", &remote).await;
    ns.apply(&server_yaml("s", &stdio.spec(""))).await;
    wait_until_served(&replicas, &["h_ask", "s_ask"]).await;
    let proxy = RoundRobinProxy::start(&replicas).await;
    for era in Era::ALL {
        let agent = Agent::connect_with_capabilities(era, &proxy.url, CAPABILITIES).await.unwrap();
        for tool in ["h_ask", "s_ask"] {
            // The response goes to the other replica, then to the one that asked; and each of them asks.
            for skip in [0, 1, 0, 1] {
                let before = proxy.connection_counts();
                let got = ask_and_answer(&agent, tool, skip).await;
                assert_eq!(got[0]["result"]["action"], "accept", "{era:?} {tool} {skip}: {got}");
                let after = proxy.connection_counts();
                let used: Vec<_> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
                assert!(skip > 0 || used == [1, 1], "{era:?} {tool}: {used:?}");
            }
        }
    }
    for replica in &replicas {
        let metrics = http::get(&replica.admin("/metrics")).await.unwrap();
        assert!(metrics.contains("evenkeel_unexpected_responses_total 0"), "{metrics}");
    }
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn isolated_caller_has_a_connection_at_each_replica_that_it_reaches() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeStdioServer::new(Script::new("s", ServerEra::Legacy).tools(&["ask", "report"]));
    let (program, file) = rig.command();
    let replicas =
        run_replicas(&ns, &[&format!("--allow-stdio={} {}", program.display(), file.display())]).await;
    ns.apply(&server_yaml("s", &format!("{}\nisolation: Session", rig.spec("")))).await;
    wait_until_served(&replicas, &["s_ask", "s_report"]).await;
    let proxy = RoundRobinProxy::start(&replicas).await;
    let path = proxy.url.replace("/mcp", "/as/a/mcp");
    for (era, url) in [(Era::Legacy, &proxy.url), (Era::Modern, &path)] {
        let agent = Agent::connect_with_capabilities(era, url, CAPABILITIES).await.unwrap();
        let mut pids = Vec::new();
        for _ in 0..4 {
            let report: Value = serde_json::from_str(&agent.call_text("s_report", "{}").await).unwrap();
            pids.push(report["pid"].as_u64().unwrap());
        }
        assert!(pids[0] != pids[1], "{era:?}: {pids:?}");
        assert_eq!(pids[..2], pids[2..], "{era:?}: each replica keeps its connection");
        for skip in [0, 1] {
            let got = ask_and_answer(&agent, "s_ask", skip).await;
            assert_eq!(got[0]["result"]["action"], "accept", "{era:?} {skip}: {got}");
        }
        if era == Era::Legacy {
            assert_eq!(rig.live_processes().len(), 2);
            // The end of a session reaches one replica. The other one closes its connection when it is idle.
            assert_eq!(agent.end_session().await, 204);
            eventually("one process ends", async || (rig.live_processes().len() == 1).then_some(())).await;
        }
    }
}
