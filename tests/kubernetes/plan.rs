//! `evenkeel plan --kubernetes`: the changes that applying manifests would make, for an account that may only list.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::test_namespace::{TestNamespace, server_yaml};

/// Runs `evenkeel plan --kubernetes` without a running instance.
async fn run_plan(kubeconfig: &Path, args: &[&str], stdin: &str) -> Output {
    let home = TempDir::new().unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .env_clear()
        .env("HOME", home.path())
        .env("KUBECONFIG", kubeconfig)
        .args(["plan", "--kubernetes"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // If the command does not read all of it, its stderr has the reason.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
    child.wait_with_output().await.unwrap()
}

fn stdout_of_success(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr_of_failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Creates an account that may only list declared objects in this namespace, and returns its kubeconfig.
async fn create_reader_account(ns: &TestNamespace<'_>) -> std::path::PathBuf {
    let resources = "--resource=mcpservers.evenkeel.dev,skills.evenkeel.dev";
    ns.kubectl(&["create", "serviceaccount", "reader"]).await;
    ns.kubectl(&["create", "role", "reader", "--verb=list", resources]).await;
    let account = format!("--serviceaccount={}:reader", ns.name);
    ns.kubectl(&["create", "rolebinding", "reader", "--role=reader", &account]).await;
    let account = format!("{}:reader", ns.name);
    ns.cluster.wait_for_permission(&account, "list", "skills.evenkeel.dev", &ns.name, true).await;
    ns.cluster.kubeconfig_for(&ns.name, "reader").await
}

const SKILL_HEADER: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: s }\n";

fn skill_yaml(spec: &str) -> String {
    format!("{SKILL_HEADER}spec: {{ {spec} }}\n---\n")
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn plan_of_manifests_matches_the_effect_of_apply() {
    let ns = TestNamespace::create_shared().await;
    let rig = FakeHttpServer::start(Script::new("a", ServerEra::Legacy).tools(&["echo"])).await;
    let _evenkeel = ns.run(&[]).await;
    let (one, two) = ("{ name: X-One, value: hunter2 }", "{ name: x-two, value: b }");
    let a = |host: &str, headers: &str| {
        let url = format!("http://{host}:{}/mcp", rig.address().port());
        let health = "health: { interval: 0s }";
        server_yaml("a", &format!("http: {{ url: \"{url}\", headers: [{headers}] }}\n{health}"))
    };
    ns.apply(&a("localhost", &format!("{one}, {two}"))).await;
    ns.wait_until_attached("a").await;
    let stdio = |env: &str| format!("stdio: {{ command: c, env: [{{ name: A_TOKEN, {env} }}] }}");
    let of_secret = |key: &str| stdio(&format!("valueFrom: {{ secretKeyRef: {{ name: s, key: {key} }} }}"));
    for (name, spec) in [
        ("filter", stdio("value: x")),
        ("secret", of_secret("one")),
        ("paused", stdio("value: x")),
        ("extra", stdio("value: x")),
    ] {
        ns.apply(&server_yaml(name, &spec)).await;
    }
    ns.apply(&skill_yaml("inline: \"---\\nname: s\\ndescription: x\\n---\"")).await;

    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("more")).unwrap();
    let first = a("LOCALHOST", &format!("{two}, {}", one.to_lowercase()))
        + &server_yaml("filter", &format!("{}\nexpose: {{ prefix: f }}", stdio("value: x")))
        + &skill_yaml("configMapRef: { name: m }");
    let second = [
        server_yaml("secret", &of_secret("two")),
        server_yaml("paused", &format!("{}\nsuspend: true", stdio("value: x"))),
        server_yaml("new", "http: { url: \"http://localhost:1\" }"),
    ];
    std::fs::write(dir.path().join("a.yaml"), &first).unwrap();
    std::fs::write(dir.path().join("more/b.yml"), second.concat()).unwrap();
    // Files without manifests of evenkeel.
    std::fs::write(dir.path().join(".mcp.json"), "{ \"mcpServers\": { \"x\": { \"command\": \"x\" } } }")
        .unwrap();
    std::fs::write(dir.path().join("m.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: m }\n")
        .unwrap();

    let reader = create_reader_account(&ns).await;
    let namespace = ns.name.as_str();
    let dir = dir.path().to_str().unwrap();
    let text = stdout_of_success(run_plan(&reader, &[dir, "-n", namespace], "").await);
    let expected = |counts: &str, detached: &str| {
        format!(
            "{detached}~ refilter McpServer NS/filter: expose\n\
             + attach   McpServer NS/new\n\
             ~ suspend  McpServer NS/paused\n\
             ~ replace  McpServer NS/secret: env A_TOKEN\n\
             ~ refilter Skill NS/s: configMapRef, inline\n\
             1 to add, 4 to change, {counts}; compared with namespace NS of {}\n",
            ns.cluster.url()
        )
        .replace("NS", namespace)
    };
    assert_eq!(text, expected("0 to remove, 1 unchanged, 1 not in the manifests", ""));
    let text = stdout_of_success(run_plan(&reader, &[dir, "-n", namespace, "--prune"], "").await);
    assert_eq!(text, expected("1 to remove, 1 unchanged", "- detach   McpServer NS/extra\n"));
    let json = stdout_of_success(run_plan(&reader, &[dir, "-n", namespace, "-o", "json"], "").await);
    assert!(!json.contains("hunter2"), "{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["untouched"], &json["against"]), (&1.into(), &ns.cluster.url().into()));
    let extra = json["steps"].as_array().unwrap().iter().find(|step| step["name"] == "extra").unwrap();
    assert_eq!(extra["action"], "untouched");

    // The namespace of a manifest is used, and manifests are read from stdin.
    let named = server_yaml("a", "http: { url: \"http://localhost:1\" }")
        .replace("{ name: a }", &format!("{{ name: a, namespace: {namespace} }}"));
    let text = stdout_of_success(run_plan(&reader, &["-"], &named).await);
    assert!(
        text.contains(&format!(
            "~ replace  McpServer {namespace}/a: header x-one, header x-two, url, health\n"
        )),
        "{text}"
    );

    // After apply, nothing changes any more, and the connection was kept.
    let sessions = rig.counters().sessions_opened;
    std::fs::remove_file(format!("{dir}/.mcp.json")).unwrap();
    ns.kubectl(&["apply", "--server-side", "--force-conflicts", "-R", "-f", dir]).await;
    ns.wait_for("filter", "Accepted", "False", "PolicyDenied").await;
    ns.wait_until_attached("a").await;
    let text = stdout_of_success(run_plan(&reader, &[dir, "-n", namespace], "").await);
    assert!(
        text.starts_with("0 to add, 0 to change, 0 to remove, 6 unchanged, 1 not in the manifests;"),
        "{text}"
    );
    assert_eq!(rig.counters().sessions_opened, sessions);
}

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn plan_failures_report_the_cause_and_a_remedy() {
    let ns = TestNamespace::create_shared().await;
    let reader = create_reader_account(&ns).await;
    let namespace = ns.name.as_str();
    let manifest = server_yaml("a", "http: { url: \"http://localhost:1\" }");
    let dir = TempDir::new().unwrap();
    let empty = dir.path().to_str().unwrap();
    let missing = dir.path().join("none.yaml");
    for (args, stdin, expected) in [
        (&["-", "-n", "default"][..], manifest.as_str(), "grant the verb list on mcpservers and skills"),
        (&["-", "-n", namespace], "apiVersion: evenkeel.dev/v1alpha1\nkind: [\n", "stdin:"),
        (&["-", "-n", namespace], "apiVersion: v1\nkind: ConfigMap\n", "kustomize build DIR | evenkeel plan"),
        (&[empty, "-n", namespace], "", "no McpServer or Skill manifests found in"),
        (&[missing.to_str().unwrap(), "-n", namespace], "", "none.yaml"),
    ] {
        let stderr = stderr_of_failure(&run_plan(&reader, args, stdin).await);
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    // An object that the API server would reject is held, and the others are planned.
    let invalid = server_yaml("b", "stdio: { command: c, cwd: x }");
    let text = stdout_of_success(run_plan(&reader, &["-", "-n", namespace], &(invalid + &manifest)).await);
    assert!(
        text.starts_with(&format!(
            "+ attach   McpServer {namespace}/a\n! hold     McpServer {namespace}/b: stdin:"
        )),
        "{text}"
    );
    assert!(text.contains("spec.stdio.cwd: cwd is not supported for objects in a cluster"), "{text}");

    let unreachable = dir.path().join("kubeconfig");
    let config = std::fs::read_to_string(&reader).unwrap().replace(&ns.cluster.url(), "https://127.0.0.1:1");
    std::fs::write(&unreachable, config).unwrap();
    let stderr = stderr_of_failure(&run_plan(&unreachable, &["-", "-n", namespace], &manifest).await);
    assert!(stderr.contains("the API server https://127.0.0.1:1 cannot be reached: "), "{stderr}");
    let stderr = stderr_of_failure(&run_plan(&missing, &["-", "-n", namespace], &manifest).await);
    assert!(
        stderr.contains("no Kubernetes API server is configured: ") && stderr.contains("set KUBECONFIG"),
        "{stderr}"
    );
}
