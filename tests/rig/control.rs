//! The protocol between a test and a fake server in a process of its own. The process connects to the test's Unix
//! socket, sends its [`ProcessInfo`], waits for a line that confirms it, and replies to each [`ControlCommand`] with
//! its counters. Every message is one line of JSON. The process ends when the socket is closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::script::Script;
use super::server::FakeServer;

/// A command from a test to a fake server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlCommand {
    /// Return the counters; do nothing else.
    Counters,
    /// Replace the script. Clients are notified of changed lists, unless the script is quiet.
    Set(Box<Script>),
    /// Send a notification without params to every client that subscribes to it.
    Notify(String),
    /// Notify all subscribers of this resource of a change.
    Updated(String),
    /// Send a log message, with this level and data, to legacy clients.
    Log(String, String),
    /// Send this whole message to legacy clients.
    Message(String),
    /// End every GET and listen stream.
    CloseStreams,
    /// Remove every session: further requests get the response `unknown_session` of the script. With `quietly`, open
    /// streams continue.
    ForgetSessions { quietly: bool },
    /// Send this many `roots/list` requests to legacy clients, all written at once.
    AskForRoots(u32),
    /// Write this line to stdout.
    Stdout(String),
    /// Write this line to stderr.
    Stderr(String),
    /// End the process with this code.
    Exit(i32),
}

/// The description of a process, sent when it connects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process id.
    pub pid: u32,
    /// True if another fake server started it. Such a process does nothing.
    pub grandchild: bool,
    /// Its endpoint, if it serves HTTP.
    pub url: Option<String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its environment variables.
    pub env: std::collections::BTreeMap<String, String>,
}

impl ProcessInfo {
    /// Describes the current process.
    pub(super) fn new(grandchild: bool, url: Option<String>) -> Self {
        Self {
            pid: std::process::id(),
            grandchild,
            url,
            cwd: std::env::current_dir().unwrap_or_default(),
            env: std::env::vars().collect(),
        }
    }
}

/// The connection of a registered process to its test.
pub(super) struct ControlConnection {
    socket: PathBuf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl ControlConnection {
    /// Connects to the test and waits until the test has registered the process. Ends the process if the test has
    /// ended.
    pub(super) async fn connect(control: PathBuf, hello: ProcessInfo) -> Self {
        let connect = async {
            let (reader, mut writer) = UnixStream::connect(&control).await?.into_split();
            writer.write_all(&json_line(&hello)).await?;
            let mut lines = BufReader::new(reader).lines();
            let confirmation = lines.next_line().await?;
            confirmation
                .map(|_| (lines, writer))
                .ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
        };
        match connect.await {
            Ok((lines, writer)) => Self { socket: control, lines, writer },
            Err(error) => exit_process(&control, Err(error)),
        }
    }

    /// Executes commands until the test closes the socket; then ends the process.
    pub(super) async fn run(mut self, server: Arc<FakeServer>) {
        let served = async {
            while let Some(text) = self.lines.next_line().await? {
                server.execute(serde_json::from_str(&text)?);
                self.writer.write_all(&json_line(&server.counters())).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        exit_process(&self.socket, served.await)
    }
}

fn exit_process(control: &Path, result: std::io::Result<()>) -> ! {
    if let Err(error) = result {
        eprintln!("rig: {}: {error}", control.display());
    }
    std::process::exit(0)
}

pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap();
    line.push(b'\n');
    line
}
