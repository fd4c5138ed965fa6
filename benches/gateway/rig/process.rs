//! The measured processes: started on free loopback ports, observed through `/proc`, and ended by their process ids.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use super::agent::{Agent, McpTarget};
use super::connection::HttpConnection;
use super::directory::BenchDirectory;
use super::upstream::RequestCounts;
use super::{Era, Result, cores};

/// A role of this program in a process of its own. It ends when its stdin is closed.
pub struct HelperProcess {
    pub address: SocketAddr,
    pub usage: ProcessUsage,
    child: LineChild,
}

impl HelperProcess {
    /// Starts the fake upstream on the load core, and waits until it has printed its address.
    pub async fn start_upstream() -> Result<Self> {
        Self::from_child(LineChild::start(&["upstream".to_owned()], Command::spawn)?).await
    }

    /// Starts a floor on the core of the measured process.
    pub async fn start_measured(role: &[String]) -> Result<Self> {
        Self::from_child(LineChild::start(role, cores::spawn_measured)?).await
    }

    async fn from_child(mut child: LineChild) -> Result<Self> {
        let address = child.next_line().await?.parse()?;
        Ok(Self { address, usage: child.usage, child })
    }

    /// Waits for the next line of its stdout.
    pub async fn next_line(&mut self) -> Result<String> {
        self.child.next_line().await
    }

    /// Returns the request counts of the fake upstream.
    pub async fn counts(&self) -> Result<RequestCounts> {
        let request = format!("GET /counts HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        let response = HttpConnection::open(self.address).await?.send(request.as_bytes()).await?;
        Ok(serde_json::from_slice(&response.body)?)
    }
}

/// A role of this program in a process of its own, with lines over its stdin and stdout.
pub struct LineChild {
    pub usage: ProcessUsage,
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl LineChild {
    /// Starts this program again in a role.
    pub fn start(role: &[String], spawn: impl FnOnce(&mut Command) -> io::Result<Child>) -> Result<Self> {
        let mut child = spawn(role_command(role)?.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let usage = ProcessUsage::of(&child)?;
        let stdin = child.stdin.take().ok_or("no stdin")?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        Ok(Self { usage, _child: child, stdin, lines })
    }

    /// Waits for the next line of its stdout.
    pub async fn next_line(&mut self) -> Result<String> {
        Ok(self.lines.next_line().await?.ok_or("a helper process has ended")?)
    }

    /// Writes bytes to it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stdin.write_all(bytes).await?)
    }
}

/// Returns the command that starts this program again in a role.
pub fn role_command(role: &[String]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--role").args(role).kill_on_drop(true);
    Ok(command)
}

/// A running evenkeel instance.
pub struct EvenkeelProcess {
    pub usage: ProcessUsage,
    address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl EvenkeelProcess {
    /// Starts it on a directory. It may not listen yet when this returns.
    pub async fn start(program: &Path, directory: &BenchDirectory) -> Result<Self> {
        let (address, admin) = (free_address().await?, free_address().await?);
        let state = directory.state_dir();
        let log = directory.log_path();
        let file = tokio::fs::File::create(&log).await?.into_std().await;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg(directory.declarations_dir())
            .args(["--listen", &address.to_string(), "--admin", &admin.to_string()])
            .env("XDG_STATE_HOME", &state)
            .env("XDG_CONFIG_HOME", &state)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        let child =
            cores::spawn_measured(&mut command).map_err(|error| format!("{}: {error}", program.display()))?;
        let usage = ProcessUsage::of(&child)?;
        Ok(Self { usage, address, child, log })
    }

    /// Returns its endpoint for agents.
    pub fn target(&self, era: Era) -> McpTarget {
        McpTarget { address: self.address, path: "/mcp".to_owned(), era }
    }

    /// Waits until it listens, and connects an agent.
    pub async fn wait_and_connect(&mut self, era: Era) -> Result<Agent> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.address).await.is_err() {
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > deadline {
                let log = tokio::fs::read_to_string(&self.log).await.unwrap_or_default();
                let state = exited.map_or("does not listen".to_owned(), |status| status.to_string());
                let from = log.len().saturating_sub(2000);
                return Err(format!("evenkeel: {state}\n{}", log.get(from..).unwrap_or(&log)).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Agent::connect(&self.target(era)).await
    }

    /// Waits until an agent lists this many tools, and returns the agent and the instant.
    pub async fn wait_for_tools(
        &mut self,
        era: Era,
        tools: usize,
        wait_timeout: Duration,
    ) -> Result<(Agent, Instant)> {
        let mut agent = self.wait_and_connect(era).await?;
        let mut count = 0;
        let poll = async {
            loop {
                count = agent.tool_names().await?.len();
                if count >= tools {
                    return Ok(Instant::now());
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(wait_timeout, poll).await {
            Ok(visible_at) => visible_at.map(|visible_at| (agent, visible_at)),
            Err(_) => Err(format!("{count} of {tools} tools after {wait_timeout:?}").into()),
        }
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = child_pid(&self.child) {
            kill_process(pid, Signal::TERM)?;
        }
        if timeout(Duration::from_mins(1), self.child.wait()).await.is_err() {
            self.child.kill().await?;
            return Err("evenkeel did not end within 60 s of SIGTERM".into());
        }
        Ok(())
    }
}

/// The resource usage of a process, read from `/proc`.
#[derive(Clone, Copy)]
pub struct ProcessUsage(u32);

impl ProcessUsage {
    fn of(child: &Child) -> Result<Self> {
        child.id().map(Self).ok_or_else(|| "ended already".into())
    }

    /// Reads the CPU time that each thread of the process has spent, in nanoseconds.
    pub fn cpu_times(self) -> Result<CpuTimes> {
        let mut threads = HashMap::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0))? {
            let path = thread?.path();
            // A thread may end during the iteration.
            let Ok(schedule) = read_proc_file(&path.join("schedstat").to_string_lossy()) else { continue };
            let spent = schedule.split_whitespace().next().ok_or("no CPU time")?.parse()?;
            threads.insert(path, spent);
        }
        Ok(CpuTimes(threads))
    }

    pub fn memory(self) -> Result<Memory> {
        let status = read_proc_file(&format!("/proc/{}/status", self.0))?;
        let field = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no memory")?;
            Ok(line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?)
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }

    /// Reads the memory every 500 ms, 20 times at most, until it changes by less than 0.2 %.
    pub async fn settled_memory(self) -> Result<Memory> {
        let mut before = self.memory()?;
        for _ in 0..20 {
            sleep(Duration::from_millis(500)).await;
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

/// Holds the CPU time of each thread of a process.
pub struct CpuTimes(HashMap<PathBuf, u64>);

impl CpuTimes {
    /// Returns the CPU time since the start of the threads that still run.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.values().sum())
    }

    /// Returns the CPU time since an earlier reading. It does not include the time of threads that have ended since
    /// then.
    pub fn since(&self, earlier: &Self) -> Duration {
        let spent =
            self.0.iter().map(|(thread, now)| now - earlier.0.get(thread).copied().unwrap_or_default());
        Duration::from_nanos(spent.sum())
    }
}

/// `VmRSS` and `RssAnon`, in KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    resident: f64,
    anonymous: f64,
}

impl Memory {
    /// Returns both, in MiB.
    pub fn mib(&self) -> [f64; 2] {
        [self.resident / 1024.0, self.anonymous / 1024.0]
    }

    /// Returns the memory per item in KiB, for items that were added after `before` was read.
    pub fn per_item(&self, before: &Self, items: usize) -> [f64; 2] {
        let items = items as f64;
        [(self.resident - before.resident) / items, (self.anonymous - before.anonymous) / items]
    }
}

#[expect(clippy::disallowed_methods, reason = "reads of /proc do not block")]
fn read_proc_file(path: &str) -> Result<String> {
    Ok(std::fs::read_to_string(path)?)
}

fn child_pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?))
}

async fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?)
}
