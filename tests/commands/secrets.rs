//! Values that are given to servers, planted wherever they may stand, and looked for in everything that evenkeel tells
//! anyone. (What a server itself prints or answers is its own doing, and is passed on.)

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::rig::{Http, Rule, Script, Stdio, Then};
use crate::stage::Stage;
use crate::support::{Agent, Declared, Era, Evenkeel, http};

/// Written in files that people keep.
const WRITTEN: [&str; 5] =
    ["planted-env-1a", "planted-header-2b", "planted-query-3c", "planted-user-4d", "planted-broken-5e"];
/// Found elsewhere.
const RESOLVED: [&str; 3] = ["planted-secret-6f", "planted-bearer-7a", "planted-variable-8b"];

/// Servers in every state that there is something to say about.
fn declare(declared: &Declared, secrets: &Path, stdio: &Stdio, http: &Http, refusing: &Http) {
    let [env, header, query, user, broken] = WRITTEN;
    let [secret, bearer, variable] = RESOLVED;
    for (name, value) in [("token", secret), ("bearer", bearer)] {
        fs::create_dir_all(secrets.join("s")).unwrap();
        fs::write(secrets.join("s").join(name), value).unwrap();
    }
    let variables = format!(
        ", env: [{{ name: A, value: {env} }}, {{ name: B, valueFrom: {{ secretKeyRef: {{ name: s, key: token }} }} }}, {{ name: C, valueFrom: {{ env: PLANTED }} }}]"
    );
    let headers = format!(
        "headers: [{{ name: X-Key, value: {header} }}, {{ name: Authorization, valueFrom: {{ secretKeyRef: {{ name: s, key: bearer }} }} }}]"
    );
    assert!(!variable.is_empty());
    declared.server("process", &stdio.spec(&variables));
    declared.server("remote", &format!("http:\n  url: \"{}?key={query}\"\n  {headers}", http.url()));
    declared.server("refused", &format!("http:\n  url: \"{}?key={query}\"\n  {headers}", refusing.url()));
    declared.server("away", &format!("http:\n  url: \"http://127.0.0.1:1/mcp?key={query}\"\n  {headers}"));
    declared.server("user", &format!("http: {{ url: \"http://me:{user}@127.0.0.1:1/mcp\" }}"));
    declared.server(
        "twice",
        &format!("http: {{ url: \"http://127.0.0.1:1/?key={query}\" }}\nstdio: {{ command: x{variables} }}"),
    );
    declared.server("missing", &format!("stdio: {{ command: no-such-program-anywhere{variables} }}"));
    declared.server(
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
async fn told(stage: &Stage) -> Vec<(String, String)> {
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
        told.push((format!("{args:?}"), done.out + &done.err));
    }
    let list: Value = serde_json::from_str(&stage.ok(&["get", "mcps", "-o", "json"]).await).unwrap();
    let servers: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert!(servers.len() >= 8, "{servers:?}");
    for name in &servers {
        let name = name.as_str().unwrap();
        for args in [&["describe", "mcps", name][..], &["logs", name]] {
            told.push((format!("{args:?}"), stage.ok(args).await));
        }
    }
    for era in [Era::Legacy, Era::Modern] {
        let agent = Agent::open(era, &stage.evenkeel.url()).await;
        told.push(("tools".into(), agent.tools().await.join("\n")));
        for (tool, arguments) in
            [("process_echo", "{}"), ("remote_echo", "{}"), ("missing_echo", "{}"), ("away_echo", "{}")]
        {
            let answer = agent.call(tool, arguments).await;
            told.push((format!("call of {tool}"), format!("{answer:?}")));
        }
    }
    told
}

/// Every file below a directory, by its path.
fn files(directory: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap()));
        }
    }
}

fn holds(bytes: &[u8], value: &str) -> bool {
    bytes.windows(value.len()).any(|window| window == value.as_bytes())
}

#[tokio::test]
async fn a_planted_value_comes_out_nowhere() {
    let [.., variable] = RESOLVED;
    let secrets = tempfile::tempdir().unwrap();
    let stdio = Stdio::new(Script::default());
    let http = Http::start(Script::default()).await;
    let refusing = Http::start(Script::default().on("POST", Rule::always(Then::status(401)))).await;
    for format in ["text", "json"] {
        let declared = Declared::new();
        declare(&declared, secrets.path(), &stdio, &http, &refusing);
        let flags =
            ["--log", "trace", "--log-format", format, "--secrets-dir", secrets.path().to_str().unwrap()];
        let evenkeel = Evenkeel::run_in(declared.path(), &flags, &[("PLANTED", variable)]).await;
        let mut stage = Stage { declared, evenkeel };
        for name in ["process", "remote"] {
            stage.evenkeel.attached(name).await;
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
        // The servers did get them: else the test would prove nothing.
        let [process] = &stdio.alive()[..] else { panic!("one process") };
        let environ = fs::read(format!("/proc/{}/environ", process.pid())).unwrap_or_default();
        if cfg!(target_os = "linux") {
            for value in [WRITTEN[0], RESOLVED[0], RESOLVED[2]] {
                assert!(holds(&environ, value), "{value} did not reach the server");
            }
        }

        let mut found = Vec::new();
        for (place, text) in told(&stage).await {
            found.extend(
                WRITTEN
                    .iter()
                    .chain(&RESOLVED)
                    .filter(|value| text.contains(**value))
                    .map(|value| (place.clone(), *value)),
            );
        }
        stage.evenkeel.terminate().await;
        let said = stage.evenkeel.said();
        for value in WRITTEN.iter().chain(&RESOLVED) {
            found.extend(
                said.lines().find(|line| line.contains(*value)).map(|line| (format!("log: {line}"), *value)),
            );
        }
        let mut kept = Vec::new();
        files(&stage.evenkeel.state(), &mut kept);
        assert!(kept.iter().any(|(path, _)| path.contains("/audit/")), "the whole directory is searched");
        for (path, bytes) in &kept {
            // The last good declarations are kept as they were written, for their owner alone; references stay references.
            let written: &[&str] = if path.contains("/declarations/") { &[] } else { &WRITTEN };
            found.extend(
                written
                    .iter()
                    .chain(&RESOLVED)
                    .filter(|value| holds(bytes, value))
                    .map(|value| (path.clone(), *value)),
            );
        }
        assert!(found.is_empty(), "{format}: {found:#?}");
    }
}
