//! The fake server as a process: MCP over stdin and stdout, and faults that only a process can have.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::control::{ControlConnection, ProcessInfo};
use super::message::{InterimEvent, ListenStream, Outcome};
use super::script::{Script, StdioFaults};
use super::server::{FakeServer, ServerEvent};

type LineSender = mpsc::UnboundedSender<String>;

/// Runs the script in this file, over stdio or over HTTP on this address, until the process ends.
pub async fn run(script: &Path, http: Option<SocketAddr>) {
    let text = std::fs::read_to_string(script).expect("the script can be read");
    let script: Script = serde_json::from_str(&text).expect("the script is valid");
    let faults = script.stdio.clone();
    let control = script.control.clone();
    for line in &faults.stderr {
        eprintln!("{line}");
    }
    if let Some(code) = faults.exit_at_start {
        std::process::exit(code);
    }
    if faults.ignore_sigterm {
        let mut signals = signal(SignalKind::terminate()).unwrap();
        tokio::spawn(async move { while signals.recv().await.is_some() {} });
    }
    if faults.grandchild {
        spawn_grandchild(control.as_ref(), faults.runaway);
    }
    let listener = match http {
        Some(address) => Some(TcpListener::bind(address).await.expect("the address is free")),
        None => None,
    };
    let url = listener.as_ref().map(|listener| format!("http://{}/mcp", listener.local_addr().unwrap()));
    let server = FakeServer::new(script);
    if let Some(control) = control {
        let connection = ControlConnection::connect(control, ProcessInfo::new(false, url.clone())).await;
        tokio::spawn(connection.run(server.clone()));
    }
    match listener {
        Some(listener) => {
            println!("{}", url.unwrap_or_default());
            super::http::serve(server, listener).await;
        }
        None => serve_stdio(server, faults).await,
    }
}

/// Runs as a grandchild: ignores SIGTERM and ends with the test, after ten minutes at most.
pub async fn run_grandchild(control: Option<PathBuf>) {
    let mut signals = signal(SignalKind::terminate()).unwrap();
    tokio::spawn(async move { while signals.recv().await.is_some() {} });
    if let Some(control) = control {
        let connection = ControlConnection::connect(control, ProcessInfo::new(true, None)).await;
        tokio::spawn(connection.run(FakeServer::new(Script::default())));
    }
    tokio::time::sleep(Duration::from_mins(10)).await;
}

async fn serve_stdio(server: Arc<FakeServer>, faults: StdioFaults) {
    let (out, lines) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write_lines(lines));
    for line in &faults.stdout {
        send_line(&out, line);
    }
    if faults.endless_line {
        tokio::spawn(write_endless_line());
    }
    if faults.stderr_flood > 0 {
        tokio::spawn(flood_stderr(faults.stderr_flood));
    }
    tokio::time::sleep(Duration::from_millis(faults.start_delay_ms)).await;
    server.count_connection();
    let mut tasks = JoinSet::new();
    tasks.spawn(forward_events(server.clone(), out.clone()));
    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        while tasks.try_join_next().is_some() {}
        // The runtime has one thread and runs tasks in the order in which they were spawned: messages take effect in
        // order.
        tasks.spawn(handle_message(server.clone(), std::mem::take(&mut line), out.clone()));
    }
    if faults.ignore_eof {
        std::future::pending::<()>().await;
    }
    // Responses that were sent to the writer are written before the process ends.
    tasks.shutdown().await;
    drop(out);
    let _ = writer.await;
}

async fn handle_message(server: Arc<FakeServer>, message: Vec<u8>, out: LineSender) {
    let (sender, mut events) = mpsc::unbounded_channel();
    let relay = {
        let out = out.clone();
        async move {
            while let Some(event) = events.recv().await {
                if let InterimEvent::Message(message) = event {
                    send_line(&out, &message);
                }
            }
        }
    };
    // The handler drops the sender, which ends the relay: interim messages come before the response.
    let (outcome, ()) = tokio::join!(server.handle_message(&message, None, sender), relay);
    match outcome {
        Outcome::Response { text, .. } | Outcome::Junk(text) => send_line(&out, &text),
        Outcome::Accepted | Outcome::NoResponse => {}
        Outcome::Listen(listen) => run_listen_stream(&server, listen, &out).await,
        Outcome::Http { .. } | Outcome::Endless => {
            panic!("the script has an HTTP response for a server over stdio")
        }
        Outcome::Cut => {
            let mut stdout = tokio::io::stdout();
            let _ = stdout.write_all(b"{\"jsonrpc\":").await;
            let _ = stdout.flush().await;
            std::process::exit(0);
        }
        Outcome::Drop => std::process::exit(0),
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::CloseStdin => panic!("{}", sleep_command().stdin(Stdio::null()).exec()),
        Outcome::CloseStdout => panic!("{}", sleep_command().stdout(Stdio::null()).exec()),
    }
}

/// Returns the program that replaces a process that has closed a pipe. It keeps the other pipes open and never uses
/// them.
fn sleep_command() -> Command {
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600");
    sleeper
}

async fn run_listen_stream(server: &Arc<FakeServer>, listen: ListenStream, out: &LineSender) {
    let mut events = server.subscribe_events();
    let _open = server.open_stream();
    send_line(out, &listen.acknowledgement());
    let cancelled = listen.guard.as_ref().map(|guard| guard.cancellation.clone()).unwrap_or_default();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => return,
            event = events.recv() => match event {
                Ok(ServerEvent::CloseStreams) => {
                    let id = &listen.id;
                    let params = format!(r#"{{"requestId":{id}}}"#);
                    let message =
                        format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#);
                    send_line(out, &message);
                    return;
                }
                Err(_) => return,
                Ok(event) => {
                    if let Some(message) = listen.message_for(&event) {
                        send_line(out, &message);
                    }
                }
            },
        }
    }
}

/// Sends events to a legacy client, and executes the events that concern stdout and stderr.
async fn forward_events(server: Arc<FakeServer>, out: LineSender) {
    let mut events = server.subscribe_events();
    while let Ok(event) = events.recv().await {
        match event {
            ServerEvent::Stdout(line) => send_line(&out, &line),
            ServerEvent::Stderr(line) => eprintln!("{line}"),
            event => {
                if server.is_client_initialized() {
                    server.legacy_messages(&event).iter().for_each(|message| send_line(&out, message));
                }
            }
        }
    }
}

fn send_line(out: &LineSender, line: &str) {
    let _ = out.send(line.replace('\n', " "));
}

async fn write_lines(mut lines: mpsc::UnboundedReceiver<String>) {
    let mut stdout = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        let written = async {
            stdout.write_all(line.as_bytes()).await?;
            stdout.write_all(b"\n").await?;
            stdout.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

async fn write_endless_line() {
    let mut stdout = tokio::io::stdout();
    while stdout.write_all(&[b'x'; 8192]).await.is_ok() {}
}

async fn flood_stderr(bytes: u64) {
    let mut stderr = tokio::io::stderr();
    let line = format!("{}\n", "noise ".repeat(20));
    for _ in 0..bytes.div_ceil(line.len() as u64) {
        if stderr.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Starts a child process in the same process group, with the same stdout and stderr.
fn spawn_grandchild(control: Option<&PathBuf>, runaway: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(if runaway { "--run-away" } else { "--linger" }).args(control).stdin(Stdio::null());
    // Never waited for, on purpose: evenkeel must end this process as well.
    #[expect(clippy::zombie_processes, reason = "this is the scripted fault")]
    command.spawn().expect("the rig can start itself");
}
