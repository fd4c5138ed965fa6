//! The commands beside an evenkeel that reads a cluster, as in its container.

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Evenkeel, eventually};
use crate::test_namespace::TestNamespace;

/// Runs a command where evenkeel runs: its exit code and everything that it says.
async fn run_command(evenkeel: &Evenkeel, args: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::from(evenkeel.command(args));
    // What is meant on the command line must not be spoilt by the environment.
    let output = command.env("EVENKEEL_DIR", "/srv/fleet").output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn commands_find_the_instance_of_a_cluster() {
    let site = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let mut evenkeel = site.run(&[]).await;
    let beside = async |args: &[&str]| {
        run_command(&evenkeel, &[args, &["--kubernetes", "-n", &site.namespace]].concat()).await
    };
    let source = ["describe", "source", "cluster"];
    let nothing = format!("nothing is declared in namespace {}", site.namespace);
    eventually("it says that nothing is declared", async || {
        beside(&source).await.1.contains(&nothing).then_some(())
    })
    .await;
    assert!(evenkeel.stderr().contains(&nothing), "{}", evenkeel.stderr());
    site.apply_http_server("a", &rig).await;
    site.wait_until_attached("a").await;
    assert!(!beside(&source).await.1.contains(&nothing));
    for (args, expected) in [
        (&["get", "mcpservers"][..], "Attached"),
        (&["describe", "mcpserver", "a"], "attached over http, 1 tool"),
        (&["wait", "a"], ""),
        (&["events"], "Attached"),
        (&["logs", "a"], ""),
        (&["mcp", "list"], "Attached"),
    ] {
        let (code, said) = beside(args).await;
        assert!(code == Some(0) && said.contains(expected), "{args:?}: {code:?}\n{said}");
    }
    let (code, said) = beside(&["mcp", "reload", "a"]).await;
    assert!(code == Some(1) && said.contains("kubectl annotate"), "{code:?} {said}");
    let (code, said) = beside(&["mcp", "remove", "a"]).await;
    assert!(code == Some(2) && said.contains("kubectl"), "{code:?} {said}");
    evenkeel.terminate().await;
    let (code, said) = run_command(&evenkeel, &["get", "mcpservers", "--kubernetes"]).await;
    assert!(code == Some(1) && said.contains("start it with: evenkeel run --kubernetes"), "{code:?} {said}");
}
