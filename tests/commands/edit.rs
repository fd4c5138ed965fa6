//! Tests `mcp add`, `mcp remove` and `mcp reload`.

use std::fs;

use crate::rig::{Action, FakeStdioServer, Rule, Script};
use crate::support::{Evenkeel, TestDirectory, eventually};
use crate::test_instance::{CommandOutput, TestInstance};

#[tokio::test]
async fn mcp_add_writes_one_file_and_reports_attachment() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[]).await;
    let (program, script) = server.command();
    let (program, script) = (program.to_str().unwrap(), script.to_str().unwrap());
    let out = instance
        .run_ok(&["mcp", "add", "a", "--env", "LEVEL=on", "--env", "HOME", "--", program, script])
        .await;
    let path = instance.path().join("a.yaml");
    assert_eq!(out, format!("wrote {}\na is attached with 2 tools\n", path.display()));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("    - name: LEVEL\n") && text.contains("env: HOME\n"), "{text}");

    let stderr = instance.run_failing(&["mcp", "add", "a", "https://example.com/mcp"]).await;
    assert!(
        stderr.contains("McpServer default/a is already declared in ") && stderr.contains("a.yaml:1"),
        "{stderr}"
    );
    fs::write(instance.path().join("b.yaml"), "# mine\n").unwrap();
    let stderr = instance.run_failing(&["mcp", "add", "b", "https://example.com/mcp", "--no-wait"]).await;
    assert!(stderr.contains("b.yaml already exists"), "{stderr}");
    assert_eq!(fs::read_to_string(instance.path().join("b.yaml")).unwrap(), "# mine\n");

    let stderr = instance.run_failing(&["mcp", "add", "c", "--", "no-such-program-anywhere"]).await;
    assert!(stderr.contains("c is declared in ") && stderr.contains("CommandNotFound: "), "{stderr}");
    let stderr = instance
        .run_failing(&["mcp", "add", "d", "http://127.0.0.1:1/mcp", "--secret", "Authorization=gh/token"])
        .await;
    assert!(stderr.contains("SecretNotFound: "), "{stderr}");
    let text = fs::read_to_string(instance.path().join("d.yaml")).unwrap();
    assert!(text.contains("secretKeyRef:"), "{text}");
    for (args, expected) in [
        (&["mcp", "add", "Bad", "--", "x"][..], "metadata.name"),
        (&["mcp", "add", "e", "ftp://example.com"], "http"),
    ] {
        let stderr = instance.run_failing(args).await;
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    for args in [
        &["mcp", "add", "e"][..],
        &["mcp", "add", "e", "http://a/", "--", "x"],
        &["mcp", "add", "e", "http://a/", "--env", "A=1"],
        &["mcp", "add", "e", "--secret", "A=b", "--", "x"],
    ] {
        assert_eq!(instance.run(args).await.code, 2, "{args:?}");
    }
    let mut files: Vec<_> =
        fs::read_dir(instance.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["a.yaml", "b.yaml", "c.yaml", "d.yaml"], "no temporary file is left behind");
}

#[tokio::test]
async fn mcp_remove_keeps_the_surrounding_text() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("alone", &server.spec("")), ("twice", &server.spec(""))]).await;
    let document = |name: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec:\n  {}\n",
            server.spec("")
        )
    };
    let (one, two) = (document("one"), document("two"));
    instance.declared.write("both.yaml", &format!("# about one\n{one}---\n# about two\n{two}"));
    instance.declared.write("again.yaml", &document("twice"));
    instance.run_ok(&["wait", "alone", "one", "two"]).await;

    instance.run_ok(&["mcp", "remove", "one"]).await;
    let remaining = fs::read_to_string(instance.path().join("both.yaml")).unwrap();
    assert_eq!(remaining, format!("---\n# about two\n{two}"));
    let out = instance.run_ok(&["mcp", "remove", "alone"]).await;
    assert!(out.ends_with("alone is detached\n"), "{out}");
    assert!(!instance.path().join("alone.yaml").exists());

    let stderr = instance.run_failing(&["mcp", "remove", "twice"]).await;
    assert!(stderr.contains("again.yaml:1") && stderr.contains("twice.yaml:1"), "{stderr}");
    let stderr = instance.run_failing(&["mcp", "remove", "tow"]).await;
    assert!(stderr.contains("did you mean two?"), "{stderr}");

    instance.declared.remove("again.yaml");
    instance.declared.write(
        ".mcp.json",
        "{\n \"mcpServers\": {\n  \"json\": { \"command\": \"no-such-program-anywhere\" } } }\n",
    );
    instance.run_ok(&["wait", "json", "--for=condition=Accepted"]).await;
    let stderr = instance.run_failing(&["mcp", "remove", "json"]).await;
    assert!(stderr.contains("json is declared in JSON, at ") && stderr.contains("/.mcp.json:"), "{stderr}");
    instance.declared.remove(".mcp.json");
    instance.run_ok(&["mcp", "remove", "two"]).await;
    // The last one too: the command confirms the removal, and nothing is held back as a mistake.
    instance.run_ok(&["mcp", "remove", "twice"]).await;
    let nothing = instance.run(&["get", "mcps"]).await;
    assert_eq!((nothing.code, &*nothing.stdout), (0, ""));
}

#[tokio::test]
async fn mcp_add_and_remove_work_without_an_instance() {
    let declared = TestDirectory::new();
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    evenkeel.terminate().await;
    let run = |args: &[&str]| {
        CommandOutput::from_output(
            &evenkeel.command(args).env("EVENKEEL_DIR", declared.path().join("new")).output().unwrap(),
        )
    };
    let output = run(&["mcp", "add", "a", "https://example.com/mcp", "--header", "Accept-Language: en"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("no evenkeel instance is running for "), "{output:?}");
    assert!(declared.path().join("new/a.yaml").exists());
    assert_eq!(run(&["mcp", "remove", "a"]).code, 0);
}

#[tokio::test]
async fn reload_relists_and_only_reconnect_replaces_connections() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("a", &server.spec("")), ("peer", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    instance.evenkeel.wait_until_attached("peer").await;
    let before: Vec<_> = server.live_processes();
    for process in &before {
        let mut script = Script::default().tools(&["echo", "fresh"]);
        script.quiet = true;
        process.set_script(script).await;
    }
    let out = instance.run_ok(&["mcp", "reload", "a"]).await;
    assert_eq!(out, "requested reload of 1 server\na: added fresh; removed report; unchanged 1\n");
    assert_eq!(server.processes().len(), 2, "nothing was started");

    server.edit_script(|script| script.quiet = true);
    let out = instance.run_ok(&["mcp", "reload", "a", "--reconnect"]).await;
    assert_eq!(out, "requested reload of 1 server\na: added report; removed fresh; unchanged 1\n");
    assert_eq!(server.processes().len(), 3);
    eventually("the old process exits and the peer is untouched", async || {
        (before.iter().filter(|process| process.is_alive()).count() == 1).then_some(())
    })
    .await;

    // A list error is a failure, although the server stays attached.
    let broken = Script::default().on("tools/list", Rule::always(Action::error(-32603, "boom")));
    for process in server.live_processes() {
        process.set_script(Script { quiet: true, ..broken.clone() }).await;
    }
    let output = instance.run(&["mcp", "reload", "a"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stdout.contains("a: tools/list") && output.stdout.contains("boom"), "{output:?}");
    for process in server.live_processes() {
        process.set_script(Script { quiet: true, ..Script::default() }).await;
    }

    instance.declared.write_server("missing", "stdio: { command: no-such-program-anywhere }");
    instance.evenkeel.wait_for("missing", "Ready", "False", "CommandNotFound").await;
    let output = instance.run(&["mcp", "reload"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.stdout.contains("requested reload of 3 servers\n")
            && output.stdout.contains("missing: CommandNotFound: "),
        "{output:?}"
    );
    let stderr = instance.run_failing(&["mcp", "reload", "per"]).await;
    assert!(stderr.contains("did you mean peer?"), "{stderr}");
    assert_eq!(instance.run_ok(&["mcp", "reload", "a", "--no-wait"]).await, "requested reload of 1 server\n");
}

#[tokio::test]
async fn commands_report_on_the_current_files() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[
        ("clock", &server.spec("")),
        ("asleep", "suspend: true\nstdio: { command: x }"),
    ])
    .await;
    instance.evenkeel.wait_until_attached("clock").await;
    // Another server with the name of an attached one.
    instance.declared.remove("clock.yaml");
    let stderr = instance.run_failing(&["mcp", "add", "clock", "--", "no-such-program-anywhere"]).await;
    assert!(stderr.contains("clock is declared in ") && stderr.contains("CommandNotFound: "), "{stderr}");
    instance.declared.write_server("clock", &server.spec(""));
    let out = instance.run_ok(&["mcp", "reload", "clock"]).await;
    assert!(out.starts_with("requested reload of 1 server\nclock: "), "{out}");
    assert!(!out.contains("CommandNotFound"), "{out}");

    // A suspended server is handled at once and not attached.
    let output = instance.run(&["mcp", "reload", "asleep"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(output.stdout, "requested reload of 1 server\nasleep: Suspended: suspended by spec.suspend\n");
    assert!(
        instance
            .run_failing(&["mcp", "reload", "asleep", "--timeout", "1ms"])
            .await
            .contains("timed out after 1ms")
    );
}

#[tokio::test]
async fn mcp_add_rejects_a_missing_or_emptied_directory() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("a", &server.spec("")), ("b", &server.spec(""))]).await;
    instance.run_ok(&["wait", "a", "b"]).await;
    let moved = instance.path().with_extension("away");
    fs::rename(instance.path(), &moved).unwrap();
    for flag in ["--no-wait", "--timeout=5s"] {
        let stderr =
            instance.run_failing(&["mcp", "add", flag, "late", "--", "no-such-program-anywhere"]).await;
        assert!(
            stderr.contains(" is missing, but evenkeel still holds 2 objects of it; restore it"),
            "{stderr}"
        );
    }
    assert!(!instance.path().exists());
    fs::rename(&moved, instance.path()).unwrap();
    instance.run_ok(&["wait", "--all"]).await;

    for file in ["a.yaml", "b.yaml"] {
        instance.declared.remove(file);
    }
    eventually("the removal is held back", async || {
        instance.run_ok(&["describe", "src", "directory"]).await.contains("RemovalHeld").then_some(())
    })
    .await;
    let stderr = instance.run_failing(&["mcp", "add", "late", "--", "no-such-program-anywhere"]).await;
    assert!(
        stderr.contains(" is empty, but evenkeel still holds 2 objects of it; restore its files"),
        "{stderr}"
    );
    assert_eq!(server.live_processes().len(), 2, "no server was detached");
    assert_eq!(server.processes().len(), 2);
    instance.run_ok(&["mcp", "reload", "--prune-empty"]).await;
    instance.run_ok(&["mcp", "add", "late", "--no-wait", "--", "no-such-program-anywhere"]).await;
}
