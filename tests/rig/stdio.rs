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

use super::control::{Hello, Known};
use super::message::{Listen, Notice, Outcome};
use super::script::{Misdeeds, Script};
use super::server::{Event, Rig};

type Lines = mpsc::UnboundedSender<String>;

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
        raise_grandchild(control.as_ref(), misdeeds.runaway);
    }
    let listener = match http {
        Some(address) => Some(TcpListener::bind(address).await.expect("the address is free")),
        None => None,
    };
    let url = listener.as_ref().map(|listener| format!("http://{}/mcp", listener.local_addr().unwrap()));
    let rig = Rig::new(script);
    if let Some(control) = control {
        let known = Known::introduce(control, Hello::new(false, url.clone())).await;
        tokio::spawn(known.obey(rig.clone()));
    }
    match listener {
        Some(listener) => {
            println!("{}", url.unwrap_or_default());
            super::http::serve(rig, listener).await;
        }
        None => converse(rig, misdeeds).await,
    }
}

/// A grandchild: lives until the test ends, and never longer than ten minutes.
pub async fn linger(control: Option<PathBuf>) {
    let mut signals = signal(SignalKind::terminate()).unwrap();
    tokio::spawn(async move { while signals.recv().await.is_some() {} });
    if let Some(control) = control {
        let known = Known::introduce(control, Hello::new(true, None)).await;
        tokio::spawn(known.obey(Rig::new(Script::default())));
    }
    tokio::time::sleep(Duration::from_mins(10)).await;
}

async fn converse(rig: Arc<Rig>, misdeeds: Misdeeds) {
    let (out, lines) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write(lines));
    for line in &misdeeds.stdout {
        say(&out, line);
    }
    if misdeeds.endless_line {
        tokio::spawn(drone());
    }
    if misdeeds.stderr_flood > 0 {
        tokio::spawn(flood(misdeeds.stderr_flood));
    }
    tokio::time::sleep(Duration::from_millis(misdeeds.start_delay_ms)).await;
    rig.connected();
    let mut tasks = JoinSet::new();
    tasks.spawn(tell(rig.clone(), out.clone()));
    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        while tasks.try_join_next().is_some() {}
        // One thread runs tasks in the order in which they were spawned, so messages take effect in order.
        tasks.spawn(handle(rig.clone(), std::mem::take(&mut line), out.clone()));
    }
    if misdeeds.ignore_eof {
        std::future::pending::<()>().await;
    }
    // What was answered is written before the end.
    tasks.shutdown().await;
    drop(out);
    let _ = writer.await;
}

async fn handle(rig: Arc<Rig>, message: Vec<u8>, out: Lines) {
    let (sender, mut told) = mpsc::unbounded_channel();
    let relay = {
        let out = out.clone();
        async move {
            while let Some(notice) = told.recv().await {
                if let Notice::Message(message) = notice {
                    say(&out, &message);
                }
            }
        }
    };
    // The sender ends with the work, and the relay with the sender: notices come before the answer.
    let (outcome, ()) = tokio::join!(rig.receive(&message, None, sender), relay);
    match outcome {
        Outcome::Reply { text, .. } | Outcome::Junk(text) => say(&out, &text),
        Outcome::Accepted | Outcome::Silence => {}
        Outcome::Listen(listen) => listening(&rig, listen, &out).await,
        Outcome::Http { .. } => panic!("the script wants an HTTP answer over stdio"),
        Outcome::Cut => {
            let mut stdout = tokio::io::stdout();
            let _ = stdout.write_all(b"{\"jsonrpc\":").await;
            let _ = stdout.flush().await;
            std::process::exit(0);
        }
        Outcome::Drop => std::process::exit(0),
        Outcome::Exit(code) => std::process::exit(code),
        Outcome::CloseStdin => panic!("{}", sleeper().stdin(Stdio::null()).exec()),
        Outcome::CloseStdout => panic!("{}", sleeper().stdout(Stdio::null()).exec()),
    }
}

/// What takes the place of a process that has closed a pipe: it keeps the others and never uses them.
fn sleeper() -> Command {
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600");
    sleeper
}

async fn listening(rig: &Arc<Rig>, listen: Listen, out: &Lines) {
    let mut events = rig.events();
    let _open = rig.open_stream();
    say(out, &listen.acknowledgement());
    let cancelled = listen.guard.as_ref().map(|guard| guard.token.clone()).unwrap_or_default();
    loop {
        tokio::select! {
            () = cancelled.cancelled() => return,
            event = events.recv() => match event {
                Ok(Event::CloseStreams) => {
                    let id = &listen.id;
                    let params = format!(r#"{{"requestId":{id}}}"#);
                    say(out, &format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}"#));
                    return;
                }
                Err(_) => return,
                Ok(event) => {
                    if let Some(message) = listen.told(&event) {
                        say(out, &message);
                    }
                }
            },
        }
    }
}

/// Tells a legacy client what changes, and carries out what concerns the process alone.
async fn tell(rig: Arc<Rig>, out: Lines) {
    let mut events = rig.events();
    while let Ok(event) = events.recv().await {
        match event {
            Event::Stdout(line) => say(&out, &line),
            Event::Stderr(line) => eprintln!("{line}"),
            event => {
                if rig.client_ready() {
                    rig.told_legacy(&event).iter().for_each(|message| say(&out, message));
                }
            }
        }
    }
}

fn say(out: &Lines, line: &str) {
    let _ = out.send(line.replace('\n', " "));
}

async fn write(mut lines: mpsc::UnboundedReceiver<String>) {
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

async fn drone() {
    let mut stdout = tokio::io::stdout();
    while stdout.write_all(&[b'x'; 8192]).await.is_ok() {}
}

async fn flood(bytes: u64) {
    let mut stderr = tokio::io::stderr();
    let line = format!("{}\n", "noise ".repeat(20));
    for _ in 0..bytes.div_ceil(line.len() as u64) {
        if stderr.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Starts a process that shares our group, stdout and stderr.
fn raise_grandchild(control: Option<&PathBuf>, runaway: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(if runaway { "--run-away" } else { "--linger" }).args(control).stdin(Stdio::null());
    // Left to itself on purpose: whoever ends us must end it too.
    #[expect(clippy::zombie_processes, reason = "that is the fault")]
    command.spawn().expect("the rig can start itself");
}
