//! Calls through the gateway to a real server and back.

use std::sync::Arc;

use evenkeel::resource::{Problem, Reason};
use serde_json::{Value, json};

use crate::rig::{Answers, Era as RigEra, Http as Rig, ODD_RESULT, ODD_TOOL, Script};
use crate::stack::Stack;
use crate::support::{Agent, Era, eventually};

const TOOLS: &[&str] = &["echo", "odd", "reply", "fail", "sleep", "log", "big", "mirror"];

async fn attached(era: RigEra) -> (Stack, Rig) {
    attached_with(Script::new("rig", era).tools(TOOLS), json!({})).await
}

async fn attached_with(script: Script, more: Value) -> (Stack, Rig) {
    let rig = Rig::start(script).await;
    let stack = Stack::start().await;
    stack.attach("r", &rig, more).await;
    (stack, rig)
}

/// Calls at work: a subscription is at work all the time.
fn at_work(rig: &Rig) -> u64 {
    let seen = rig.counters();
    if seen.of("subscriptions/listen") > 0 { seen.in_flight - seen.streams } else { seen.in_flight }
}

/// Calls that the server was told to cancel: a legacy one by a notification, a modern one by a closed stream.
fn cancels(rig: &Rig) -> u64 {
    let seen = rig.counters();
    if seen.initializes() > 0 { seen.of("notifications/cancelled") } else { seen.cancelled }
}

async fn works(rig: &Rig) {
    eventually("the call is at work", async || (at_work(rig) == 1).then_some(())).await;
}

async fn cancelled(rig: &Rig, times: u64) {
    eventually("the server is told", async || (cancels(rig) == times && at_work(rig) == 0).then_some(()))
        .await;
}

fn told(result: &str) -> String {
    let result: Value = serde_json::from_str(result).unwrap();
    assert_eq!(result["isError"], true, "{result}");
    result["content"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_no_model_knows_passes_unchanged_between_all_eras() {
    for rig_era in [RigEra::Legacy, RigEra::Modern] {
        let (stack, rig) = attached(rig_era).await;
        for era in Era::ALL {
            let agent = stack.agent(era).await;
            let case = format!("{era:?} agent, {rig_era:?} server");
            let listed = agent.list().await;
            let odd =
                listed.iter().find(|tool| tool.get().contains("r_odd")).expect("the odd tool is listed");
            assert_eq!(odd.get(), ODD_TOOL.replace(r#""name":"odd""#, r#""name":"r_odd""#), "{case}");

            let result = agent.call("r_odd", "{}").await.unwrap();
            let of_era = match era {
                Era::Legacy => result.clone(),
                Era::Modern => result.replacen(r#""resultType":"complete","#, "", 1),
            };
            assert_eq!(of_era, ODD_RESULT, "{case}");
            assert_eq!(result.contains("resultType"), era == Era::Modern, "{case}");

            let arguments = r#"{"a": 1.0e+2,"b":[{"x":1,"x":2}],"c":12345678901234567890123,"d":"\u00e9"}"#;
            let params = format!(
                r#"{{"later":{{"k": []}},"name":"r_echo","arguments":{arguments},"_meta":{{"a/b": 1}}}}"#
            );
            let result = agent.request("tools/call", &params).await.unwrap();
            let echoed: Value = serde_json::from_str(&result).unwrap();
            let echoed = echoed["content"][0]["text"].as_str().unwrap();
            assert!(
                echoed.contains(&format!(r#""name":"echo","arguments":{arguments}"#)),
                "{case}: {echoed}"
            );
            assert!(echoed.contains(r#""later":{"k": []}"#), "{case}: {echoed}");
            assert!(echoed.contains(r#""a/b":1"#) || echoed.contains(r#""a/b": 1"#), "{case}: {echoed}");
        }
        assert_eq!(rig.counters().complaints, Vec::<String>::new());
        assert_eq!(rig.counters().cancelled + rig.counters().abandoned, 0);
    }
}

#[tokio::test]
async fn a_servers_error_is_the_agents_error() {
    let (stack, _rig) = attached(RigEra::Legacy).await;
    for era in Era::ALL {
        let agent = stack.agent(era).await;
        let error = r#"{"code":-31999,"message":"no","data":{"x": [1.0e+2]}}"#;
        assert_eq!(agent.call("r_fail", &format!(r#"{{"error":{error}}}"#)).await.unwrap_err(), error);
    }
    stack.counts(r#"calls_total{namespace="default",server="r",outcome="error"} 2"#).await;
}

#[tokio::test]
async fn progress_comes_before_the_answer() {
    for rig_era in [RigEra::Legacy, RigEra::Modern] {
        let (stack, rig) = attached(rig_era).await;
        for era in Era::ALL {
            let agent = stack.agent(era).await;
            let params =
                r#"{"name":"r_sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":"mine"}}"#;
            let mut call = agent.begin("tools/call", params).await.unwrap();
            for step in 1..=2 {
                let notice = call.next().await.unwrap().unwrap();
                assert!(notice.contains("notifications/progress"), "{notice}");
                assert!(notice.contains(r#""progressToken":"mine""#), "{notice}");
                assert!(notice.contains(&format!(r#""progress":{step}"#)), "{notice}");
            }
            assert!(call.answer().await.unwrap().contains("slept"));
            assert_eq!(call.next().await.unwrap(), None);
        }
        assert_eq!(rig.counters().complaints, Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_agent_that_takes_only_json_gets_only_the_answer() {
    let (stack, _rig) = attached(RigEra::Legacy).await;
    let agent = stack.agent(Era::Legacy).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"r_sleep","arguments":{"ms":20,"steps":2},"_meta":{"progressToken":1}}}"#;
    let headers = [
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("Mcp-Session-Id", agent.session.as_deref().unwrap()),
    ];
    let answer = crate::support::http::send(hyper::Method::POST, &stack.url(), &headers, body).await.unwrap();
    assert!(!answer.is_stream());
    assert!(answer.text().await.unwrap().contains("slept"));
}

#[tokio::test]
async fn a_legacy_agent_cancels_by_saying_so() {
    for rig_era in [RigEra::Legacy, RigEra::Modern] {
        let (stack, rig) = attached(rig_era).await;
        let agent = Arc::new(stack.agent(Era::Legacy).await);
        let calling = agent.clone();
        let call = tokio::spawn(async move { calling.call("r_sleep", r#"{"ms":600000}"#).await });
        works(&rig).await;
        // Not this one, and not one of another agent.
        agent.notify("notifications/cancelled", r#"{"requestId":999}"#).await.unwrap();
        let other = stack.agent(Era::Legacy).await;
        other.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
        assert_eq!(agent.request("ping", "{}").await.unwrap(), "{}");
        assert_eq!((at_work(&rig), cancels(&rig)), (1, 0));

        agent.notify("notifications/cancelled", r#"{"requestId":2,"reason":"enough"}"#).await.unwrap();
        let ended = call.await.unwrap().unwrap_err();
        assert_eq!(ended, "the answer ended without a result");
        cancelled(&rig, 1).await;
        stack.counts(r#"calls_total{namespace="default",server="r",outcome="cancelled"} 1"#).await;
        assert!(agent.call("r_echo", "{}").await.is_ok());
    }
}

#[tokio::test]
async fn a_modern_agent_cancels_by_going_away_and_a_legacy_one_does_not() {
    for steps in [0, 9] {
        for era in Era::ALL {
            let (stack, rig) = attached(RigEra::Legacy).await;
            let late = Arc::new(stack.agent(era).await);
            let agent = late.clone();
            // With a step, the response is a stream by then. The rest of the call is long enough for what follows.
            let ms = if steps == 0 { 600_000 } else { 10_000 };
            let params = format!(
                r#"{{"name":"r_sleep","arguments":{{"ms":{ms},"steps":{steps}}},"_meta":{{"progressToken":1}}}}"#
            );
            let call = tokio::spawn(async move {
                let mut call = agent.begin("tools/call", &params).await.unwrap();
                call.next().await.unwrap();
                call
            });
            works(&rig).await;
            if steps == 0 {
                call.abort();
            } else {
                drop(call.await.unwrap());
            }
            if era == Era::Modern {
                cancelled(&rig, 1).await;
                continue;
            }
            // The legacy agent's call goes on: until its answer, or a late word of the agent.
            let other = stack.agent(Era::Legacy).await;
            assert!(other.call("r_echo", "{}").await.is_ok());
            assert_eq!((at_work(&rig), cancels(&rig)), (1, 0));
            if steps == 0 {
                late.notify("notifications/cancelled", r#"{"requestId":2}"#).await.unwrap();
                cancelled(&rig, 1).await;
                stack.counts(r#"calls_total{namespace="default",server="r",outcome="cancelled"} 1"#).await;
            } else {
                stack.counts(r#"calls_total{namespace="default",server="r",outcome="ok"} 2"#).await;
                cancelled(&rig, 0).await;
            }
        }
    }
}

#[tokio::test]
async fn an_id_is_in_flight_once() {
    let (stack, rig) = attached(RigEra::Legacy).await;
    let agent = Arc::new(stack.agent(Era::Legacy).await);
    let calling = agent.clone();
    let call = tokio::spawn(async move { calling.call("r_sleep", r#"{"ms":600000}"#).await });
    works(&rig).await;
    let body = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"r_echo"}}"#;
    let headers =
        [("Content-Type", "application/json"), ("Mcp-Session-Id", agent.session.as_deref().unwrap())];
    let answer = crate::support::http::send(hyper::Method::POST, &stack.url(), &headers, body).await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.contains("-32600") && text.contains("in flight"), "{text}");
    call.abort();
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_cancelled_and_told() {
    let more = json!({ "timeouts": { "call": "1s" } });
    let (stack, rig) = attached_with(Script::new("rig", RigEra::Legacy).tools(TOOLS), more).await;
    for era in Era::ALL {
        let agent = stack.agent(era).await;
        let text = told(&agent.call("r_sleep", r#"{"ms":600000}"#).await.unwrap());
        assert!(text.contains("default/r did not answer within 1 s"), "{text}");
    }
    cancelled(&rig, 2).await;
    stack.counts(r#"calls_total{namespace="default",server="r",outcome="timeout"} 2"#).await;
}

#[tokio::test]
async fn progress_gives_a_call_its_time_again() {
    // It takes longer than a call may without progress, and a step takes far less than that.
    let more = json!({ "timeouts": { "call": "8s" } });
    let call = async |rig_era, era| {
        let (stack, _rig) = attached_with(Script::new("rig", rig_era).tools(TOOLS), more.clone()).await;
        let agent = stack.agent(era).await;
        let params = r#"{"name":"r_sleep","arguments":{"ms":12000,"steps":20},"_meta":{"progressToken":1}}"#;
        let mut call = agent.begin("tools/call", params).await.unwrap();
        let answer = call.answer().await.unwrap();
        assert!(answer.contains("slept"), "{era:?} {rig_era:?}: {answer}");
    };
    let [legacy, modern] = Era::ALL;
    tokio::join!(
        call(RigEra::Legacy, legacy),
        call(RigEra::Legacy, modern),
        call(RigEra::Modern, legacy),
        call(RigEra::Modern, modern),
    );
}

#[tokio::test]
async fn a_quiet_call_is_kept_alive() {
    let (stack, _rig) = attached(RigEra::Modern).await;
    let agent = stack.agent(Era::Legacy).await;
    let mut call = agent.begin("tools/call", r#"{"name":"r_sleep","arguments":{"ms":11000}}"#).await.unwrap();
    // The head came before the answer was there, so this is a stream.
    assert!(call.answer().await.unwrap().contains("slept"));
    assert_eq!(call.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_tool_that_is_gone_says_who_and_why() {
    let (stack, _rig) = attached(RigEra::Dual).await;
    stack.offer("default", "off", &["t"]);
    for era in Era::ALL {
        let agent = stack.agent(era).await;
        eventually("it is published", async || {
            agent.tools().await.contains(&"off_t".to_owned()).then_some(())
        })
        .await;
        let text = told(&agent.call("off_t", "{}").await.unwrap());
        assert!(
            text.contains("default/off") && text.contains("exit code 7") && text.contains("later"),
            "{text}"
        );
        let unknown = agent.call("never_there", "{}").await.unwrap_err();
        assert!(unknown.contains("-32602") && unknown.contains("never_there"), "{unknown}");
        let nameless = agent.request("tools/call", r#"{"arguments":{}}"#).await.unwrap_err();
        assert!(nameless.contains("-32602"), "{nameless}");
    }
    let agent = stack.agent(Era::Legacy).await;
    stack.withdraw("default", "off", Problem::new(Reason::Removed, "off.yaml was deleted"));
    stack.detach("r");
    eventually("all is gone", async || agent.tools().await.is_empty().then_some(())).await;
    for tool in ["off_t", "r_echo"] {
        let text = told(&agent.call(tool, "{}").await.unwrap());
        assert!(text.contains("Removed") && text.contains("Do not call it again."), "{text}");
    }
    let text = told(&agent.call("off_t", "{}").await.unwrap());
    assert!(text.contains("off.yaml was deleted"), "{text}");
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_call_is_told_and_nothing_is_sent_twice() {
    let (stack, mut rig) = attached(RigEra::Legacy).await;
    let agent = Arc::new(stack.agent(Era::Legacy).await);
    let calling = agent.clone();
    let call = tokio::spawn(async move { calling.call("r_sleep", r#"{"ms":600000}"#).await });
    works(&rig).await;
    rig.stop().await;
    let text = told(&call.await.unwrap().unwrap());
    assert!(text.contains("default/r") && text.contains("may have taken effect"), "{text}");
    assert_eq!(rig.counters().calls(), 1);
}

#[tokio::test]
async fn many_agents_call_at_once() {
    let script = Script::new("rig", RigEra::Modern).tools(TOOLS);
    for answers in [Answers::Mixed, Answers::Json, Answers::Stream] {
        let mut script = script.clone();
        script.http.answers = answers;
        let (stack, rig) = attached_with(script, json!({})).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..32 {
            let url = stack.url();
            calls.spawn(async move {
                let agent = Agent::open(Era::ALL[number % 2], &url).await;
                for turn in 0..5 {
                    let arguments = format!(r#"{{"who":"{number}/{turn}"}}"#);
                    let text = agent.text("r_echo", &arguments).await;
                    assert!(text.contains(&arguments), "{text}");
                }
                let big = agent.text("r_big", r#"{"bytes":300000}"#).await;
                assert_eq!(big.len(), 300_000);
            });
        }
        calls.join_all().await;
        assert_eq!((rig.counters().calls(), at_work(&rig)), (32 * 6, 0));
        assert_eq!(rig.counters().complaints, Vec::<String>::new());
        stack.counts(r#"calls_total{namespace="default",server="r",outcome="ok"} 192"#).await;
    }
}
