//! Values that are given to servers, planted wherever they may stand, and looked for in everything that evenkeel tells
//! anyone, also after a server has said them itself. (What it answers to a call is its own doing, and is passed on.)

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually, http};
use crate::test_instance::TestInstance;

/// Written in files that people keep.
const LITERAL_VALUES: [&str; 5] =
    ["planted-env-1a", "planted-header-2b", "planted-query-3c", "planted-user-4d", "planted-broken-5e"];
/// Found elsewhere.
const RESOLVED_VALUES: [&str; 3] = ["planted-secret-6f", "planted-bearer-7a", "planted-variable-8b"];

/// Servers that say what they were given.
struct LeakyServers {
    /// With why each is not attached.
    processes: Vec<(&'static str, &'static str, FakeStdioServer)>,
    remotes: Vec<(&'static str, &'static str, FakeHttpServer)>,
    /// One that is attached, and names itself so.
    named: FakeHttpServer,
}

impl LeakyServers {
    async fn start() -> Self {
        let [env, header, query, ..] = LITERAL_VALUES;
        let [secret, bearer, variable] = RESOLVED_VALUES;
        let given = format!("wrong: {env} {secret} {variable}");
        let sent = format!("wrong: {header} Bearer {bearer} ?key={query}");
        let opening = |then: Action| {
            let always = Rule::always(then);
            Script::default().on("server/discover", always.clone()).on("initialize", always)
        };
        let mut dying = Script::default();
        dying.stdio.exit_at_start = Some(3);
        // Also where a log line is cut, and without an end.
        let cut = format!("{}{secret} {secret}", "x".repeat(4_090));
        dying.stdio.stderr = vec![given.clone(), cut, given.clone()];
        let http = |status, kind: &str, body: String| {
            let headers = [("Content-Type".to_owned(), kind.to_owned())].into();
            Action::Http { status, headers, body }
        };
        let error = format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":-32000,"message":"{sent}"}}}}"#);
        let listing = Script::default().on("tools/list", Rule::always(Action::error(-32603, &sent)));
        let mut remotes = Vec::new();
        for (name, reason, script) in [
            ("http-text", "ConnectFailed", opening(http(400, "text/plain", sent.clone()))),
            ("http-error", "HandshakeFailed", opening(Action::error(-32600, &sent))),
            ("http-refused", "CredentialsRejected", opening(http(401, "application/json", error.clone()))),
            ("http-busy", "ConnectFailed", opening(http(429, "application/json", error))),
            ("http-strange", "ConnectFailed", opening(http(200, &format!("text/{bearer}"), String::new()))),
            ("http-list", "ListFailed", listing),
        ] {
            remotes.push((name, reason, FakeHttpServer::start(script).await));
        }
        let mut named = Script::default().on("tools/call", Rule::always(http(400, "text/plain", sent)));
        named.name = format!("rig {bearer}");
        // Which tells its messages on a stream of its own.
        named.era = ServerEra::Legacy;
        named.capabilities = Some(serde_json::from_str(r#"{"tools":{},"logging":{}}"#).unwrap());
        Self {
            processes: vec![
                ("process-dies", "Exited", FakeStdioServer::new(dying)),
                (
                    "process-error",
                    "HandshakeFailed",
                    FakeStdioServer::new(opening(Action::error(-32600, &given))),
                ),
            ],
            remotes,
            named: FakeHttpServer::start(named).await,
        }
    }

    fn declare(&self, declared: &TestDirectory, variables: &str, headers: &str) {
        // One attempt is enough.
        let retry = "retry: { initial: 1h, max: 1h }";
        for (name, _, stdio) in &self.processes {
            declared.write_server(name, &format!("{}\n{retry}", stdio.spec(variables)));
        }
        let remotes = self.remotes.iter().map(|(name, _, http)| (*name, http));
        for (name, http) in remotes.chain([("named", &self.named)]) {
            let url = format!("{}?key={}", http.url(), LITERAL_VALUES[2]);
            declared.write_server(name, &format!("http:\n  url: \"{url}\"\n  {headers}\n{retry}"));
        }
    }

    /// Waits until all have said it.
    async fn wait_until_leaked(&self, stage: &TestInstance) {
        let evenkeel = &stage.evenkeel;
        evenkeel.wait_until_attached("named").await;
        let text = format!("{} in a message", RESOLVED_VALUES[1]);
        eventually("the message is logged", async || {
            self.named.send_command(ControlCommand::Log("error".into(), text.clone()));
            stage.run_ok(&["logs", "named"]).await.contains("in a message").then_some(())
        })
        .await;
        let processes = self.processes.iter().map(|(name, reason, _)| (*name, *reason));
        let remotes = self.remotes.iter().map(|(name, reason, _)| (*name, *reason));
        for (name, reason) in processes.chain(remotes) {
            let ready = evenkeel.wait_for(name, "Ready", "False", reason).await;
            // Else the test would prove nothing.
            assert!(ready.message.contains("<redacted>"), "{name}: {}", ready.message);
        }
    }
}

/// Servers in every state that there is something to say about.
fn declare_servers(
    declared: &TestDirectory,
    secrets: &Path,
    (stdio, http, refusing): (&FakeStdioServer, &FakeHttpServer, &FakeHttpServer),
    echoes: &LeakyServers,
) {
    let [env, header, query, user, broken] = LITERAL_VALUES;
    let [secret, bearer, _] = RESOLVED_VALUES;
    for (name, value) in [("token", secret.to_owned()), ("bearer", format!("Bearer {bearer}"))] {
        fs::create_dir_all(secrets.join("s")).unwrap();
        fs::write(secrets.join("s").join(name), value).unwrap();
    }
    let variables = format!(
        ", env: [{{ name: A, value: {env} }}, {{ name: B, valueFrom: {{ secretKeyRef: {{ name: s, key: token }} }} }}, {{ name: C, valueFrom: {{ env: PLANTED }} }}]"
    );
    let headers = format!(
        "headers: [{{ name: X-Key, value: {header} }}, {{ name: Authorization, valueFrom: {{ secretKeyRef: {{ name: s, key: bearer }} }} }}]"
    );
    echoes.declare(declared, &variables, &headers);
    declared.write_server("process", &stdio.spec(&variables));
    declared.write_server("remote", &format!("http:\n  url: \"{}?key={query}\"\n  {headers}", http.url()));
    declared
        .write_server("refused", &format!("http:\n  url: \"{}?key={query}\"\n  {headers}", refusing.url()));
    declared
        .write_server("away", &format!("http:\n  url: \"http://127.0.0.1:1/mcp?key={query}\"\n  {headers}"));
    declared.write_server("user", &format!("http: {{ url: \"http://me:{user}@127.0.0.1:1/mcp\" }}"));
    declared.write_server(
        "twice",
        &format!("http: {{ url: \"http://127.0.0.1:1/?key={query}\" }}\nstdio: {{ command: x{variables} }}"),
    );
    declared.write_server("missing", &format!("stdio: {{ command: no-such-program-anywhere{variables} }}"));
    declared.write_server(
        "unresolved",
        "http:\n  url: http://127.0.0.1:1/mcp\n  headers: [{ name: A, valueFrom: { secretKeyRef: { name: s, key: absent } } }]",
    );
    declared.write(
        "broken.yaml",
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: broken }}\nspec:\n  stdio:\n    command: x\n    env:\n    - {{ name: A, value: {broken} }}\n    - {{ name: B, vaule: {broken} }}\n   oops: {broken}\n"
        ),
    );
    declared.write(
        "mistyped.yaml",
        &format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: mistyped }}\nspec:\n  stdio:\n    command: x\n    env: [{{ name: B, vaule: {broken} }}]\n"
        ),
    );
}

/// Everything that is told while all this is declared, each with where it was found.
async fn collect_outputs(stage: &TestInstance) -> Vec<(String, String)> {
    let mut told = Vec::new();
    let group = "/apis/evenkeel.dev/v1alpha1";
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for path in [
        format!("{group}/mcpservers"),
        format!("{group}/mcpservers?watch=true&timeoutSeconds=1"),
        format!("{group}/sources"),
        format!("{group}/skills"),
        "/apis/events.k8s.io/v1/events".into(),
        "/api/v1/events".into(),
        "/metrics".into(),
        "/readyz".into(),
    ] {
        for accept in ["application/json", table] {
            let url = stage.evenkeel.admin(&path);
            let answer = http::send(hyper::Method::GET, &url, &[("accept", accept)], "").await.unwrap();
            told.push((format!("{path} as {accept}"), answer.text().await.unwrap()));
        }
    }
    for args in [
        &["get", "mcp", "-A", "-o", "wide"][..],
        &["get", "mcps", "-o", "json"],
        &["get", "mcps", "-o", "yaml"],
        &["get", "src", "-o", "yaml"],
        &["events", "-o", "wide"],
        &["events", "-o", "json"],
        &["mcp", "list"],
        &["mcp", "reload"],
        &["wait", "--all", "--timeout", "10ms"],
        &["describe", "src", "directory"],
    ] {
        let done = stage.run(args).await;
        told.push((format!("{args:?}"), done.stdout + &done.stderr));
    }
    let list: Value = serde_json::from_str(&stage.run_ok(&["get", "mcps", "-o", "json"]).await).unwrap();
    let servers: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert!(servers.len() >= 8, "{servers:?}");
    for name in &servers {
        let name = name.as_str().unwrap();
        for args in [&["describe", "mcps", name][..], &["logs", name]] {
            told.push((format!("{args:?}"), stage.run_ok(args).await));
        }
    }
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::connect(era, &stage.evenkeel.url()).await;
        told.push(("tools".into(), agent.tool_names().await.join("\n")));
        for (tool, arguments) in ["process_echo", "remote_echo", "missing_echo", "away_echo", "named_echo"]
            .map(|tool| (tool, "{}"))
        {
            let answer = agent.call(tool, arguments).await;
            told.push((format!("call of {tool}"), format!("{answer:?}")));
        }
    }
    told
}

/// Every file below a directory, by its path.
fn read_files(directory: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read_files(&entry.path(), found);
        } else if kind.is_file() {
            found.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap()));
        }
    }
}

fn contains(bytes: &[u8], value: &str) -> bool {
    bytes.windows(value.len()).any(|window| window == value.as_bytes())
}

#[tokio::test]
async fn secret_values_appear_in_no_output() {
    let [.., variable] = RESOLVED_VALUES;
    let secrets = tempfile::tempdir().unwrap();
    let stdio = FakeStdioServer::new(Script::default());
    let http = FakeHttpServer::start(Script::default()).await;
    let refusing =
        FakeHttpServer::start(Script::default().on("POST", Rule::always(Action::status(401)))).await;
    let echoes = LeakyServers::start().await;
    for format in ["text", "json"] {
        let declared = TestDirectory::new();
        declare_servers(&declared, secrets.path(), (&stdio, &http, &refusing), &echoes);
        let flags =
            ["--log", "trace", "--log-format", format, "--secrets-dir", secrets.path().to_str().unwrap()];
        let evenkeel = Evenkeel::run_with_env(declared.path(), &flags, &[("PLANTED", variable)]).await;
        let mut stage = TestInstance { declared, evenkeel };
        for name in ["process", "remote"] {
            stage.evenkeel.wait_until_attached(name).await;
        }
        for (name, reason) in [
            ("refused", "CredentialsRejected"),
            ("away", "ConnectFailed"),
            ("missing", "CommandNotFound"),
            ("unresolved", "SecretNotFound"),
            ("twice", "InvalidSpec"),
            ("mistyped", "InvalidSpec"),
        ] {
            stage.evenkeel.wait_for(name, "Ready", "False", reason).await;
        }
        echoes.wait_until_leaked(&stage).await;
        // The servers did get them: else the test would prove nothing.
        let [process] = &stdio.live_processes()[..] else { panic!("one process") };
        let environ = fs::read(format!("/proc/{}/environ", process.pid())).unwrap_or_default();
        if cfg!(target_os = "linux") {
            for value in [LITERAL_VALUES[0], RESOLVED_VALUES[0], RESOLVED_VALUES[2]] {
                assert!(contains(&environ, value), "{value} did not reach the server");
            }
        }

        let mut found = Vec::new();
        for (place, text) in collect_outputs(&stage).await {
            found.extend(
                LITERAL_VALUES
                    .iter()
                    .chain(&RESOLVED_VALUES)
                    .filter(|value| text.contains(**value))
                    .map(|value| (place.clone(), *value)),
            );
        }
        stage.evenkeel.terminate().await;
        let said = stage.evenkeel.stderr();
        for value in LITERAL_VALUES.iter().chain(&RESOLVED_VALUES) {
            found.extend(
                said.lines().find(|line| line.contains(*value)).map(|line| (format!("log: {line}"), *value)),
            );
        }
        let mut kept = Vec::new();
        read_files(&stage.evenkeel.state_dir(), &mut kept);
        assert!(kept.iter().any(|(path, _)| path.contains("/audit/")), "the whole directory is searched");
        for (path, bytes) in &kept {
            // The last good declarations are kept as they were written, for their owner alone; references stay references.
            let written: &[&str] = if path.contains("/declarations/") { &[] } else { &LITERAL_VALUES };
            found.extend(
                written
                    .iter()
                    .chain(&RESOLVED_VALUES)
                    .filter(|value| contains(bytes, value))
                    .map(|value| (path.clone(), *value)),
            );
        }
        assert!(found.is_empty(), "{format}: {found:#?}");
    }
}
