//! Objects that are applied, edited, refused, deleted and made again.

use crate::rig::{Era as RigEra, Http, Script, Stdio};
use crate::site::{Site, server};
use crate::support::{Agent, Era, eventually};

fn script(name: &str) -> Script {
    Script::new(name, RigEra::Legacy).tools(&["echo"])
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn a_server_is_applied_edited_and_deleted_and_its_peer_is_untouched() {
    let site = Site::open().await;
    let (peer, one, two) = (
        Http::start(script("peer")).await,
        Http::start(script("one")).await,
        Http::start(script("two")).await,
    );
    let evenkeel = site.run(&[]).await;
    site.serve("peer", &peer).await;
    site.attached("peer").await;
    let agent = Agent::open(Era::Legacy, &evenkeel.url()).await;
    let mut notices = agent.notices().await;
    site.serve("a", &one).await;
    // As people wait for it.
    site.kubectl(&["wait", "--for=condition=Ready", "mcpserver/a", "--timeout=60s"]).await;
    notices.tools_changed().await;
    assert_eq!(agent.tools().await, ["a_echo", "peer_echo"]);
    let table = site.kubectl(&["get", "mcps"]).await;
    let row: Vec<_> = table.lines().find(|line| line.starts_with("a ")).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["a", "True", "Attached", "http", "1"], "{table}");
    eventually("the event is told", async || {
        let events = site.events("a").await;
        events.contains(&"Attached attached over http, 1 tool".to_owned()).then_some(())
    })
    .await;

    let plain = "health: { interval: 0s }";
    site.apply(&server("a", &format!("{}\n{plain}\nexpose: {{ prefix: b }}", one.spec()))).await;
    site.attached("a").await;
    assert_eq!(agent.tools().await, ["b_echo", "peer_echo"]);
    assert_eq!(one.counters().initializes(), 1, "another prefix is no other connection");

    site.apply(&server("a", &format!("{}\n{plain}\nexpose: {{ prefix: b }}", two.spec()))).await;
    site.attached("a").await;
    agent.text("b_echo", "{}").await;
    assert_eq!((two.counters().initializes(), two.counters().calls()), (1, 1));

    site.kubectl(&["delete", "mcpserver", "a"]).await;
    eventually("it is withdrawn", async || (agent.tools().await == ["peer_echo"]).then_some(())).await;
    let counters = peer.counters();
    assert_eq!((counters.initializes(), counters.sessions_opened, counters.lists()), (1, 1, 1));
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn the_api_server_refuses_what_breaks_a_rule_in_readable_words() {
    let site = Site::open().await;
    for (spec, expected) in [
        ("{}", "exactly one of stdio and http must be set"),
        ("stdio: { command: x }\nhttp: { url: \"http://a\" }", "exactly one of stdio and http must be set"),
        ("http: { url: \"ftp://a\" }", "url must start with http:// or https://"),
        (
            "http: { url: \"http://a\" }\nretry: { initial: 2m, max: 1m }",
            "initial must not be longer than max",
        ),
        ("http: { url: \"http://a\", ulr: x }", "unknown field \"spec.http.ulr\""),
        (
            "http: { url: \"http://a\", headers: [{ name: MCP-Session-Id, value: x }] }",
            "this header is set by evenkeel itself, or belongs to a single connection; leave it out",
        ),
        (
            "http: { url: \"http://a\", headers: [{ name: X-A, value: x }, { name: x-a, value: z }] }",
            "a header is declared twice; upper and lower case make no difference",
        ),
        ("http: { url: \"http://a\" }\nhealth: { interval: 2s }", "interval must be 0s (off) or at least 5s"),
    ] {
        let told = site.cluster.apply_refused(&site.namespace, &server("a", spec)).await;
        let told_field =
            told.contains(expected) || expected.contains("unknown field") && told.contains("ulr");
        assert!(told_field, "{spec}: {told}");
    }
    let skill = "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: a }\nspec:";
    for (spec, expected) in [
        ("{ configMapRef: { name: \"a,b\" } }", "spec.configMapRef.name: Invalid value"),
        ("{ inline: x, serverRefs: [{ name: A/b }] }", "spec.serverRefs[0].name: Invalid value"),
    ] {
        let told = site.cluster.apply_refused(&site.namespace, &format!("{skill} {spec}\n")).await;
        assert!(told.contains(expected), "{spec}: {told}");
    }
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn what_is_meant_for_directories_and_commands_that_nobody_allowed_are_refused() {
    let site = Site::open().await;
    let rig = Stdio::new(script("s"));
    let (program, file) = rig.command();
    let allowed = format!("{} {}", program.display(), file.display());
    let evenkeel = site.run(&["--allow-stdio", &allowed]).await;
    site.apply(
        &(server("allowed", &rig.spec("")) + &server("denied", "stdio: { command: sh, args: [-c, ls] }")),
    )
    .await;
    site.apply(&server("loader", &rig.spec(", env: [{ name: LD_PRELOAD, value: hunter2 }]"))).await;
    site.apply(&server("cwd", &rig.spec(", cwd: /tmp"))).await;
    site.apply(&server("env", &rig.spec(", env: [{ name: A_TOKEN, valueFrom: { env: HOME } }]"))).await;
    site.attached("allowed").await;
    for (name, reason, expected) in [
        ("denied", "PolicyDenied", "--allow-stdio \"sh -c ls\""),
        ("loader", "PolicyDenied", "--allow-stdio-env LD_PRELOAD"),
        ("cwd", "InvalidSpec", "spec.stdio.cwd"),
        ("env", "InvalidSpec", "spec.stdio.env[0].valueFrom.env"),
    ] {
        let message = site.wait_for(name, "Accepted", "False", reason).await;
        assert!(message.contains(expected), "{message}");
        site.wait_for(name, "Stalled", "True", reason).await;
    }
    assert_eq!(rig.processes().len(), 1);
    assert_eq!(Agent::open(Era::Modern, &evenkeel.url()).await.tools().await, ["allowed_echo"]);
    assert!(!evenkeel.said().contains("hunter2"), "{}", evenkeel.said());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn an_object_that_is_deleted_and_made_again_at_once_is_another() {
    let site = Site::open().await;
    let rig = Http::start(script("a")).await;
    let evenkeel = site.run(&[]).await;
    site.serve("a", &rig).await;
    site.attached("a").await;
    let before = site.get("a").await.unwrap()["metadata"]["uid"].clone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server("a", &rig.spec())).unwrap();
    site.kubectl(&["replace", "--force", "-f", file.path().to_str().unwrap()]).await;
    site.attached("a").await;
    assert_ne!(site.get("a").await.unwrap()["metadata"]["uid"], before);
    let agent = Agent::open(Era::Modern, &evenkeel.url()).await;
    agent.text("a_echo", "{}").await;
    assert_eq!(rig.counters().initializes(), 2, "another object is another connection");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn what_is_being_deleted_is_declared_no_more_though_a_finalizer_holds_it() {
    let site = Site::open().await;
    let (peer, rig) = (Http::start(script("peer")).await, Http::start(script("a")).await);
    let mut evenkeel = site.run(&[]).await;
    let held = |yaml: String| yaml.replacen("name: a }", "name: a, finalizers: [example.com/x] }", 1);
    let skill = "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: a }\nspec:\n  inline: |\n    \
                 ---\n    name: a\n    description: d\n    ---\n";
    site.serve("peer", &peer).await;
    site.apply(&held(server("a", &rig.spec()))).await;
    site.apply(&held(skill.to_owned())).await;
    site.attached("a").await;
    site.kubectl(&["wait", "--for=condition=Ready", "skill/a", "--timeout=60s"]).await;
    let agent = Agent::open(Era::Legacy, &evenkeel.url()).await;
    let tools = agent.tools().await;
    assert!(tools.contains(&"a_echo".to_owned()) && tools.len() > 2, "the skill brings tools too: {tools:?}");

    site.kubectl(&["delete", "--wait=false", "mcpserver/a", "skill/a"]).await;
    eventually("both are withdrawn", async || (agent.tools().await == ["peer_echo"]).then_some(())).await;
    let left = async || {
        let message = site.wait_for("a", "Ready", "False", "Removed").await;
        assert!(message.contains("being deleted"), "{message}");
        let status = site.get("a").await.unwrap()["status"].clone();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 1, "{status}");
        site.kubectl(&[
            "wait",
            "--for=jsonpath={.status.conditions[0].reason}=Removed",
            "skill/a",
            "--timeout=60s",
        ])
        .await;
    };
    left().await;
    let version = site.get("a").await.unwrap()["metadata"]["resourceVersion"].clone();
    // Neither an edit nor a restart brings it back.
    let begun = rig.counters().initializes();
    evenkeel.terminate().await;
    evenkeel.start_again().await;
    site.kubectl(&["label", "mcpserver/a", "touched=yes"]).await;
    eventually("it serves again", async || (peer.counters().initializes() == 2).then_some(())).await;
    site.apply(&server("marker", "stdio: { command: sh }")).await;
    site.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    left().await;
    assert_eq!(rig.counters().initializes(), begun);
    assert_ne!(site.get("a").await.unwrap()["metadata"]["resourceVersion"], version, "the label");

    let free = "{\"metadata\":{\"finalizers\":null}}";
    site.kubectl(&["patch", "mcpserver/a", "--type=merge", "-p", free]).await;
    site.kubectl(&["wait", "--for=delete", "mcpserver/a", "--timeout=60s"]).await;
    site.serve("a", &rig).await;
    site.attached("a").await;
    assert_eq!(rig.counters().initializes(), begun + 1, "another of the name is another");
    assert!(!evenkeel.said().contains("somebody else writes"), "{}", evenkeel.said());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn a_request_has_one_server_looked_at_again() {
    let site = Site::open().await;
    let rig =
        Http::start(script("a").on("initialize", crate::rig::Rule::times(1, crate::rig::Then::status(401))))
            .await;
    let _evenkeel = site.run(&[]).await;
    site.serve("a", &rig).await;
    eventually("it is stalled", async || {
        let object = site.get("a").await?;
        crate::site::condition(&object, "Stalled").filter(|(status, ..)| status == "True")
    })
    .await;
    site.kubectl(&["annotate", "mcpserver", "a", "evenkeel.dev/reconcile-requested-at=now"]).await;
    site.attached("a").await;
    let status = &site.get("a").await.unwrap()["status"];
    assert_eq!(status["lastHandledReconcileAt"], "now");

    // Of one that nothing is connected for, looking at it is all there is to do.
    let from = "{ secretKeyRef: { name: absent, key: key } }";
    let spec =
        format!("http: {{ url: \"http://127.0.0.1:9\", headers: [{{ name: x, valueFrom: {from} }}] }}");
    site.apply(&(server("unresolved", &spec) + &server("denied", "stdio: { command: sh }"))).await;
    for (name, kind, reason) in
        [("unresolved", "ResolvedRefs", "SecretNotFound"), ("denied", "Accepted", "PolicyDenied")]
    {
        site.wait_for(name, kind, "False", reason).await;
        site.kubectl(&["annotate", "mcpserver", name, "evenkeel.dev/reconcile-requested-at=now"]).await;
        eventually("the request is acknowledged", async || {
            (site.get(name).await?["status"]["lastHandledReconcileAt"] == "now").then_some(())
        })
        .await;
    }
}
