//! Handles for tests: a fake server over HTTP in the test's own process, or the fake servers that evenkeel starts as
//! child processes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::control::{ControlCommand, ProcessInfo, json_line};
use super::counters::Counters;
use super::example::example;
use super::script::Script;
use super::server::FakeServer;

/// A fake server over HTTP in the test's own process. It stops when dropped.
pub struct FakeHttpServer {
    fake: Arc<FakeServer>,
    address: SocketAddr,
    serve_task: Option<JoinHandle<std::convert::Infallible>>,
}

impl FakeHttpServer {
    /// Starts the server on a free port below the ephemeral port range and above the range of `support::free_port`. No
    /// other program takes the port while the server is stopped.
    pub async fn start(script: Script) -> Self {
        static NEXT_OFFSET: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id() % 2_000 * 37;
        let listener = loop {
            let port = 30_000 + (start + NEXT_OFFSET.fetch_add(1, Ordering::Relaxed)) % 2_000;
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap())).await {
                break listener;
            }
        };
        let address = listener.local_addr().unwrap();
        let rig = FakeServer::new(script);
        let server = Some(tokio::spawn(super::http::serve(rig.clone(), listener)));
        Self { fake: rig, address, serve_task: server }
    }

    /// Returns the URL of the endpoint. The server accepts any other path too.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Returns the listen address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the transport of an `McpServer` for this server, as a line of YAML.
    pub fn spec(&self) -> String {
        let transport = if self.speaks_sse() { "SSE" } else { "StreamableHTTP" };
        format!("http: {{ url: \"{}\", transport: {transport} }}", self.url())
    }

    /// Returns true if the server speaks HTTP+SSE.
    pub fn speaks_sse(&self) -> bool {
        self.fake.script().http.sse
    }

    /// Returns the server's counters.
    pub fn counters(&self) -> Counters {
        self.fake.counters()
    }

    /// Changes the current script. The counts of its rules start again from zero.
    pub fn edit_script(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.fake.script();
        change(&mut script);
        self.send_command(ControlCommand::Set(Box::new(script)));
    }

    /// Executes a command.
    pub fn send_command(&self, command: ControlCommand) {
        self.fake.execute(command);
    }

    /// Closes every connection and stops listening.
    pub async fn stop(&mut self) {
        if let Some(server) = self.serve_task.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Listens again on the same port, with the same state.
    pub async fn resume(&mut self) {
        self.stop().await;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                // A child process that another test is starting holds a copy of every socket for a moment.
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{}: {error}", self.address),
            }
        };
        self.serve_task = Some(tokio::spawn(super::http::serve(self.fake.clone(), listener)));
    }
}

impl Drop for FakeHttpServer {
    fn drop(&mut self) {
        if let Some(server) = &self.serve_task {
            server.abort();
        }
    }
}

/// The script of a fake server that evenkeel starts over stdio, and all processes that were started with it. The
/// processes end when it is dropped.
pub struct FakeStdioServer {
    directory: TempDir,
    script: Mutex<Script>,
    processes: Arc<Mutex<Vec<FakeServerProcess>>>,
    accept_task: JoinHandle<()>,
}

impl FakeStdioServer {
    /// Writes the script to a file and listens for the processes that are started with it.
    pub fn new(script: Script) -> Self {
        let directory = TempDir::with_prefix("rig").unwrap();
        let control = directory.path().join("control");
        // On a runtime of its own, since the test may block: each process waits until it is registered.
        let runtime = control_runtime();
        let _context = runtime.enter();
        let listener = UnixListener::bind(&control).unwrap();
        let processes = Arc::default();
        let this = Self {
            accept_task: runtime.spawn(accept_processes(listener, Arc::clone(&processes))),
            script: Mutex::new(Script { control: Some(control), ..script }),
            directory,
            processes,
        };
        this.edit_script(|_| ());
        this
    }

    /// Returns the program and its one argument.
    pub fn command(&self) -> (PathBuf, PathBuf) {
        (executable(), self.directory.path().join("script.json"))
    }

    /// Returns the transport of an `McpServer` for this server, as a line of YAML. `more` adds members, such as
    /// `, env: […]`.
    pub fn spec(&self, more: &str) -> String {
        let (program, script) = self.command();
        format!("stdio: {{ command: \"{}\", args: [\"{}\"]{more} }}", program.display(), script.display())
    }

    /// Changes the script for processes that are started from now on.
    pub fn edit_script(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.script.lock().unwrap();
        change(&mut script);
        let path = self.directory.path().join("script.json");
        let staged = path.with_extension("staged");
        std::fs::write(&staged, serde_json::to_vec(&*script).unwrap()).unwrap();
        std::fs::rename(staged, path).unwrap();
    }

    /// Returns all processes that have registered, in that order, without grandchildren.
    pub fn processes(&self) -> Vec<FakeServerProcess> {
        self.filter_processes(false)
    }

    /// Returns the processes that are running.
    pub fn live_processes(&self) -> Vec<FakeServerProcess> {
        self.processes().into_iter().filter(FakeServerProcess::is_alive).collect()
    }

    /// Returns the ids of the processes that exist at this moment, as the kernel reports them: [`Self::live_processes`]
    /// is updated a moment later.
    pub fn existing_pids(&self) -> Vec<u32> {
        let pids = self.processes().into_iter().map(|process| process.pid());
        pids.filter(|pid| test_kill_process(to_pid(*pid)).is_ok()).collect()
    }

    /// Returns the processes that fake servers started.
    pub fn grandchildren(&self) -> Vec<FakeServerProcess> {
        self.filter_processes(true)
    }

    fn filter_processes(&self, grandchildren: bool) -> Vec<FakeServerProcess> {
        let processes = self.processes.lock().unwrap();
        processes.iter().filter(|process| process.info().grandchild == grandchildren).cloned().collect()
    }
}

impl Drop for FakeStdioServer {
    fn drop(&mut self) {
        self.accept_task.abort();
        // A process ends itself when its control socket is closed.
        for process in &*self.processes.lock().unwrap() {
            // The process may be registering right now.
            for _ in 0..1_000 {
                if let Ok(mut control) = process.0.control.try_lock() {
                    *control = None;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// A fake server in a process of its own.
#[derive(Clone)]
pub struct FakeServerProcess(Arc<Inner>);

struct Inner {
    info: ProcessInfo,
    alive: watch::Receiver<bool>,
    control: tokio::sync::Mutex<Option<(OwnedWriteHalf, mpsc::UnboundedReceiver<Counters>)>>,
}

impl FakeServerProcess {
    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.0.info.pid
    }

    /// Returns what the process reported about itself when it registered.
    pub fn info(&self) -> &ProcessInfo {
        &self.0.info
    }

    /// Returns false once it has ended, for whatever reason.
    pub fn is_alive(&self) -> bool {
        *self.0.alive.borrow()
    }

    /// Waits until the process has ended.
    pub async fn wait_for_exit(&self) {
        let _ = self.0.alive.clone().wait_for(|alive| !alive).await;
    }

    /// Returns the server's counters.
    pub async fn counters(&self) -> Counters {
        self.send_command(ControlCommand::Counters).await.expect("the process is alive")
    }

    /// Replaces its script. The counts of its rules start again from zero.
    pub async fn set_script(&self, script: Script) {
        self.send_command(ControlCommand::Set(Box::new(script))).await.expect("the process is alive");
    }

    /// Executes a command in the process. Returns its counters afterwards, or `None` if the process has ended.
    pub async fn send_command(&self, command: ControlCommand) -> Option<Counters> {
        let mut control = self.0.control.lock().await;
        let (writer, counters) = control.as_mut()?;
        writer.write_all(&json_line(&command)).await.ok()?;
        counters.recv().await
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&self) {
        // The process may have ended by itself.
        let _ = kill_process(to_pid(self.pid()), Signal::KILL);
    }
}

fn to_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap()
}

/// Returns the runtime that serves the control sockets of all fake server processes.
fn control_runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap());
    &RUNTIME
}

async fn accept_processes(listener: UnixListener, processes: Arc<Mutex<Vec<FakeServerProcess>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        // The task ends when its process does.
        tokio::spawn(register_process(stream, processes.clone()));
    }
}

async fn register_process(stream: UnixStream, processes: Arc<Mutex<Vec<FakeServerProcess>>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let Ok(Some(info)) = lines.next_line().await else {
        return;
    };
    let (alive, alive_receiver) = watch::channel(true);
    let (sender, counters) = mpsc::unbounded_channel();
    let inner = Arc::new(Inner {
        info: serde_json::from_str(&info).unwrap(),
        alive: alive_receiver,
        control: tokio::sync::Mutex::new(None),
    });
    // The lock is held before the process is published: no command can be sent before the connection is stored.
    let mut control = inner.control.lock().await;
    processes.lock().unwrap().push(FakeServerProcess(Arc::clone(&inner)));
    // The process may have ended in the meantime; the loop below detects that.
    let _ = writer.write_all(b"registered\n").await;
    *control = Some((writer, counters));
    drop(control);
    while let Ok(Some(text)) = lines.next_line().await {
        let _ = sender.send(serde_json::from_str(&text).unwrap());
    }
    let _ = alive.send(false);
}

/// Returns the path of the rig as a program.
pub fn executable() -> PathBuf {
    example("rig", &["tests/rig"])
}
