//! How a test speaks with a rig in a process of its own: the process connects to the test's Unix socket, says
//! [`Hello`], and answers each [`Command`] with its counters, a line of JSON each way. It ends when the test does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::script::Script;
use super::server::Rig;

/// What a test can tell a rig.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
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
    /// Forget every session: the next request of one is answered 404.
    ForgetSessions,
    /// Write this line to stdout.
    Stdout(String),
    /// Write this line to stderr.
    Stderr(String),
    /// End the process with this code.
    Exit(i32),
}

/// Who a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
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

impl Hello {
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

/// Says hello, then obeys until the test is gone; then ends the process.
pub(super) async fn obey(control: PathBuf, rig: Arc<Rig>, hello: Hello) {
    if let Err(error) = converse(&control, &rig, &hello).await {
        eprintln!("rig: {}: {error}", control.display());
    }
    std::process::exit(0);
}

async fn converse(control: &Path, rig: &Rig, hello: &Hello) -> std::io::Result<()> {
    let (reader, mut writer) = UnixStream::connect(control).await?.into_split();
    writer.write_all(&line(hello)).await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(text) = lines.next_line().await? {
        rig.obey(serde_json::from_str(&text)?);
        writer.write_all(&line(&rig.counters())).await?;
    }
    Ok(())
}

pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap();
    line.push(b'\n');
    line
}
