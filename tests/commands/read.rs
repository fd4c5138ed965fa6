//! Tests `get`, `describe`, `events` and `completions`.

use std::process::Stdio as Pipe;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::rig::{FakeStdioServer, Script};
use crate::support::{Evenkeel, TestDirectory, eventually, within};
use crate::test_instance::{CommandOutput, TestInstance};

const MISSING_COMMAND_SPEC: &str = "stdio: { command: no-such-program-anywhere }";

#[tokio::test]
async fn get_prints_tables_documents_and_names() {
    let server = FakeStdioServer::new(Script::default());
    let instance =
        TestInstance::start(&[("good", &server.spec("")), ("missing", MISSING_COMMAND_SPEC)]).await;
    instance.declared.write(
        "labelled.yaml",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: { name: labelled, namespace: team, labels: { area: code } }\nspec: { suspend: true, stdio: { command: x } }\n",
    );
    instance.evenkeel.wait_until_attached("good").await;
    instance.evenkeel.wait_for("missing", "Ready", "False", "CommandNotFound").await;

    let table = instance.run_ok(&["get", "mcpservers"]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "REASON", "TRANSPORT", "TOOLS", "AGE"]);
    assert_eq!(lines[1][..5], ["good", "True", "Attached", "stdio", "2"], "{table}");
    assert_eq!(lines[2][..3], ["missing", "False", "CommandNotFound"], "{table}");
    assert_eq!(lines.len(), 3, "only the namespace default is listed: {table}");
    assert!(!table.contains('\u{1b}'), "no colours without a terminal");

    let wide = instance.run_ok(&["get", "mcps", "missing", "-o", "wide"]).await;
    assert!(wide.contains("MESSAGE") && wide.contains("no-such-program-anywhere"), "{wide}");
    let all = instance.run_ok(&["get", "mcps", "-A"]).await;
    assert!(all.starts_with("NAMESPACE") && all.contains("team"), "{all}");
    assert_eq!(
        instance.run_ok(&["get", "mcps", "-A", "-l", "area=code", "-o", "name"]).await,
        "mcpserver.evenkeel.dev/labelled\n"
    );
    assert_eq!(
        instance.run_ok(&["get", "mcps", "-n", "team", "-o", "name"]).await,
        "mcpserver.evenkeel.dev/labelled\n"
    );
    assert!(instance.run_ok(&["get", "mcp"]).await.contains("mcpserver/good"));
    assert!(instance.run_ok(&["get", "src"]).await.contains("directory"));
    assert!(instance.run_ok(&["mcp", "list"]).await.contains("good"));
    let nothing = instance.run(&["skill", "list"]).await;
    assert_eq!((nothing.code, &*nothing.stdout), (0, ""), "{nothing:?}");
    assert!(nothing.stderr.contains("no skills found in namespace default"), "{nothing:?}");

    let response: Value =
        serde_json::from_str(&instance.run_ok(&["get", "mcps/good", "-o", "json"]).await).unwrap();
    assert_eq!(response, instance.evenkeel.get_server("good").await.unwrap(), "JSON is the API's own");
    let list: Value = serde_json::from_str(&instance.run_ok(&["get", "mcps", "-o", "json"]).await).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&Value::from("List"), 2));
    let yaml = instance.run_ok(&["get", "mcps", "good", "-o", "yaml"]).await;
    assert!(yaml.contains("kind: McpServer\n") && yaml.contains("  name: good\n"), "{yaml}");

    for args in [
        &["get", "mcps", "goood"][..],
        &["get", "mcps", "goood", "-o", "json"],
        &["describe", "mcps", "goood"],
    ] {
        let stderr = instance.run_failing(args).await;
        assert!(
            stderr.contains("there is no McpServer \"goood\"") && stderr.contains("did you mean good?"),
            "{stderr}"
        );
    }
    for invalid in [&["get", "pods"][..], &["get", "pods/a"], &["get", "mcps,pods"]] {
        let invalid = instance.run(invalid).await;
        assert!(invalid.code == 2 && invalid.stderr.contains("mcpservers (mcps)"), "{invalid:?}");
    }
    assert_eq!(instance.run(&["get", "mcps/good", "missing"]).await.code, 2);

    let names = |text: &str| text.replace("mcpserver.evenkeel.dev/", "").replace('\n', " ");
    for args in
        [&["mcps/good", "mcps/missing"][..], &["mcps", "good", "missing"], &["mcps,skl"], &["src,mcp"]]
    {
        let text = instance.run_ok(&[&["get", "-o", "name"], args].concat()).await;
        assert!(names(&text).ends_with("good missing "), "{args:?}: {text}");
    }
    let stderr = instance.run_failing(&["get", "mcps/good", "skl/x"]).await;
    assert!(stderr.contains("there is no Skill \"x\" in namespace default"), "{stderr}");

    for args in [
        &["get", "mcps", "labelled"][..],
        &["describe", "mcps/labelled"],
        &["logs", "labelled"],
        &["wait", "labelled"],
        &["mcp", "reload", "labelled"],
        &["mcp", "remove", "labelled"],
    ] {
        let stderr = instance.run_failing(args).await;
        let expected = "there is no McpServer \"labelled\" in namespace default; it exists in namespace team (use -n team)";
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    for args in [&["get", "mcps", "-n", "none"][..], &["mcp", "list", "-n", "none"]] {
        let nothing = instance.run(args).await;
        let expected = "no mcpservers found in namespace none; 3 in other namespaces (use -A)\n";
        assert_eq!((nothing.code, &*nothing.stderr), (0, expected), "{args:?}");
    }
}

#[tokio::test]
async fn directory_paths_are_normalized() {
    let instance = TestInstance::start(&[("a", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("a", "Ready", "False", "CommandNotFound").await;
    let path = instance.path().to_str().unwrap();
    let last = instance.path().file_name().unwrap().to_str().unwrap();
    std::fs::create_dir(instance.path().join("sub")).unwrap();
    let runs = |dir: &str| {
        let args = ["run", dir, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"].map(str::to_owned);
        let instance = &instance;
        async move { instance.run_failing(&args.each_ref().map(String::as_str)).await }
    };
    let process = format!("as process {};", instance.evenkeel.pid());
    for dir in [format!("{path}/"), format!("{path}/sub/.."), format!("{path}/../{last}/./")] {
        assert!(instance.run_ok(&["get", "mcps", "--dir", &dir]).await.contains("CommandNotFound"), "{dir}");
        let plan = instance.run_ok(&["plan", &dir]).await;
        assert!(
            plan.contains("0 to add") && plan.contains("1 unchanged; compared with the instance for"),
            "{plan}"
        );
        let stderr = runs(&dir).await;
        assert!(stderr.contains(&format!("already running on this directory, {process}")), "{dir}: {stderr}");
    }
    let link = instance.path().with_extension("link");
    std::os::unix::fs::symlink(instance.path(), &link).unwrap();
    let stderr = runs(link.to_str().unwrap()).await;
    std::fs::remove_file(link).unwrap();
    assert!(stderr.contains(&format!("given as {path}, {process}")), "{stderr}");
}

#[tokio::test]
async fn get_watch_prints_every_change() {
    let server = FakeStdioServer::new(Script::default());
    let instance = TestInstance::start(&[("a", &server.spec(""))]).await;
    instance.evenkeel.wait_until_attached("a").await;
    let mut table = instance.follow(&["get", "mcps", "-w"]);
    let mut names = instance.follow(&["get", "mcps", "-w", "-o", "name"]);
    table.line_with("a ").await;
    names.line_with("mcpserver.evenkeel.dev/a").await;
    instance.declared.write_server("later", MISSING_COMMAND_SPEC);
    let line = table.line_with("CommandNotFound").await;
    assert!(line.starts_with("later"), "{line}");
    names.line_with("mcpserver.evenkeel.dev/later").await;
    // A removed object is noted on stderr and not printed as an existing one.
    let mut all = instance.follow(&["get", "mcps", "-w", "-o", "json"]);
    all.line_with("\"name\": \"later\"").await;
    instance.declared.remove("later.yaml");
    all.wait_for_stderr("McpServer/later is no longer declared").await;
    instance.declared.write_server("last", MISSING_COMMAND_SPEC);
    let between = all.lines_until("\"name\": \"last\"").await;
    assert!(between.iter().all(|line| !line.contains("\"later\"")), "{between:?}");
}

#[tokio::test]
async fn unreadable_files_are_noted_on_stderr() {
    let instance = TestInstance::start(&[("missing", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("missing", "Ready", "False", "CommandNotFound").await;
    instance
        .declared
        .write("broken.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {\n");
    let output = eventually("the file is named", async || {
        let output = instance.run(&["get", "mcps"]).await;
        output.stderr.contains("broken.yaml").then_some(output)
    })
    .await;
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("missing") && !output.stdout.contains("broken"), "{output:?}");
    assert!(output.stderr.contains("evenkeel describe src directory"), "{output:?}");
    assert_eq!(instance.run(&["get", "mcps", "missing"]).await.stderr, "");
    // The unreadable file may declare the requested object.
    for args in [&["describe", "mcps", "broken"][..], &["get", "mcps", "broken"], &["logs", "broken"]] {
        let stderr = instance.run_failing(args).await;
        assert!(
            stderr.contains("source: broken.yaml:") && stderr.contains("there is no McpServer"),
            "{stderr}"
        );
    }
    instance.declared.write("foreign.yaml", "apiVersion: v1\nkind: Secret\nmetadata: { name: s }\n");
    instance.declared.write(
        ".mcp.json",
        "{ \"mcpServers\": { \"j\": { \"command\": \"no-such-program-anywhere\", \"tiemout\": 1 } } }",
    );
    let text = eventually("the description shows faults, warnings and ignored documents", async || {
        let text = instance.run_ok(&["describe", "src", "directory"]).await;
        (text.contains("Ignored: ") && text.contains("Warnings:\n")).then_some(text)
    })
    .await;
    for part in [
        "Watching:    Events\n",
        "Ignored:     1 documents of other API groups\n",
        "Servers:     2\n",
        "Attached:    0\n",
        "Faults:\n  broken.yaml:3:",
        "\n         3 | metadata: …\n",
        "Warnings:\n  .mcp.json:1:",
    ] {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
    assert!(text.contains("Revision:    sha256:"), "{text}");
}

#[tokio::test]
async fn describe_prints_spec_conditions_and_events() {
    let instance = TestInstance::start(&[("missing", MISSING_COMMAND_SPEC)]).await;
    instance.evenkeel.wait_for("missing", "Ready", "False", "CommandNotFound").await;
    let text = instance.run_ok(&["describe", "mcps", "missing"]).await;
    for part in [
        "Name:        missing\n",
        "Generation:  1\n",
        "    command: no-such-program-anywhere\n",
        "  TYPE ",
        "  Ready ",
        "CommandNotFound",
        "Events:\n  LAST SEEN ",
        "Created",
    ] {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
    // A second may pass between the two commands and change an age or the width of its column.
    let ageless = |text: &str| -> Vec<String> {
        text.split_whitespace().map(|word| word.replace(|char: char| char.is_ascii_digit(), "")).collect()
    };
    eventually("both forms print the same", async || {
        let one = instance.run_ok(&["describe", "mcps", "missing"]).await;
        let other = instance.run_ok(&["describe", "mcpserver/missing"]).await;
        (ageless(&one) == ageless(&other)).then_some(())
    })
    .await;
    assert!(instance.run_ok(&["describe", "src", "directory"]).await.contains("Kind:        Source\n"));

    assert_eq!(instance.run(&["events", "-A", "-n", "default"]).await.code, 2);
    let events = instance.run_ok(&["events", "-A"]).await;
    assert!(events.contains("Warning") && events.contains("CommandNotFound"), "{events}");
    let about = instance.run_ok(&["events", "--for", "src/directory"]).await;
    assert!(!about.contains("CommandNotFound"), "{about}");
    let stderr = instance.run_failing(&["events", "--for", "mcps/mising"]).await;
    assert!(stderr.contains("there is no McpServer \"mising\"; did you mean missing?"), "{stderr}");
    let mut more = instance.follow(&["events", "-w", "--for", "mcps/later"]);
    instance.declared.write_server("later", MISSING_COMMAND_SPEC);
    more.line_with("CommandNotFound").await;
}

#[tokio::test]
async fn commands_without_an_instance_name_the_start_command() {
    let declared = TestDirectory::new();
    let mut evenkeel = Evenkeel::run(declared.path()).await;
    let run = |evenkeel: &Evenkeel, args: &[&str]| {
        let output = evenkeel.command(args).env("EVENKEEL_DIR", declared.path()).output().unwrap();
        CommandOutput::from_output(&output)
    };
    assert_eq!(run(&evenkeel, &["get", "mcps"]).code, 0);
    // A killed instance leaves its socket behind.
    let follow = |args: &[&str]| {
        let mut command: tokio::process::Command = evenkeel.command(args).into();
        command.env("EVENKEEL_DIR", declared.path()).stdout(Pipe::piped()).stderr(Pipe::piped());
        command.kill_on_drop(true).spawn().unwrap()
    };
    let mut streams = [&["get", "mcps", "-w"][..], &["events", "-w"]].map(follow);
    for stream in &mut streams {
        // The headings come with the existing objects; after that, only events of the watch follow.
        stream.stdout.as_mut().unwrap().read_u8().await.unwrap();
    }
    declared.write_server("a", MISSING_COMMAND_SPEC);
    for stream in &mut streams {
        let mut lines = BufReader::new(stream.stdout.as_mut().unwrap()).lines();
        let response =
            async { while !lines.next_line().await.unwrap().unwrap().contains("CommandNotFound") {} };
        within("the event is printed", response).await;
    }
    evenkeel.kill();
    for stream in streams {
        let output =
            CommandOutput::from_output(&within("the stream ends", stream.wait_with_output()).await.unwrap());
        assert_eq!((output.code, &*output.stderr), (1, "error: evenkeel shut down; run the command again\n"));
    }
    let kubeconfig = run(&evenkeel, &["kubeconfig"]);
    assert!(kubeconfig.code == 0 && kubeconfig.stdout.ends_with("/kubeconfig\n"), "{kubeconfig:?}");
    assert!(kubeconfig.stderr.starts_with("no evenkeel instance is running for "), "{kubeconfig:?}");
    for args in
        [&["get", "mcps"][..], &["events"], &["describe", "mcps", "a"], &["logs", "a"], &["mcp", "reload"]]
    {
        let output = run(&evenkeel, args);
        let expected = format!(
            "error: no evenkeel instance is running for {0}; start one with: evenkeel run {0}\n",
            declared.path().display()
        );
        assert_eq!((output.code, output.stderr), (1, expected), "{args:?}");
    }
    evenkeel.restart().await;
    assert_eq!(run(&evenkeel, &["get", "mcps"]).code, 0, "a stale socket is replaced");
    evenkeel.terminate().await;
    assert_eq!(run(&evenkeel, &["get", "mcps"]).code, 1);
}

#[tokio::test]
async fn completions_exist_for_every_shell() {
    let instance = TestInstance::start(&[]).await;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = instance.run_ok(&["completions", shell]).await;
        assert!(text.contains("describe") && text.contains("reload"), "{shell}");
    }
}
