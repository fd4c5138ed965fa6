//! Messages between agents and servers pass through unchanged, for each combination of era and transport.

use serde_json::Value;

use crate::fixture::error_text;
use crate::rig::{FakeHttpServer, ODD_RESULT, ODD_TOOL, Script, ServerEra};
use crate::server_matrix::ServerMatrix;
use crate::support::{Era, eventually};

async fn attach_servers() -> ServerMatrix {
    ServerMatrix::attach(|script| script.tools(&["echo", "odd", "fail", "sleep", "log"])).await
}

#[tokio::test]
async fn unknown_members_pass_through_byte_for_byte() {
    let servers = attach_servers().await;
    for (agent, name, case) in servers.pairs().await {
        let listed = agent.list_tools().await;
        let odd = listed.iter().find(|tool| tool.get().contains(&format!("{name}_odd"))).expect(&case);
        assert_eq!(
            odd.get(),
            ODD_TOOL.replace(r#""name":"odd""#, &format!(r#""name":"{name}_odd""#)),
            "{case}"
        );

        let result = agent.call(&format!("{name}_odd"), "{}").await.unwrap();
        // The only member that differs between the eras.
        let plain = result.replacen(r#""resultType":"complete","#, "", 1);
        assert_eq!(plain, ODD_RESULT, "{case}");
        assert_eq!(result != plain, agent.era == Era::Modern, "{case}");

        let arguments = r#"{"a": 1.0e+2,"b":[{"x":1,"x":2}],"c":12345678901234567890123,"d":"\u00e9\/"}"#;
        let params = format!(
            r#"{{"later":{{"k": []}},"name":"{name}_echo","arguments":{arguments},"_meta":{{"a/b": [1.0e+2]}}}}"#
        );
        let result = agent.request("tools/call", &params).await.unwrap();
        let result: Value = serde_json::from_str(&result).unwrap();
        let echoed = result["content"][0]["text"].as_str().unwrap();
        for part in [format!(r#""arguments":{arguments}"#), r#""later":{"k": []}"#.into(), "[1.0e+2]".into()]
        {
            assert!(echoed.contains(&part), "{case}: {part} in {echoed}");
        }

        let error = r#"{"code":-31999,"message":"no","data":{"x": [1.0e+2]}}"#;
        let received =
            agent.call(&format!("{name}_fail"), &format!(r#"{{"error":{error}}}"#)).await.unwrap_err();
        assert_eq!(received, error, "{case}");
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn progress_uses_the_agents_token_and_precedes_the_response() {
    let servers = attach_servers().await;
    for (agent, name, case) in servers.pairs().await {
        for token in ["7", r#""mine""#] {
            let params = format!(
                r#"{{"name":"{name}_sleep","arguments":{{"ms":20,"steps":2}},"_meta":{{"progressToken":{token}}}}}"#
            );
            let mut call = agent.start_request("tools/call", &params).await.unwrap();
            for step in 1..=2 {
                let notification = call.next_message().await.unwrap().unwrap();
                assert!(notification.contains("notifications/progress"), "{case}: {notification}");
                assert!(
                    notification.contains(&format!(r#""progressToken":{token}"#)),
                    "{case}: {notification}"
                );
                assert!(
                    notification.contains(&format!(r#""progress":{step},"total":2"#)),
                    "{case}: {notification}"
                );
                assert!(notification.contains(r#""x-later":[1.0e+2]"#), "{case}: {notification}");
            }
            assert!(call.result().await.unwrap().contains("slept"), "{case}");
            assert_eq!(call.next_message().await.unwrap(), None, "{case}");
        }
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn cancellation_is_forwarded_to_the_server() {
    let servers = attach_servers().await;
    for (agent, name, case) in servers.pairs().await {
        let before = servers.counters(name).await;
        let params = format!(r#"{{"name":"{name}_sleep","arguments":{{"ms":600000}}}}"#);
        let (era, agent) = (agent.era, std::sync::Arc::new(agent));
        let caller = agent.clone();
        let call = tokio::spawn(async move { caller.request("tools/call", &params).await });
        eventually(&format!("the call is in flight: {case}"), async || {
            (servers.counters(name).await.in_flight > before.in_flight).then_some(())
        })
        .await;
        if era == Era::Legacy {
            agent.notify("notifications/cancelled", r#"{"requestId":2,"reason":"enough"}"#).await.unwrap();
            assert_eq!(call.await.unwrap().unwrap_err(), "the response ended without a result", "{case}");
        } else {
            // Aborting the task drops the request and its connection.
            call.abort();
        }
        eventually(&format!("the cancellation reaches the server: {case}"), async || {
            let now = servers.counters(name).await;
            (now.cancelled == before.cancelled + 1 && now.in_flight == before.in_flight).then_some(())
        })
        .await;
        assert_eq!(servers.counters(name).await.abandoned, 0, "{case}");
        agent.call_text(&format!("{name}_echo"), "{}").await;
    }
    servers.assert_no_complaints().await;
}

#[tokio::test]
async fn call_to_removed_tool_reports_server_and_reason() {
    let servers = attach_servers().await;
    let pairs = servers.pairs().await;
    for name in ["sl", "sm", "hl", "hm"] {
        servers.fixture.declared.remove(&format!("{name}.yaml"));
    }
    // evenkeel ignores an emptied directory, which may be a mistake, so one server stays.
    let other = FakeHttpServer::start(Script::new("other", ServerEra::Dual).tools(&["echo"])).await;
    servers.fixture.declared.write_server("other", &other.spec());
    let agent = servers.fixture.agent(Era::Legacy).await;
    eventually("only the other server is listed", async || {
        (agent.tool_names().await == ["other_echo"]).then_some(())
    })
    .await;
    for (agent, name, case) in pairs {
        let text = error_text(&agent.call(&format!("{name}_echo"), "{}").await.unwrap());
        assert!(text.contains(&format!("default/{name}")), "{case}: {text}");
        assert!(text.contains("Removed") && text.contains("Do not call it again"), "{case}: {text}");
        let unknown = agent.call("nobody_echo", "{}").await.unwrap_err();
        assert!(unknown.contains("Unknown tool"), "{case}: {unknown}");
    }
}
