//! The commands for an instance that reads a cluster, run as in its container.

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Evenkeel, eventually};
use crate::test_namespace::TestNamespace;

/// Runs a command with the directories of the instance. Returns its exit code and its output.
async fn run_command(evenkeel: &Evenkeel, args: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::from(evenkeel.command(args));
    // The environment must not override the command line.
    let output = command.env("EVENKEEL_DIR", "/srv/fleet").output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn commands_find_the_instance_of_a_cluster() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let mut evenkeel = ns.run(&[]).await;
    let run = async |args: &[&str]| {
        run_command(&evenkeel, &[args, &["--kubernetes", "-n", &ns.name]].concat()).await
    };
    let source = ["describe", "source", "cluster"];
    let nothing_declared = format!("nothing is declared in namespace {}", ns.name);
    eventually("the empty source is reported", async || {
        run(&source).await.1.contains(&nothing_declared).then_some(())
    })
    .await;
    evenkeel.wait_for_log(&[&nothing_declared]).await;
    ns.apply_http_server("a", &rig).await;
    ns.wait_until_attached("a").await;
    assert!(!run(&source).await.1.contains(&nothing_declared));
    for (args, expected) in [
        (&["get", "mcpservers"][..], "Attached"),
        (&["describe", "mcpserver", "a"], "attached over http, 1 tool"),
        (&["wait", "a"], ""),
        (&["events"], "Attached"),
        (&["logs", "a"], ""),
        (&["mcp", "list"], "Attached"),
    ] {
        let (code, output) = run(args).await;
        assert!(code == Some(0) && output.contains(expected), "{args:?}: {code:?}\n{output}");
    }
    let (code, output) = run(&["mcp", "reload", "a"]).await;
    assert!(code == Some(1) && output.contains("kubectl annotate"), "{code:?} {output}");
    let (code, output) = run(&["mcp", "remove", "a"]).await;
    assert!(code == Some(2) && output.contains("kubectl"), "{code:?} {output}");
    evenkeel.terminate().await;
    let (code, output) = run_command(&evenkeel, &["get", "mcpservers", "--kubernetes"]).await;
    assert!(
        code == Some(1) && output.contains("start one with: evenkeel run --kubernetes"),
        "{code:?} {output}"
    );
}
