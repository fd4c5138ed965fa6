//! `mcp add`, `mcp remove` and `mcp reload`.

use std::fs;

use crate::rig::{Action, FakeStdioServer, Rule, Script};
use crate::support::{Evenkeel, TestDirectory, eventually};
use crate::test_instance::{CommandOutput, TestInstance};

#[tokio::test]
async fn mcp_add_writes_one_file_and_reports_attachment() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[]).await;
    let (program, script) = server.command();
    let (program, script) = (program.to_str().unwrap(), script.to_str().unwrap());
    let out =
        stage.run_ok(&["mcp", "add", "a", "--env", "LEVEL=on", "--env", "HOME", "--", program, script]).await;
    let path = stage.path().join("a.yaml");
    assert_eq!(out, format!("{} is written\na is attached with 2 tools\n", path.display()));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("    - name: LEVEL\n") && text.contains("env: HOME\n"), "{text}");

    let said = stage.run_failing(&["mcp", "add", "a", "https://example.com/mcp"]).await;
    assert!(
        said.contains("McpServer default/a is declared already, in ") && said.contains("a.yaml:1"),
        "{said}"
    );
    fs::write(stage.path().join("b.yaml"), "# mine\n").unwrap();
    let said = stage.run_failing(&["mcp", "add", "b", "https://example.com/mcp", "--no-wait"]).await;
    assert!(said.contains("b.yaml is there already"), "{said}");
    assert_eq!(fs::read_to_string(stage.path().join("b.yaml")).unwrap(), "# mine\n");

    let said = stage.run_failing(&["mcp", "add", "c", "--", "no-such-program-anywhere"]).await;
    assert!(said.contains("c is declared in ") && said.contains("CommandNotFound: "), "{said}");
    let said = stage
        .run_failing(&["mcp", "add", "d", "http://127.0.0.1:1/mcp", "--secret", "Authorization=gh/token"])
        .await;
    assert!(said.contains("SecretNotFound: "), "{said}");
    let text = fs::read_to_string(stage.path().join("d.yaml")).unwrap();
    assert!(text.contains("secretKeyRef:"), "{text}");
    for (args, expected) in [
        (&["mcp", "add", "Bad", "--", "x"][..], "metadata.name"),
        (&["mcp", "add", "e", "ftp://example.com"], "http"),
    ] {
        let said = stage.run_failing(args).await;
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    for args in [
        &["mcp", "add", "e"][..],
        &["mcp", "add", "e", "http://a/", "--", "x"],
        &["mcp", "add", "e", "http://a/", "--env", "A=1"],
        &["mcp", "add", "e", "--secret", "A=b", "--", "x"],
    ] {
        assert_eq!(stage.run(args).await.code, 2, "{args:?}");
    }
    let mut files: Vec<_> =
        fs::read_dir(stage.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["a.yaml", "b.yaml", "c.yaml", "d.yaml"], "nothing is left behind");
}

#[tokio::test]
async fn mcp_remove_keeps_the_surrounding_text() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("alone", &server.spec("")), ("twice", &server.spec(""))]).await;
    let document = |name: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec:\n  {}\n",
            server.spec("")
        )
    };
    let (one, two) = (document("one"), document("two"));
    stage.declared.write("both.yaml", &format!("# about one\n{one}---\n# about two\n{two}"));
    stage.declared.write("again.yaml", &document("twice"));
    stage.run_ok(&["wait", "alone", "one", "two"]).await;

    stage.run_ok(&["mcp", "remove", "one"]).await;
    let left = fs::read_to_string(stage.path().join("both.yaml")).unwrap();
    assert_eq!(left, format!("---\n# about two\n{two}"));
    let out = stage.run_ok(&["mcp", "remove", "alone"]).await;
    assert!(out.ends_with("alone is detached\n"), "{out}");
    assert!(!stage.path().join("alone.yaml").exists());

    let said = stage.run_failing(&["mcp", "remove", "twice"]).await;
    assert!(said.contains("again.yaml:1") && said.contains("twice.yaml:1"), "{said}");
    let said = stage.run_failing(&["mcp", "remove", "tow"]).await;
    assert!(said.contains("did you mean two?"), "{said}");

    stage.declared.remove("again.yaml");
    stage.declared.write(
        ".mcp.json",
        "{\n \"mcpServers\": {\n  \"json\": { \"command\": \"no-such-program-anywhere\" } } }\n",
    );
    stage.run_ok(&["wait", "json", "--for=condition=Accepted"]).await;
    let said = stage.run_failing(&["mcp", "remove", "json"]).await;
    assert!(said.contains("json is declared in JSON, at ") && said.contains("/.mcp.json:"), "{said}");
    stage.declared.remove(".mcp.json");
    stage.run_ok(&["mcp", "remove", "two"]).await;
    // The last one too: a person said so, and nothing is held back as a mistake.
    stage.run_ok(&["mcp", "remove", "twice"]).await;
    let nothing = stage.run(&["get", "mcps"]).await;
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
    let done = run(&["mcp", "add", "a", "https://example.com/mcp", "--header", "Accept-Language: en"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("no evenkeel is running for "), "{done:?}");
    assert!(declared.path().join("new/a.yaml").exists());
    assert_eq!(run(&["mcp", "remove", "a"]).code, 0);
}

#[tokio::test]
async fn reload_relists_and_only_reconnect_replaces_connections() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("a", &server.spec("")), ("peer", &server.spec(""))]).await;
    stage.evenkeel.wait_until_attached("a").await;
    stage.evenkeel.wait_until_attached("peer").await;
    let before: Vec<_> = server.live_processes();
    for process in &before {
        let mut script = Script::default().tools(&["echo", "fresh"]);
        script.quiet = true;
        process.set_script(script).await;
    }
    let out = stage.run_ok(&["mcp", "reload", "a"]).await;
    assert_eq!(out, "accepted for 1 server\na: added fresh; removed report; unchanged 1\n");
    assert_eq!(server.processes().len(), 2, "nothing was started");

    server.edit_script(|script| script.quiet = true);
    let out = stage.run_ok(&["mcp", "reload", "a", "--reconnect"]).await;
    assert_eq!(out, "accepted for 1 server\na: added report; removed fresh; unchanged 1\n");
    assert_eq!(server.processes().len(), 3);
    eventually("the one before ends, and the peer is untouched", async || {
        (before.iter().filter(|process| process.is_alive()).count() == 1).then_some(())
    })
    .await;

    // What cannot be listed is no success, though it is attached.
    let broken = Script::default().on("tools/list", Rule::always(Action::error(-32603, "boom")));
    for process in server.live_processes() {
        process.set_script(Script { quiet: true, ..broken.clone() }).await;
    }
    let done = stage.run(&["mcp", "reload", "a"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("a: tools/list") && done.stdout.contains("boom"), "{done:?}");
    for process in server.live_processes() {
        process.set_script(Script { quiet: true, ..Script::default() }).await;
    }

    stage.declared.write_server("missing", "stdio: { command: no-such-program-anywhere }");
    stage.evenkeel.wait_for("missing", "Ready", "False", "CommandNotFound").await;
    let done = stage.run(&["mcp", "reload"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stdout.contains("accepted for 3 servers\n")
            && done.stdout.contains("missing: CommandNotFound: "),
        "{done:?}"
    );
    let said = stage.run_failing(&["mcp", "reload", "per"]).await;
    assert!(said.contains("did you mean peer?"), "{said}");
    assert_eq!(stage.run_ok(&["mcp", "reload", "a", "--no-wait"]).await, "accepted for 1 server\n");
}

#[tokio::test]
async fn commands_report_on_the_current_files() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[
        ("clock", &server.spec("")),
        ("asleep", "suspend: true\nstdio: { command: x }"),
    ])
    .await;
    stage.evenkeel.wait_until_attached("clock").await;
    // Another server under the name of one that is attached.
    stage.declared.remove("clock.yaml");
    let said = stage.run_failing(&["mcp", "add", "clock", "--", "no-such-program-anywhere"]).await;
    assert!(said.contains("clock is declared in ") && said.contains("CommandNotFound: "), "{said}");
    stage.declared.write_server("clock", &server.spec(""));
    let out = stage.run_ok(&["mcp", "reload", "clock"]).await;
    assert!(out.starts_with("accepted for 1 server\nclock: "), "{out}");
    assert!(!out.contains("CommandNotFound"), "{out}");

    // One that is suspended is done with at once, and not attached.
    let done = stage.run(&["mcp", "reload", "asleep"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(done.stdout, "accepted for 1 server\nasleep: Suspended: suspended by spec.suspend\n");
    assert!(
        stage.run_failing(&["mcp", "reload", "asleep", "--timeout", "1ms"]).await.contains("not within 1ms")
    );
}

#[tokio::test]
async fn mcp_add_rejects_a_missing_or_emptied_directory() {
    let server = FakeStdioServer::new(Script::default());
    let stage = TestInstance::start(&[("a", &server.spec("")), ("b", &server.spec(""))]).await;
    stage.run_ok(&["wait", "a", "b"]).await;
    let away = stage.path().with_extension("away");
    fs::rename(stage.path(), &away).unwrap();
    for flag in ["--no-wait", "--timeout=5s"] {
        let said = stage.run_failing(&["mcp", "add", flag, "late", "--", "no-such-program-anywhere"]).await;
        assert!(said.contains(" is missing and evenkeel holds on to 2 objects; bring it back"), "{said}");
    }
    assert!(!stage.path().exists());
    fs::rename(&away, stage.path()).unwrap();
    stage.run_ok(&["wait", "--all"]).await;

    for file in ["a.yaml", "b.yaml"] {
        stage.declared.remove(file);
    }
    eventually("the removal is held back", async || {
        stage.run_ok(&["describe", "src", "directory"]).await.contains("RemovalHeld").then_some(())
    })
    .await;
    let said = stage.run_failing(&["mcp", "add", "late", "--", "no-such-program-anywhere"]).await;
    assert!(said.contains(" is empty and evenkeel holds on to 2 objects"), "{said}");
    assert_eq!(server.live_processes().len(), 2, "nobody was detached");
    assert_eq!(server.processes().len(), 2);
    stage.run_ok(&["mcp", "reload", "--prune-empty"]).await;
    stage.run_ok(&["mcp", "add", "late", "--no-wait", "--", "no-such-program-anywhere"]).await;
}
