//! Tests of `evenkeel plan`, with and without a running instance.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may block and fail")]

#[path = "support/mod.rs"]
mod support;

use serde_json::Value;
use support::{Evenkeel, TestDirectory, eventually};

const MISSING_COMMAND: &str = "stdio: { command: there-is-no-such-program }";

/// Runs `evenkeel plan` and returns its output, with the paths of directories replaced by names.
fn run_plan(evenkeel: &Evenkeel, args: &[&str], names: &[(&TestDirectory, &str)]) -> String {
    let output = evenkeel.command(&["plan"]).args(args).output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (declared, name) in names {
        text = text.replace(declared.path().to_str().unwrap(), name);
    }
    text
}

#[tokio::test]
async fn plan_lists_changes_and_applies_none() {
    let live = TestDirectory::new();
    let env = "stdio:\n  command: there-is-no-such-program\n  env: [{ name: TOKEN, value: hunter2 }]";
    for (name, spec) in [
        ("gone", MISSING_COMMAND),
        ("same", MISSING_COMMAND),
        ("respelled", &format!("{env}\n  cwd: .").replace("}]", "}, { name: SIZE, value: big }]")),
        ("url", "http: { url: \"http://localhost:1/a\" }"),
        ("filter", MISSING_COMMAND),
        ("secret", env),
        ("paused", MISSING_COMMAND),
        ("broken", MISSING_COMMAND),
    ] {
        live.write_server(name, spec);
    }
    let evenkeel = Evenkeel::run(live.path()).await;
    for name in ["gone", "same", "respelled", "url", "filter", "secret", "paused", "broken"] {
        eventually(name, async || evenkeel.get_server(name).await).await;
    }
    let path = live.path().to_str().unwrap();
    let names = [(&live, "LIVE")];
    let unchanged = "0 to add, 0 to change, 0 to remove, 8 unchanged; compared with the instance for LIVE\n";
    assert_eq!(run_plan(&evenkeel, &[path], &names), unchanged);

    let next = TestDirectory::new();
    for (name, spec) in [
        ("same", MISSING_COMMAND),
        ("respelled", &env.replace("[{", "[{ name: SIZE, value: big }, {")),
        ("url", "http: { url: \"http://LOCALHOST:1/a#b\" }"),
        ("new", MISSING_COMMAND),
        ("filter", &format!("{MISSING_COMMAND}\nexpose: {{ prefix: f }}\ntimeouts: {{ call: 1m }}")),
        ("secret", &env.replace("hunter2", "hunter3")),
        ("paused", &format!("{MISSING_COMMAND}\nsuspend: true")),
        ("broken", "stdio: { comand: x }"),
    ] {
        next.write_server(name, spec);
    }
    let names = [(&live, "LIVE"), (&next, "NEXT")];
    let args = [next.path().to_str().unwrap(), "--against", path];
    let text = run_plan(&evenkeel, &args, &names);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("! hold     McpServer default/broken: broken.yaml:5:12: unknown field"),
        "{text}"
    );
    assert_eq!(
        lines[1..],
        [
            "~ refilter McpServer default/filter: expose, timeouts",
            "- detach   McpServer default/gone",
            "+ attach   McpServer default/new",
            "~ suspend  McpServer default/paused",
            "~ replace  McpServer default/secret: env TOKEN",
            "1 to add, 3 to change, 1 to remove, 3 unchanged, 1 on hold; compared with the instance for LIVE",
        ]
    );
    let json = run_plan(&evenkeel, &[&args[..], &["-o", "json"]].concat(), &names);
    assert!(!json.contains("hunter"), "{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["add"], &json["change"], &json["against"]), (&1.into(), &3.into(), &"LIVE".into()));
    let secret = json["steps"].as_array().unwrap().iter().find(|step| step["name"] == "secret").unwrap();
    assert_eq!((&secret["action"], &secret["parts"]), (&"replace".into(), &serde_json::json!(["env TOKEN"])));
    assert_eq!(run_plan(&evenkeel, &[path], &names), unchanged, "nothing changed");

    // An unreadable file does not remove its objects.
    next.write("gone.yaml", "apiVersion: [");
    assert!(
        run_plan(&evenkeel, &args, &names)
            .contains("! hold     McpServer default/gone: gone.yaml cannot be read\n")
    );
}

#[tokio::test]
async fn plan_without_a_running_instance_adds_everything() {
    let (live, other) = (TestDirectory::new(), TestDirectory::new());
    live.write_server("a", MISSING_COMMAND);
    other.write_server("b", MISSING_COMMAND);
    other.write(
        "s.yaml",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: { name: s }\nspec: { inline: \"---\\nname: s\\ndescription: x\\n---\" }\n",
    );
    let evenkeel = Evenkeel::run(live.path()).await;
    let text = run_plan(&evenkeel, &[other.path().to_str().unwrap()], &[(&other, "OTHER")]);
    assert_eq!(
        text,
        "+ attach   McpServer default/b\n+ attach   Skill default/s\n\
         2 to add, 0 to change, 0 to remove, 0 unchanged; no instance is running for OTHER\n"
    );
    let output = evenkeel.command(&["plan", "/no/such/directory"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn plan_uses_the_stdio_policy_of_the_running_instance() {
    let live = TestDirectory::new();
    live.write_server("plain", MISSING_COMMAND);
    live.write_server("folder", "stdio: { command: there-is-no-such-program, cwd: . }");
    let evenkeel = Evenkeel::run_with(live.path(), &["--allow-stdio", "there-is-no-such-program"]).await;
    evenkeel.wait_for("plain", "Ready", "False", "CommandNotFound").await;
    let denied = evenkeel.wait_for("folder", "Accepted", "False", "PolicyDenied").await;
    assert!(denied.message.contains("servers run in /"), "{denied:?}");
    // The different working directory is not a change.
    let text = run_plan(&evenkeel, &[live.path().to_str().unwrap()], &[(&live, "LIVE")]);
    assert!(text.starts_with("! hold     McpServer default/folder: spec.stdio.cwd: "), "{text}");
    assert!(text.contains("0 to add, 0 to change, 0 to remove, 1 unchanged, 1 on hold;"), "{text}");
}
