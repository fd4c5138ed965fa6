//! The processes that are measured: started on free ports of the loopback, watched through `/proc`, and
//! ended by their own ids.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use super::agent::{Agent, Target};
use super::connection::Connection;
use super::directory::Directory;
use super::upstream::Counts;
use super::{Era, Result};

/// A part of this program in a process of its own; it ends when its stdin closes.
pub struct Helper {
    pub address: SocketAddr,
    pub usage: Usage,
    _child: Child,
    _stdin: Option<ChildStdin>,
}

impl Helper {
    /// Starts this program again in a role, and waits until it has said its address.
    pub async fn start(role: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--role")
            .args(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let usage = Usage::of(&child)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?.ok_or("a helper said nothing")?;
        Ok(Self { address: line.parse()?, usage, _child: child, _stdin: stdin })
    }

    /// What the fake upstream has been asked so far.
    pub async fn counts(&self) -> Result<Counts> {
        let request = format!("GET /counts HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        let answer = Connection::open(self.address).await?.exchange(request.as_bytes()).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

/// A running evenkeel.
pub struct Evenkeel {
    pub usage: Usage,
    /// When it was started.
    pub started: Instant,
    address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Evenkeel {
    /// Starts it on a directory; it need not listen yet.
    pub async fn start(program: &Path, directory: &Directory) -> Result<Self> {
        let (address, admin) = (free_address().await?, free_address().await?);
        let state = directory.state();
        let log = directory.log();
        let file = tokio::fs::File::create(&log).await?.into_std().await;
        let started = Instant::now();
        let child = Command::new(program)
            .arg("run")
            .arg(directory.live())
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string()])
            .env("XDG_STATE_HOME", &state)
            .env("XDG_CONFIG_HOME", &state)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let usage = Usage::of(&child)?;
        Ok(Self { usage, started, address, child, log })
    }

    /// Its endpoint for agents.
    pub fn target(&self, era: Era) -> Target {
        Target { address: self.address, path: "/mcp".to_owned(), era }
    }

    /// Waits until it listens, and connects an agent.
    pub async fn agent(&mut self, era: Era) -> Result<Agent> {
        let patience = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.address).await.is_err() {
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > patience {
                let log = tokio::fs::read_to_string(&self.log).await.unwrap_or_default();
                let state = exited.map_or("does not listen".to_owned(), |status| status.to_string());
                let from = log.len().saturating_sub(2000);
                return Err(format!("evenkeel: {state}\n{}", log.get(from..).unwrap_or(&log)).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Agent::connect(&self.target(era)).await
    }

    /// Waits until an agent sees this many tools; gives the instant at which it did.
    pub async fn usable(&mut self, era: Era, tools: usize, patience: Duration) -> Result<(Agent, Instant)> {
        let mut agent = self.agent(era).await?;
        let mut seen = 0;
        let look = async {
            loop {
                seen = agent.tools().await?.len();
                if seen >= tools {
                    return Ok(Instant::now());
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(patience, look).await {
            Ok(at) => at.map(|at| (agent, at)),
            Err(_) => Err(format!("{seen} of {tools} tools after {patience:?}").into()),
        }
    }

    /// Ends it as a person would, and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = pid(&self.child) {
            kill_process(pid, Signal::TERM)?;
        }
        if timeout(Duration::from_mins(1), self.child.wait()).await.is_err() {
            self.child.kill().await?;
            return Err("evenkeel did not end within 60 s of SIGTERM".into());
        }
        Ok(())
    }
}

/// What the system says that a process uses.
#[derive(Clone, Copy)]
pub struct Usage(u32);

impl Usage {
    fn of(child: &Child) -> Result<Self> {
        child.id().map(Self).ok_or_else(|| "ended already".into())
    }

    /// The CPU time that the process has spent, to 10 ms.
    pub fn cpu(self) -> Result<Duration> {
        let stat = read(&format!("/proc/{}/stat", self.0))?;
        // The name, which may hold anything, is in parentheses; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').ok_or("stat without a name")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(Duration::from_millis(10 * ticks.sum::<std::result::Result<u64, _>>()?))
    }

    pub fn memory(self) -> Result<Memory> {
        let status = read(&format!("/proc/{}/status", self.0))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no memory")?;
            Ok(line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?)
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }

    /// The memory once it has stopped moving.
    pub async fn settled_memory(self) -> Result<Memory> {
        let mut before = self.memory()?;
        for _ in 0..10 {
            sleep(Duration::from_secs(1)).await;
            let now = self.memory()?;
            let settled = (now.resident - before.resident).abs() < 0.002 * now.resident;
            before = now;
            if settled {
                break;
            }
        }
        Ok(before)
    }
}

/// `VmRSS` and `RssAnon`, in KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    resident: f64,
    anonymous: f64,
}

impl Memory {
    /// Both, in MiB.
    pub fn mib(&self) -> [f64; 2] {
        [self.resident / 1024.0, self.anonymous / 1024.0]
    }

    /// What each of a number of things takes in KiB, if all of them came after `before`.
    pub fn each(&self, before: &Self, things: usize) -> [f64; 2] {
        let things = things as f64;
        [(self.resident - before.resident) / things, (self.anonymous - before.anonymous) / things]
    }
}

#[expect(clippy::disallowed_methods, reason = "/proc answers from memory")]
fn read(path: &str) -> Result<String> {
    Ok(std::fs::read_to_string(path)?)
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?))
}

async fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?)
}
