//! What agents and servers say to each other passes unchanged, whatever era and transport either of them speaks.

use serde_json::Value;

use crate::rig::{Era as RigEra, Http, ODD_RESULT, ODD_TOOL, Script};
use crate::servers::Servers;
use crate::stage::told;
use crate::support::{Era, eventually};

async fn servers() -> Servers {
    Servers::attach(|script| script.tools(&["echo", "odd", "fail", "sleep", "log"])).await
}

#[tokio::test]
async fn what_no_model_knows_passes_byte_for_byte_in_both_directions() {
    let servers = servers().await;
    for (agent, name, case) in servers.pairs().await {
        let listed = agent.list().await;
        let odd = listed.iter().find(|tool| tool.get().contains(&format!("{name}_odd"))).expect(&case);
        assert_eq!(
            odd.get(),
            ODD_TOOL.replace(r#""name":"odd""#, &format!(r#""name":"{name}_odd""#)),
            "{case}"
        );

        let result = agent.call(&format!("{name}_odd"), "{}").await.unwrap();
        // The one member that the eras differ in.
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
        let told = agent.call(&format!("{name}_fail"), &format!(r#"{{"error":{error}}}"#)).await.unwrap_err();
        assert_eq!(told, error, "{case}");
    }
    servers.no_complaints().await;
}

#[tokio::test]
async fn progress_comes_with_the_agents_own_token_and_before_the_answer() {
    let servers = servers().await;
    for (agent, name, case) in servers.pairs().await {
        for token in ["7", r#""mine""#] {
            let params = format!(
                r#"{{"name":"{name}_sleep","arguments":{{"ms":20,"steps":2}},"_meta":{{"progressToken":{token}}}}}"#
            );
            let mut call = agent.begin("tools/call", &params).await.unwrap();
            for step in 1..=2 {
                let notice = call.next().await.unwrap().unwrap();
                assert!(notice.contains("notifications/progress"), "{case}: {notice}");
                assert!(notice.contains(&format!(r#""progressToken":{token}"#)), "{case}: {notice}");
                assert!(notice.contains(&format!(r#""progress":{step},"total":2"#)), "{case}: {notice}");
                assert!(notice.contains(r#""x-later":[1.0e+2]"#), "{case}: {notice}");
            }
            assert!(call.answer().await.unwrap().contains("slept"), "{case}");
            assert_eq!(call.next().await.unwrap(), None, "{case}");
        }
    }
    servers.no_complaints().await;
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_server() {
    let servers = servers().await;
    for (agent, name, case) in servers.pairs().await {
        let before = servers.counters(name).await;
        let params = format!(r#"{{"name":"{name}_sleep","arguments":{{"ms":600000}}}}"#);
        let (era, agent) = (agent.era, std::sync::Arc::new(agent));
        let calling = agent.clone();
        let call = tokio::spawn(async move { calling.request("tools/call", &params).await });
        eventually(&format!("the call is at work: {case}"), async || {
            (servers.counters(name).await.in_flight > before.in_flight).then_some(())
        })
        .await;
        if era == Era::Legacy {
            agent.notify("notifications/cancelled", r#"{"requestId":2,"reason":"enough"}"#).await.unwrap();
            assert_eq!(call.await.unwrap().unwrap_err(), "the answer ended without a result", "{case}");
        } else {
            // Gone, and its connection with it.
            call.abort();
        }
        eventually(&format!("the server is told: {case}"), async || {
            let now = servers.counters(name).await;
            (now.cancelled == before.cancelled + 1 && now.in_flight == before.in_flight).then_some(())
        })
        .await;
        assert_eq!(servers.counters(name).await.abandoned, 0, "{case}");
        agent.text(&format!("{name}_echo"), "{}").await;
    }
    servers.no_complaints().await;
}

#[tokio::test]
async fn a_call_to_a_removed_tool_says_who_why_and_not_to_retry() {
    let servers = servers().await;
    let pairs = servers.pairs().await;
    for name in ["sl", "sm", "hl", "hm"] {
        servers.stage.declared.remove(&format!("{name}.yaml"));
    }
    // An emptied directory may be a mistake, so one stays.
    let other = Http::start(Script::new("other", RigEra::Dual).tools(&["echo"])).await;
    servers.stage.declared.server("other", &other.spec());
    let agent = servers.stage.agent(Era::Legacy).await;
    eventually("only the other is listed", async || (agent.tools().await == ["other_echo"]).then_some(()))
        .await;
    for (agent, name, case) in pairs {
        let text = told(&agent.call(&format!("{name}_echo"), "{}").await.unwrap());
        assert!(text.contains(&format!("default/{name}")), "{case}: {text}");
        assert!(text.contains("Removed") && text.contains("Do not call it again"), "{case}: {text}");
        let unknown = agent.call("nobody_echo", "{}").await.unwrap_err();
        assert!(unknown.contains("Unknown tool"), "{case}: {unknown}");
    }
}
