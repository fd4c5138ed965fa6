//! `evenkeel login` and `evenkeel logout`: the OAuth tokens of servers.

use std::io::BufRead;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::client::{ResponseLines, StatusClient, disconnected_error};
use super::error::CommandError;
use super::instance::{Instance, NamespacedInstanceArgs};
use super::output::{self, sanitize};
use super::query::{ListQuery, condition, is_current, items, object_name, report_unknown_name, text_at};
use super::runtime::block_on;
use crate::admin::{LOGINS_PATH, LoginAnswer, LoginEvent};
use crate::report::ObjectKind;
use crate::resource::Reason;

/// The time for which a server is waited for after its login.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// The arguments of `evenkeel login`.
#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Servers to log in to
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Log in to each server that waits for it, one after the other
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Print the address, and do not open a browser
    #[arg(long)]
    no_browser: bool,
}

/// The arguments of `evenkeel logout`.
#[derive(Debug, clap::Args)]
pub(super) struct LogoutArgs {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Servers whose tokens are removed
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Logs in to servers, with the browser of a person.
pub(super) fn login(args: &LoginArgs) -> Result<(), CommandError> {
    block_on(async {
        let instance = args.target.instance.resolve()?;
        let mut client = StatusClient::connect(&instance).await?;
        let query = query(&args.target);
        let list: Value = client.get(&query.path()).await?;
        let waits = |server: &&Value| {
            let ready = condition(server, "Ready");
            ready.is_some_and(|ready| text_at(ready, "/reason") == Reason::AuthRequired.to_string())
        };
        let names: Vec<_> = if args.all {
            items(&list).iter().filter(waits).map(|server| object_name(server).to_owned()).collect()
        } else {
            check_names(&mut client, &args.target, &list, &args.names).await?;
            args.names.clone()
        };
        if names.is_empty() {
            return output::print("no server waits for a login\n").map_err(CommandError::failed);
        }
        let mut pasted = PastedLines::read();
        for name in names {
            log_in(&instance, &query, &name, !args.no_browser, &mut pasted).await?;
            wait_until_attached(&mut client, &query, &name).await?;
        }
        Ok(())
    })
}

/// Removes the tokens of servers.
pub(super) fn logout(args: &LogoutArgs) -> Result<(), CommandError> {
    block_on(async {
        let mut client = StatusClient::connect(&args.target.instance.resolve()?).await?;
        let query = query(&args.target);
        let list: Value = client.get(&query.path()).await?;
        check_names(&mut client, &args.target, &list, &args.names).await?;
        for name in &args.names {
            let path = query.subpath(&[name, "login"]);
            client.send(Method::DELETE, &path, "application/json", None).await.map(drop)?;
            output::print(&format!("{name}: logged out\n")).map_err(CommandError::failed)?;
        }
        Ok(())
    })
}

fn query(target: &NamespacedInstanceArgs) -> ListQuery {
    ListQuery::new(ObjectKind::McpServer, Some(&target.namespace))
}

async fn check_names(
    client: &mut StatusClient,
    target: &NamespacedInstanceArgs,
    list: &Value,
    names: &[String],
) -> Result<(), CommandError> {
    for name in names {
        if !items(list).iter().any(|item| object_name(item) == *name) {
            return Err(
                report_unknown_name(client, ObjectKind::McpServer, name, Some(&target.namespace)).await
            );
        }
    }
    Ok(())
}

/// Logs in to one server.
async fn log_in(
    instance: &Instance,
    query: &ListQuery,
    name: &str,
    opens_browser: bool,
    pasted: &mut PastedLines,
) -> Result<(), CommandError> {
    let mut client = StatusClient::connect(instance).await?;
    let path = query.subpath(&[name, "login"]);
    let mut lines = ResponseLines::new(client.post_and_wait(&path).await?);
    let LoginEvent::Begun { id, url, issuer } = next_event(&mut lines).await? else {
        return Err(CommandError::Failed(format!("{name}: evenkeel did not begin the login")));
    };
    let url = sanitize(&url);
    output::print_note(&format!("{name}: to log in at {}, open\n\n  {url}\n", sanitize(&issuer)));
    if opens_browser && std::env::var_os("SSH_CONNECTION").is_none() {
        open_browser(&url);
    }
    output::print_note(
        "Waiting until you are done there. If your browser then cannot open a page of 127.0.0.1, paste its address here.",
    );
    loop {
        tokio::select! {
            event = next_event(&mut lines) => return match event? {
                LoginEvent::Complete { issuer, scopes } => {
                    let scopes = sanitize(&scopes.join(" "));
                    let scopes = if scopes.is_empty() { scopes } else { format!(", scopes {scopes}") };
                    let text = format!("{name}: logged in at {}{scopes}\n", sanitize(&issuer));
                    output::print(&text).map_err(CommandError::failed)
                }
                LoginEvent::Failed(why) => Err(CommandError::Failed(format!("{name}: {}", sanitize(&why)))),
                LoginEvent::Begun { .. } => continue,
            },
            Some(line) = pasted.next() => {
                let mut client = StatusClient::connect(instance).await?;
                let body = json!(LoginAnswer { answer: line });
                let path = format!("{LOGINS_PATH}/{id}");
                client.send(Method::POST, &path, "application/json", Some(("application/json", &body))).await.map(drop)?;
            }
        }
    }
}

async fn next_event(lines: &mut ResponseLines) -> Result<LoginEvent, CommandError> {
    let line = lines.next().await?.ok_or_else(disconnected_error)?;
    serde_json::from_str(&line).map_err(CommandError::failed)
}

/// Waits until a server is attached with its new token, and reports if it is not.
async fn wait_until_attached(
    client: &mut StatusClient,
    query: &ListQuery,
    name: &str,
) -> Result<(), CommandError> {
    let end = tokio::time::Instant::now() + ATTACH_TIMEOUT;
    loop {
        let list: Value = client.get(&query.path()).await?;
        let Some(server) = items(&list).iter().find(|item| object_name(item) == name) else { return Ok(()) };
        let Some(ready) = condition(server, "Ready") else { continue };
        let message = text_at(ready, "/message");
        if text_at(ready, "/status") == "True" && is_current(server, ready) {
            return output::print(&format!("{name}: {}\n", sanitize(message))).map_err(CommandError::failed);
        }
        if tokio::time::Instant::now() > end {
            return Err(CommandError::Failed(format!("{name}: {}", sanitize(message))));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Opens an address in the browser of the desktop. Failures are ignored: the address was printed.
fn open_browser(url: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let program = std::env::var_os("BROWSER").unwrap_or_else(|| program.into());
    let mut command = Command::new(program);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(mut child) = command.spawn() {
        // Reaps the process when the browser has taken the address.
        std::thread::spawn(move || child.wait());
    }
}

/// The lines that a person pastes into the terminal.
struct PastedLines(mpsc::Receiver<String>);

impl PastedLines {
    /// Reads stdin, unless it is at its end.
    fn read() -> Self {
        let (sender, lines) = mpsc::channel(1);
        // A thread, because a read of a terminal cannot be interrupted. It ends with the process.
        std::thread::spawn(move || {
            let stdin = std::io::stdin();
            for line in stdin.lock().lines().map_while(Result::ok) {
                if !line.trim().is_empty() && sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// Returns the next line; waits for ever after the last. Cancel safe.
    async fn next(&mut self) -> Option<String> {
        match self.0.recv().await {
            Some(line) => Some(line),
            None => std::future::pending().await,
        }
    }
}
