//! The rig as a process: MCP on stdin and stdout, and what only a process can do wrong.

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

/// Plays the script in this file, over stdio or on this address, until the process ends.
pub async fn run(script: &Path, http: Option<SocketAddr>) {
    let text = std::fs::read_to_string(script).expect("the script can be read");
    let script: Script = serde_json::from_str(&text).expect("the script is understood");
    let misdeeds = script.stdio.clone();
    let control = script.control.clone();
    for line in &misdeeds.stderr {
        eprintln!("{line}");
    }
    if let Some(code) = misdeeds.exit_at_start {
        std::process::exit(code);
    }
    if misdeeds.ignore_sigterm {
        let mut signals = signal(SignalKind::terminate()).unwrap();
        tokio::spawn(async move { while signals.recv().await.is_some() {} });
    }
    if misdeeds.grandchild {
        spawn_grandchild(control.as_ref(), misdeeds.runaway);
    }
    let listener = match http {
        Some(address) => Some(TcpListener::bind(address).await.expect("the address is free")),
        None => None,
    };
    let url = listener.as_ref().map(|listener| format!("http://{}/mcp", listener.local_addr().unwrap()));
    let rig = FakeServer::new(script);
    if let Some(control) = control {
        let known = ControlConnection::connect(control, ProcessInfo::new(false, url.clone())).await;
        tokio::spawn(known.run(rig.clone()));
    }
    match listener {
        Some(listener) => {
            println!("{}", url.unwrap_or_default());
            super::http::serve(rig, listener).await;
        }
        None => serve_stdio(rig, misdeeds).await,
    }
}

/// A grandchild: lives until the test ends, and never longer than ten minutes.
pub async fn run_grandchild(control: Option<PathBuf>) {
    let mut signals = signal(SignalKind::terminate()).unwrap();
    tokio::spawn(async move { while signals.recv().await.is_some() {} });
    if let Some(control) = control {
        let known = ControlConnection::connect(control, ProcessInfo::new(true, None)).await;
        tokio::spawn(known.run(FakeServer::new(Script::default())));
    }
    tokio::time::sleep(Duration::from_mins(10)).await;
}

async fn serve_stdio(rig: Arc<FakeServer>, misdeeds: StdioFaults) {
    let (out, lines) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write_lines(lines));
    for line in &misdeeds.stdout {
        send_line(&out, line);
    }
    if misdeeds.endless_line {
        tokio::spawn(write_endless_line());
    }
    if misdeeds.stderr_flood > 0 {
        tokio::spawn(flood_stderr(misdeeds.stderr_flood));
    }
    tokio::time::sleep(Duration::from_millis(misdeeds.start_delay_ms)).await;
    rig.count_connection();
    let mut tasks = JoinSet::new();
    tasks.spawn(forward_events(rig.clone(), out.clone()));
    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        while tasks.try_join_next().is_some() {}
        // One thread runs tasks in the order in which they were spawned, so messages take effect in order.
        tasks.spawn(handle_message(rig.clone(), std::mem::take(&mut line), out.clone()));
    }
    if misdeeds.ignore_eof {
        std::future::pending::<()>().await;
    }
    // What was answered is written before the end.
    tasks.shutdown().await;
    drop(out);
    let _ = writer.await;
}

async fn handle_message(rig: Arc<FakeServer>, message: Vec<u8>, out: LineSender) {
    let (sender, mut told) = mpsc::unbounded_channel();
    let relay = {
        let out = out.clone();
        async move {
            while let Some(notice) = told.recv().await {
                if let InterimEvent::Message(message) = notice {
                    send_line(&out, &message);
                }
            }
        }
    };
    // The sender ends with the work, and the relay with the sender: notices come before the answer.
    let (outcome, ()) = tokio::join!(rig.handle_message(&message, None, sender), relay);
    match outcome {
        Outcome::Response { text, .. } | Outcome::Junk(text) => send_line(&out, &text),
        Outcome::Accepted | Outcome::NoResponse => {}
        Outcome::Listen(listen) => run_listen_stream(&rig, listen, &out).await,
        Outcome::Http { .. } => panic!("the script wants an HTTP answer over stdio"),
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

/// What takes the place of a process that has closed a pipe: it keeps the others and never uses them.
fn sleep_command() -> Command {
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600");
    sleeper
}

async fn run_listen_stream(rig: &Arc<FakeServer>, listen: ListenStream, out: &LineSender) {
    let mut events = rig.events();
    let _open = rig.open_stream();
    send_line(out, &listen.acknowledgement());
    let cancelled = listen.guard.as_ref().map(|guard| guard.cancellation.clone()).unwrap_or_default();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => return,
            event = events.recv() => match event {
                Ok(ServerEvent::CloseStreams) => {
                    let id = &listen.id;
                    let params = format!(r#"{{"requestId":{id}}}"#);
                    send_line(out, &format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#));
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

/// Tells a legacy client what changes, and carries out what concerns the process alone.
async fn forward_events(rig: Arc<FakeServer>, out: LineSender) {
    let mut events = rig.events();
    while let Ok(event) = events.recv().await {
        match event {
            ServerEvent::Stdout(line) => send_line(&out, &line),
            ServerEvent::Stderr(line) => eprintln!("{line}"),
            event => {
                if rig.is_client_initialized() {
                    rig.legacy_messages(&event).iter().for_each(|message| send_line(&out, message));
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
        let sent = async {
            stdout.write_all(line.as_bytes()).await?;
            stdout.write_all(b"\n").await?;
            stdout.flush().await
        };
        if sent.await.is_err() {
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

/// Starts a process that shares our group, stdout and stderr.
fn spawn_grandchild(control: Option<&PathBuf>, runaway: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(if runaway { "--run-away" } else { "--linger" }).args(control).stdin(Stdio::null());
    // Left to itself on purpose: whoever ends us must end it too.
    #[expect(clippy::zombie_processes, reason = "that is the fault")]
    command.spawn().expect("the rig can start itself");
}
