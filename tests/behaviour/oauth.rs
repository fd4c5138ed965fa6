//! Servers behind OAuth, with a real authorization server: `oidc-provider`, which rotates refresh tokens and revokes a grant
//! whose token is used twice.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::fixture::EvenkeelFixture;
use crate::support::{Era, eventually, free_port, http, install_once, require_on_path, within};

/// The lifetime of access tokens in seconds. They are renewed after two thirds of it.
const LIFETIME: &str = "9";

struct Issuer {
    mcp_port: u16,
    _process: tokio::process::Child,
}

impl Issuer {
    async fn start() -> Self {
        let npm = require_on_path("npm", "the authorization server");
        let node = require_on_path("node", "the authorization server");
        let home = install_once("peers/oidc-provider-9.13.3", "installing oidc-provider", |home| {
            let mut install = Command::new(npm);
            install.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
            install.arg(home).arg("oidc-provider@9.13.3");
            vec![install]
        });
        let (issuer_port, mcp_port) = (free_port(), free_port());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/behaviour/oauth/issuer.mjs");
        let mut process = tokio::process::Command::new(node)
            .args([script, &format!("file://{}", home.join("node_modules").display())])
            .args([issuer_port.to_string(), mcp_port.to_string(), LIFETIME.to_owned()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        within("the authorization server starts", async {
            while lines.next_line().await.unwrap().expect("it ended") != "ready" {}
        })
        .await;
        // Its output must be read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { mcp_port, _process: process }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.mcp_port)
    }

    fn spec(&self, path: &str) -> String {
        format!("http: {{ url: '{}' }}", self.url(path))
    }

    async fn count(&self, name: &str) -> u64 {
        let counts = http::get(&self.url("/counts")).await.unwrap();
        serde_json::from_str::<Value>(&counts).unwrap()[name].as_u64().unwrap()
    }

    async fn post(&self, path: &str, body: &str) -> Value {
        let response = http::send(Method::POST, &self.url(path), &[], body).await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    }
}

/// A running `evenkeel login`.
struct LoginCommand {
    process: tokio::process::Child,
    authorization_url: String,
}

impl LoginCommand {
    async fn start(fixture: &EvenkeelFixture) -> Self {
        let mut command =
            tokio::process::Command::from(fixture.evenkeel.command(&["login", "s", "--no-browser"]));
        command.env("EVENKEEL_DIR", fixture.declared.path()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let authorization_url = within("the command prints an address", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the command ended");
                if line.trim().starts_with("http") {
                    return line.trim().to_owned();
                }
            }
        })
        .await;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, authorization_url }
    }

    async fn end(self) -> String {
        let output = within("the command ends", self.process.wait_with_output()).await.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Logs in as a person whose browser runs on this machine. Returns the address to which it was redirected.
async fn log_in(fixture: &EvenkeelFixture, issuer: &Issuer) -> String {
    let command = LoginCommand::start(fixture).await;
    let redirected = issuer.post("/login", &command.authorization_url).await;
    let redirected = redirected["url"].as_str().unwrap_or_else(|| panic!("{redirected}")).to_owned();
    let page = http::send(Method::GET, &redirected, &[], "").await.unwrap();
    assert_eq!(page.status, 200);
    let output = command.end().await;
    assert!(output.contains("logged in at") && output.contains("attached over http"), "{output}");
    redirected
}

/// Returns the tokens that are kept.
fn kept_tokens(fixture: &EvenkeelFixture) -> Vec<String> {
    let files = std::fs::read_dir(fixture.evenkeel.state_dir().join("oauth")).into_iter().flatten().flatten();
    let mut tokens = Vec::new();
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let grant: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let response = &grant["credentials"]["token_response"];
        tokens.extend(
            ["access_token", "refresh_token"].map(|name| response[name].as_str().unwrap().to_owned()),
        );
    }
    tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_obtained_renewed_and_sent_only_to_their_server() {
    let issuer = Issuer::start().await;
    let mut fixture = EvenkeelFixture::start(&[("s", &issuer.spec("/mcp"))]).await;
    let condition = fixture.evenkeel.wait_for("s", "Ready", "False", "AuthRequired").await;
    assert!(condition.message.contains("run: evenkeel login s"), "{}", condition.message);
    let mut seen = Vec::new();

    let redirected = log_in(&fixture, &issuer).await;
    let status = fixture.server("s").await["status"]["auth"].clone();
    assert!(status["issuer"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{status}");
    assert_eq!(status["scopes"], serde_json::json!(["read"]));
    fixture.evenkeel.wait_for_event("s", "LoggedIn").await;
    let replayed = http::send(Method::GET, &redirected, &[], "").await.unwrap();
    assert_eq!(replayed.status, 404);
    seen.extend(kept_tokens(&fixture));

    // A renewal is no reconnect, and no call fails.
    let agent = fixture.agent(Era::Legacy).await;
    tokio::time::timeout(Duration::from_mins(1), async {
        while issuer.count("refreshes").await < 2 {
            assert!(agent.call_text("s_whoami", "{}").await.contains("ada"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the token is renewed");
    assert_eq!(
        (issuer.count("initialize").await, fixture.server("s").await["status"]["restarts"].clone()),
        (1, 0.into())
    );
    seen.extend(kept_tokens(&fixture));

    // The token outlives the process.
    fixture.evenkeel.kill();
    fixture.evenkeel.restart().await;
    fixture.evenkeel.wait_until_attached("s").await;
    assert!(fixture.agent(Era::Modern).await.call_text("s_whoami", "{}").await.contains("ada"));

    // A declaration with another URL is logged out.
    fixture.declared.write_server("s", &issuer.spec("/elsewhere"));
    fixture.evenkeel.wait_for("s", "Ready", "False", "AuthRequired").await;
    assert_eq!(issuer.count("tokensElsewhere").await, 0);
    fixture.declared.write_server("s", &issuer.spec("/mcp"));
    fixture.evenkeel.wait_until_attached("s").await;

    // The authorization server revokes the grant: the next renewal tells.
    issuer.post("/revoke", "").await;
    fixture.evenkeel.wait_for("s", "Ready", "False", "AuthRequired").await;
    fixture.evenkeel.wait_for_event("s", "TokenNotRenewed").await;

    // The browser runs elsewhere: its last address is pasted.
    let mut command = LoginCommand::start(&fixture).await;
    let redirected = issuer.post("/login", &command.authorization_url).await;
    let line = format!("{}\n", redirected["url"].as_str().unwrap());
    command.process.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
    command.end().await;
    fixture.evenkeel.wait_until_attached("s").await;
    seen.extend(kept_tokens(&fixture));

    let logout =
        fixture.evenkeel.command(&["logout", "s"]).env("EVENKEEL_DIR", fixture.declared.path()).output();
    assert!(logout.unwrap().status.success());
    fixture.evenkeel.wait_for("s", "Ready", "False", "AuthRequired").await;
    assert!(kept_tokens(&fixture).is_empty());

    let status = fixture.server("s").await.to_string();
    let log = fixture.evenkeel.stderr();
    seen.dedup();
    assert!(seen.len() >= 6);
    for token in seen {
        assert!(!log.contains(&token) && !status.contains(&token), "a token was printed");
    }
    eventually("nothing is kept", async || {
        fixture.server("s").await["status"]["auth"].is_null().then_some(())
    })
    .await;
}
