//! Objects that are applied, edited, rejected, deleted and created again.

use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};
use crate::test_namespace::{TestNamespace, server_yaml};

fn echo_script(name: &str) -> Script {
    Script::new(name, ServerEra::Legacy).tools(&["echo"])
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn server_apply_edit_and_delete_leave_other_servers_connected() {
    let ns = TestNamespace::create_shared().await;
    let (peer, one, two) = (
        FakeHttpServer::start(echo_script("peer")).await,
        FakeHttpServer::start(echo_script("one")).await,
        FakeHttpServer::start(echo_script("two")).await,
    );
    let evenkeel = ns.run(&[]).await;
    ns.apply_http_server("peer", &peer).await;
    ns.wait_until_attached("peer").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    let mut stream = agent.notifications().await;
    ns.apply_http_server("a", &one).await;
    // As users wait for it.
    ns.kubectl(&["wait", "--for=condition=Ready", "mcpserver/a", "--timeout=60s"]).await;
    stream.wait_for_tools_changed().await;
    assert_eq!(agent.tool_names().await, ["a_echo", "peer_echo"]);
    let table = ns.kubectl(&["get", "mcps"]).await;
    let row: Vec<_> = table.lines().find(|line| line.starts_with("a ")).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["a", "True", "Attached", "http", "1"], "{table}");
    eventually("the event is written", async || {
        let events = ns.events("a").await;
        events.contains(&"Attached attached over http, 1 tool".to_owned()).then_some(())
    })
    .await;

    let no_health_check = "health: { interval: 0s }";
    ns.apply(&server_yaml("a", &format!("{}\n{no_health_check}\nexpose: {{ prefix: b }}", one.spec()))).await;
    ns.wait_until_attached("a").await;
    assert_eq!(agent.tool_names().await, ["b_echo", "peer_echo"]);
    assert_eq!(one.counters().initializes(), 1, "a new prefix keeps the connection");

    ns.apply(&server_yaml("a", &format!("{}\n{no_health_check}\nexpose: {{ prefix: b }}", two.spec()))).await;
    ns.wait_until_attached("a").await;
    agent.call_text("b_echo", "{}").await;
    assert_eq!((two.counters().initializes(), two.counters().calls()), (1, 1));

    ns.kubectl(&["delete", "mcpserver", "a"]).await;
    eventually("the server is withdrawn", async || (agent.tool_names().await == ["peer_echo"]).then_some(()))
        .await;
    let counters = peer.counters();
    assert_eq!((counters.initializes(), counters.sessions_opened, counters.tool_lists()), (1, 1, 1));
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn crd_validation_rejects_invalid_specs_with_readable_messages() {
    let ns = TestNamespace::create_shared().await;
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
            "this header is set by evenkeel itself, or applies to a single connection; remove it",
        ),
        (
            "http: { url: \"http://a\", headers: [{ name: X-A, value: x }, { name: x-a, value: z }] }",
            "a header is declared twice; header names are case-insensitive",
        ),
        ("http: { url: \"http://a\" }\nhealth: { interval: 2s }", "interval must be 0s (off) or at least 5s"),
    ] {
        let error = ns.cluster.apply_error(&ns.name, &server_yaml("a", spec)).await;
        let matches = error.contains(expected) || expected.contains("unknown field") && error.contains("ulr");
        assert!(matches, "{spec}: {error}");
    }
    let skill = "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: a }\nspec:";
    for (spec, expected) in [
        ("{ configMapRef: { name: \"a,b\" } }", "spec.configMapRef.name: Invalid value"),
        ("{ inline: x, serverRefs: [{ name: A/b }] }", "spec.serverRefs[0].name: Invalid value"),
    ] {
        let error = ns.cluster.apply_error(&ns.name, &format!("{skill} {spec}\n")).await;
        assert!(error.contains(expected), "{spec}: {error}");
    }
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn directory_only_fields_and_commands_not_allowed_are_rejected() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeStdioServer::new(echo_script("s"));
    let (program, file) = rig.command();
    let allowed = format!("{} {}", program.display(), file.display());
    let evenkeel = ns.run(&["--allow-stdio", &allowed]).await;
    ns.apply(
        &(server_yaml("allowed", &rig.spec(""))
            + &server_yaml("denied", "stdio: { command: sh, args: [-c, ls] }")),
    )
    .await;
    ns.apply(&server_yaml("loader", &rig.spec(", env: [{ name: LD_PRELOAD, value: hunter2 }]"))).await;
    ns.apply(&server_yaml("cwd", &rig.spec(", cwd: /tmp"))).await;
    ns.apply(&server_yaml("env", &rig.spec(", env: [{ name: A_TOKEN, valueFrom: { env: HOME } }]"))).await;
    ns.wait_until_attached("allowed").await;
    for (name, reason, expected) in [
        ("denied", "PolicyDenied", "--allow-stdio \"sh -c ls\""),
        ("loader", "PolicyDenied", "--allow-stdio-env LD_PRELOAD"),
        ("cwd", "InvalidSpec", "spec.stdio.cwd"),
        ("env", "InvalidSpec", "spec.stdio.env[0].valueFrom.env"),
    ] {
        let message = ns.wait_for(name, "Accepted", "False", reason).await;
        assert!(message.contains(expected), "{message}");
        ns.wait_for(name, "Stalled", "True", reason).await;
    }
    assert_eq!(rig.processes().len(), 1);
    assert_eq!(Agent::connect(Era::Modern, &evenkeel.url()).await.tool_names().await, ["allowed_echo"]);
    assert!(!evenkeel.stderr().contains("hunter2"), "{}", evenkeel.stderr());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn recreated_object_gets_a_new_connection() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(echo_script("a")).await;
    let evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    let before = ns.get_server("a").await.unwrap()["metadata"]["uid"].clone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server_yaml("a", &rig.spec())).unwrap();
    ns.kubectl(&["replace", "--force", "-f", file.path().to_str().unwrap()]).await;
    ns.wait_until_attached("a").await;
    assert_ne!(ns.get_server("a").await.unwrap()["metadata"]["uid"], before);
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call_text("a_echo", "{}").await;
    assert_eq!(rig.counters().initializes(), 2, "a new object gets a new connection");
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn object_with_deletion_timestamp_is_withdrawn_despite_finalizer() {
    let ns = TestNamespace::create_shared().await;
    let (peer, rig) =
        (FakeHttpServer::start(echo_script("peer")).await, FakeHttpServer::start(echo_script("a")).await);
    let mut evenkeel = ns.run(&[]).await;
    let with_finalizer =
        |yaml: String| yaml.replacen("name: a }", "name: a, finalizers: [example.com/x] }", 1);
    let skill = "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: a }\nspec:\n  inline: |\n    \
                 ---\n    name: a\n    description: d\n    ---\n";
    ns.apply_http_server("peer", &peer).await;
    ns.apply(&with_finalizer(server_yaml("a", &rig.spec()))).await;
    ns.apply(&with_finalizer(skill.to_owned())).await;
    ns.wait_until_attached("a").await;
    ns.kubectl(&["wait", "--for=condition=Ready", "skill/a", "--timeout=60s"]).await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    let tools = agent.tool_names().await;
    assert!(tools.contains(&"a_echo".to_owned()) && tools.len() > 2, "a skill adds tools too: {tools:?}");

    ns.kubectl(&["delete", "--wait=false", "mcpserver/a", "skill/a"]).await;
    eventually("both are withdrawn", async || (agent.tool_names().await == ["peer_echo"]).then_some(()))
        .await;
    let is_reported_removed = async || {
        let message = ns.wait_for("a", "Ready", "False", "Removed").await;
        assert!(message.contains("being deleted"), "{message}");
        let status = ns.get_server("a").await.unwrap()["status"].clone();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 1, "{status}");
        ns.kubectl(&[
            "wait",
            "--for=jsonpath={.status.conditions[0].reason}=Removed",
            "skill/a",
            "--timeout=60s",
        ])
        .await;
    };
    is_reported_removed().await;
    let version = ns.get_server("a").await.unwrap()["metadata"]["resourceVersion"].clone();
    // Neither an edit nor a restart declares it again.
    let initializes = rig.counters().initializes();
    evenkeel.terminate().await;
    evenkeel.restart().await;
    ns.kubectl(&["label", "mcpserver/a", "touched=yes"]).await;
    eventually("the instance serves again", async || (peer.counters().initializes() == 2).then_some(()))
        .await;
    ns.apply(&server_yaml("marker", "stdio: { command: sh }")).await;
    ns.wait_for("marker", "Accepted", "False", "PolicyDenied").await;
    is_reported_removed().await;
    assert_eq!(rig.counters().initializes(), initializes);
    assert_ne!(
        ns.get_server("a").await.unwrap()["metadata"]["resourceVersion"],
        version,
        "the label changes it"
    );

    let remove_finalizers = "{\"metadata\":{\"finalizers\":null}}";
    ns.kubectl(&["patch", "mcpserver/a", "--type=merge", "-p", remove_finalizers]).await;
    ns.kubectl(&["wait", "--for=delete", "mcpserver/a", "--timeout=60s"]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    assert_eq!(
        rig.counters().initializes(),
        initializes + 1,
        "a new object with the same name gets a new connection"
    );
    assert!(!evenkeel.stderr().contains("keeps overwriting this status"), "{}", evenkeel.stderr());
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn reconcile_annotation_retries_one_server() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(
        echo_script("a").on("initialize", crate::rig::Rule::times(1, crate::rig::Action::status(401))),
    )
    .await;
    let _evenkeel = ns.run(&[]).await;
    ns.apply_http_server("a", &rig).await;
    eventually("the server is stalled", async || {
        let object = ns.get_server("a").await?;
        crate::test_namespace::condition(&object, "Stalled").filter(|(status, ..)| status == "True")
    })
    .await;
    ns.kubectl(&["annotate", "mcpserver", "a", "evenkeel.dev/reconcile-requested-at=now"]).await;
    ns.wait_until_attached("a").await;
    let status = &ns.get_server("a").await.unwrap()["status"];
    assert_eq!(status["lastHandledReconcileAt"], "now");

    // For a server that cannot be connected, the request is acknowledged only.
    let from = "{ secretKeyRef: { name: absent, key: key } }";
    let spec =
        format!("http: {{ url: \"http://127.0.0.1:9\", headers: [{{ name: x, valueFrom: {from} }}] }}");
    ns.apply(&(server_yaml("unresolved", &spec) + &server_yaml("denied", "stdio: { command: sh }"))).await;
    for (name, kind, reason) in
        [("unresolved", "ResolvedRefs", "SecretNotFound"), ("denied", "Accepted", "PolicyDenied")]
    {
        ns.wait_for(name, kind, "False", reason).await;
        ns.kubectl(&["annotate", "mcpserver", name, "evenkeel.dev/reconcile-requested-at=now"]).await;
        eventually("the request is acknowledged", async || {
            (ns.get_server(name).await?["status"]["lastHandledReconcileAt"] == "now").then_some(())
        })
        .await;
    }
}
