//! How a test speaks with a rig in a process of its own: the process connects to the test's Unix socket, says
//! [`Hello`], waits for a word back, and answers each [`Command`] with its counters, a line of JSON each way. It ends
//! when the test does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::script::Script;
use super::server::FakeServer;

/// What a test can tell a rig.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlCommand {
    /// Nothing but the counters.
    Counters,
    /// Follow this script from now on. A changed tool list is told to clients, unless the script is quiet.
    Set(Box<Script>),
    /// Send a notification without parameters to every client that would get it.
    Notify(String),
    /// Tell everyone who watches this resource that it changed.
    Updated(String),
    /// Send a log message to legacy clients, from the level on that they set.
    Log(String, String),
    /// End every GET and listen stream.
    CloseStreams,
    /// Forget every session: the next request of one is answered as `unknown_session` of the script says. Quietly:
    /// its streams go on.
    ForgetSessions { quietly: bool },
    /// Ask legacy clients for their roots so many times, all requests written at once.
    AskForRoots(u32),
    /// Write this line to stdout.
    Stdout(String),
    /// Write this line to stderr.
    Stderr(String),
    /// End the process with this code.
    Exit(i32),
}

/// Who a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process id.
    pub pid: u32,
    /// It was started by another rig and does nothing but live.
    pub grandchild: bool,
    /// Its endpoint, if it speaks HTTP.
    pub url: Option<String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// The names and values of its environment.
    pub env: std::collections::BTreeMap<String, String>,
}

impl ProcessInfo {
    /// This process.
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

/// A process that has said hello, and is known to its test.
pub(super) struct ControlConnection {
    socket: PathBuf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl ControlConnection {
    /// Says hello and waits until it was heard: whoever meets the process later can rely on that. Ends the process if
    /// the test is gone.
    pub(super) async fn connect(control: PathBuf, hello: ProcessInfo) -> Self {
        let said = async {
            let (reader, mut writer) = UnixStream::connect(&control).await?.into_split();
            writer.write_all(&json_line(&hello)).await?;
            let mut lines = BufReader::new(reader).lines();
            let heard = lines.next_line().await?;
            heard.map(|_| (lines, writer)).ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
        };
        match said.await {
            Ok((lines, writer)) => Self { socket: control, lines, writer },
            Err(error) => exit_process(&control, Err(error)),
        }
    }

    /// Obeys until the test is gone; then ends the process.
    pub(super) async fn run(mut self, rig: Arc<FakeServer>) {
        let obeyed = async {
            while let Some(text) = self.lines.next_line().await? {
                rig.execute(serde_json::from_str(&text)?);
                self.writer.write_all(&json_line(&rig.counters())).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        exit_process(&self.socket, obeyed.await)
    }
}

fn exit_process(control: &Path, how: std::io::Result<()>) -> ! {
    if let Err(error) = how {
        eprintln!("rig: {}: {error}", control.display());
    }
    std::process::exit(0)
}

pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap();
    line.push(b'\n');
    line
}
