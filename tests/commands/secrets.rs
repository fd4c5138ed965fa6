//! Tests that secret values never appear in any output.
//!
//! Values are planted wherever a server can receive them, and searched for in all output of evenkeel, also after a
//! server has sent them back in errors and logs. (The result of a tool call is the server's own and is passed on
//! unchanged.)

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::rig::{Action, ControlCommand, FakeHttpServer, FakeStdioServer, Rule, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually, http};
use crate::test_instance::TestInstance;

/// Values that are literals in declarations.
const LITERAL_VALUES: [&str; 5] =
    ["planted-env-1a", "planted-header-2b", "planted-query-3c", "planted-user-4d", "planted-broken-5e"];
/// Values that declarations reference.
const RESOLVED_VALUES: [&str; 3] = ["planted-secret-6f", "planted-bearer-7a", "planted-variable-8b"];

/// Servers that send back the values that they were given.
struct LeakyServers {
    /// The name of each server, the reason why it is not attached, and the server.
    processes: Vec<(&'static str, &'static str, FakeStdioServer)>,
    remotes: Vec<(&'static str, &'static str, FakeHttpServer)>,
    /// A server that is attached and has a secret value in its name.
    named: FakeHttpServer,
}

impl LeakyServers {
    async fn start() -> Self {
        let [env, header, query, ..] = LITERAL_VALUES;
        let [secret, bearer, variable] = RESOLVED_VALUES;
        let process_text = format!("wrong: {env} {secret} {variable}");
        let http_text = format!("wrong: {header} Bearer {bearer} ?key={query}");
        let failing_handshake = |then: Action| {
            let always = Rule::always(then);
            Script::default().on("server/discover", always.clone()).on("initialize", always)
        };
        let mut exiting = Script::default();
        exiting.stdio.exit_at_start = Some(3);
        // Also across the length limit of a log line, and at the end of the output.
        let truncated = format!("{}{secret} {secret}", "x".repeat(4_090));
        exiting.stdio.stderr = vec![process_text.clone(), truncated, process_text.clone()];
        let http = |status, kind: &str, body: String| {
            let headers = [("Content-Type".to_owned(), kind.to_owned())].into();
            Action::Http { status, headers, body }
        };
        let error =
            format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":-32000,"message":"{http_text}"}}}}"#);
        let listing = Script::default().on("tools/list", Rule::always(Action::error(-32603, &http_text)));
        let mut remotes = Vec::new();
        for (name, reason, script) in [
            ("http-text", "ConnectFailed", failing_handshake(http(400, "text/plain", http_text.clone()))),
            ("http-error", "HandshakeFailed", failing_handshake(Action::error(-32600, &http_text))),
            (
                "http-refused",
                "CredentialsRejected",
                failing_handshake(http(401, "application/json", error.clone())),
            ),
            ("http-busy", "ConnectFailed", failing_handshake(http(429, "application/json", error))),
            (
                "http-strange",
                "HandshakeFailed",
                failing_handshake(http(200, &format!("text/{bearer}"), String::new())),
            ),
            ("http-list", "ListFailed", listing),
        ] {
            remotes.push((name, reason, FakeHttpServer::start(script).await));
        }
        let mut named = Script::default().on("tools/call", Rule::always(http(400, "text/plain", http_text)));
        named.name = format!("rig {bearer}");
        // A legacy server sends log messages on the notification stream.
        named.era = ServerEra::Legacy;
        named.capabilities = Some(serde_json::from_str(r#"{"tools":{},"logging":{}}"#).unwrap());
        Self {
            processes: vec![
                ("process-dies", "Exited", FakeStdioServer::new(exiting)),
                (
                    "process-error",
                    "HandshakeFailed",
                    FakeStdioServer::new(failing_handshake(Action::error(-32600, &process_text))),
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

    /// Waits until all servers have sent their values.
    async fn wait_until_leaked(&self, instance: &TestInstance) {
        let evenkeel = &instance.evenkeel;
        evenkeel.wait_until_attached("named").await;
        let text = format!("{} in a message", RESOLVED_VALUES[1]);
        eventually("the message is logged", async || {
            self.named.send_command(ControlCommand::Log("error".into(), text.clone()));
            instance.run_ok(&["logs", "named"]).await.contains("in a message").then_some(())
        })
        .await;
        let processes = self.processes.iter().map(|(name, reason, _)| (*name, *reason));
        let remotes = self.remotes.iter().map(|(name, reason, _)| (*name, *reason));
        for (name, reason) in processes.chain(remotes) {
            let ready = evenkeel.wait_for(name, "Ready", "False", reason).await;
            // Otherwise the test would prove nothing.
            assert!(ready.message.contains("<redacted>"), "{name}: {}", ready.message);
        }
    }
}

/// Declares servers in every state that has a message.
fn declare_servers(
    declared: &TestDirectory,
    secrets: &Path,
    (stdio, http, refusing): (&FakeStdioServer, &FakeHttpServer, &FakeHttpServer),
    leaky: &LeakyServers,
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
    leaky.declare(declared, &variables, &headers);
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

/// Collects all output about these servers, each with its place.
async fn collect_outputs(instance: &TestInstance) -> Vec<(String, String)> {
    let mut outputs = Vec::new();
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
            let url = instance.evenkeel.admin(&path);
            let response = http::send(hyper::Method::GET, &url, &[("accept", accept)], "").await.unwrap();
            outputs.push((format!("{path} as {accept}"), response.text().await.unwrap()));
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
        let done = instance.run(args).await;
        outputs.push((format!("{args:?}"), done.stdout + &done.stderr));
    }
    let list: Value = serde_json::from_str(&instance.run_ok(&["get", "mcps", "-o", "json"]).await).unwrap();
    let servers: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert!(servers.len() >= 8, "{servers:?}");
    for name in &servers {
        let name = name.as_str().unwrap();
        for args in [&["describe", "mcps", name][..], &["logs", name]] {
            outputs.push((format!("{args:?}"), instance.run_ok(args).await));
        }
    }
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::connect(era, &instance.evenkeel.url()).await;
        outputs.push(("tools".into(), agent.tool_names().await.join("\n")));
        for (tool, arguments) in ["process_echo", "remote_echo", "missing_echo", "away_echo", "named_echo"]
            .map(|tool| (tool, "{}"))
        {
            let response = agent.call(tool, arguments).await;
            outputs.push((format!("call of {tool}"), format!("{response:?}")));
        }
    }
    outputs
}

/// Reads every file below a directory, with its path.
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
    let leaky = LeakyServers::start().await;
    for format in ["text", "json"] {
        let declared = TestDirectory::new();
        declare_servers(&declared, secrets.path(), (&stdio, &http, &refusing), &leaky);
        let flags =
            ["--log", "trace", "--log-format", format, "--secrets-dir", secrets.path().to_str().unwrap()];
        let evenkeel = Evenkeel::run_with_env(declared.path(), &flags, &[("PLANTED", variable)]).await;
        let mut instance = TestInstance { declared, evenkeel };
        for name in ["process", "remote"] {
            instance.evenkeel.wait_until_attached(name).await;
        }
        for (name, reason) in [
            ("refused", "CredentialsRejected"),
            ("away", "ConnectFailed"),
            ("missing", "CommandNotFound"),
            ("unresolved", "SecretNotFound"),
            ("twice", "InvalidSpec"),
            ("mistyped", "InvalidSpec"),
        ] {
            instance.evenkeel.wait_for(name, "Ready", "False", reason).await;
        }
        leaky.wait_until_leaked(&instance).await;
        // The servers did receive the values; otherwise the test would prove nothing.
        let [process] = &stdio.live_processes()[..] else { panic!("one process") };
        let environ = fs::read(format!("/proc/{}/environ", process.pid())).unwrap_or_default();
        if cfg!(target_os = "linux") {
            for value in [LITERAL_VALUES[0], RESOLVED_VALUES[0], RESOLVED_VALUES[2]] {
                assert!(contains(&environ, value), "{value} did not reach the server");
            }
        }

        let mut leaks = Vec::new();
        for (place, text) in collect_outputs(&instance).await {
            leaks.extend(
                LITERAL_VALUES
                    .iter()
                    .chain(&RESOLVED_VALUES)
                    .filter(|value| text.contains(**value))
                    .map(|value| (place.clone(), *value)),
            );
        }
        instance.evenkeel.terminate().await;
        let stderr = instance.evenkeel.stderr();
        for value in LITERAL_VALUES.iter().chain(&RESOLVED_VALUES) {
            leaks.extend(
                stderr
                    .lines()
                    .find(|line| line.contains(*value))
                    .map(|line| (format!("log: {line}"), *value)),
            );
        }
        let mut state_files = Vec::new();
        read_files(&instance.evenkeel.state_dir(), &mut state_files);
        assert!(
            state_files.iter().any(|(path, _)| path.contains("/audit/")),
            "the whole directory is searched"
        );
        for (path, bytes) in &state_files {
            // The last good declarations are stored verbatim, readable by their owner only; references stay
            // references.
            let literals: &[&str] = if path.contains("/declarations/") { &[] } else { &LITERAL_VALUES };
            leaks.extend(
                literals
                    .iter()
                    .chain(&RESOLVED_VALUES)
                    .filter(|value| contains(bytes, value))
                    .map(|value| (path.clone(), *value)),
            );
        }
        assert!(leaks.is_empty(), "{format}: {leaks:#?}");
    }
}
