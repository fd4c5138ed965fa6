//! What tests hold: a rig in their own process over HTTP, or the census of the rigs that evenkeel starts.

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

/// A rig over HTTP in the test's own process; ends when dropped.
pub struct FakeHttpServer {
    fake: Arc<FakeServer>,
    address: SocketAddr,
    serve_task: Option<JoinHandle<std::convert::Infallible>>,
}

impl FakeHttpServer {
    /// Starts on a free port, from below the range that systems hand out by themselves and above that of
    /// `support::free_port`: nobody else takes it while the rig is stopped.
    pub async fn start(script: Script) -> Self {
        static NEXT_OFFSET: AtomicU32 = AtomicU32::new(0);
        let first = std::process::id() % 2_000 * 37;
        let listener = loop {
            let port = 30_000 + (first + NEXT_OFFSET.fetch_add(1, Ordering::Relaxed)) % 2_000;
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap())).await {
                break listener;
            }
        };
        let address = listener.local_addr().unwrap();
        let rig = FakeServer::new(script);
        let server = Some(tokio::spawn(super::http::serve(rig.clone(), listener)));
        Self { fake: rig, address, serve_task: server }
    }

    /// The endpoint. Any other path is it too.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The transport of an `McpServer` that is this rig, as a line of YAML.
    pub fn spec(&self) -> String {
        format!("http: {{ url: \"{}\" }}", self.url())
    }

    /// What it has seen so far.
    pub fn counters(&self) -> Counters {
        self.fake.counters()
    }

    /// Changes the script in force; its rules start anew.
    pub fn edit_script(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.fake.script();
        change(&mut script);
        self.send_command(ControlCommand::Set(Box::new(script)));
    }

    /// Tells it something.
    pub fn send_command(&self, command: ControlCommand) {
        self.fake.execute(command);
    }

    /// Cuts every connection and stops listening.
    pub async fn stop(&mut self) {
        if let Some(server) = self.serve_task.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Listens again on the same port, with what it knew.
    pub async fn resume(&mut self) {
        self.stop().await;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                // A program that another test is just starting holds a copy of every socket for a moment.
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

/// The script of a rig that others start over stdio, and all processes that ever played it. They end when it is
/// dropped.
pub struct FakeStdioServer {
    directory: TempDir,
    script: Mutex<Script>,
    processes: Arc<Mutex<Vec<FakeServerProcess>>>,
    accept_task: JoinHandle<()>,
}

impl FakeStdioServer {
    /// Puts the script where processes find it, and waits for them.
    pub fn new(script: Script) -> Self {
        let directory = TempDir::with_prefix("rig").unwrap();
        let control = directory.path().join("control");
        // Beside the test, which may block: a process waits until it was heard.
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

    /// The program and its one argument.
    pub fn command(&self) -> (PathBuf, PathBuf) {
        (executable(), self.directory.path().join("script.json"))
    }

    /// The transport of an `McpServer` that is this rig, as a line of YAML; `more` adds members, such as
    /// `, env: […]`.
    pub fn spec(&self, more: &str) -> String {
        let (program, script) = self.command();
        format!("stdio: {{ command: \"{}\", args: [\"{}\"]{more} }}", program.display(), script.display())
    }

    /// Changes the script of the processes to come.
    pub fn edit_script(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.script.lock().unwrap();
        change(&mut script);
        let path = self.directory.path().join("script.json");
        let half = path.with_extension("half");
        std::fs::write(&half, serde_json::to_vec(&*script).unwrap()).unwrap();
        std::fs::rename(half, path).unwrap();
    }

    /// All that were ever started and have said hello, in that order; without grandchildren.
    pub fn processes(&self) -> Vec<FakeServerProcess> {
        self.filter_processes(false)
    }

    /// Those that are alive.
    pub fn live_processes(&self) -> Vec<FakeServerProcess> {
        self.processes().into_iter().filter(FakeServerProcess::is_alive).collect()
    }

    /// The ids of those that the system still knows, now: the end of one is heard of a moment later.
    pub fn existing_pids(&self) -> Vec<u32> {
        let pids = self.processes().into_iter().map(|process| process.pid());
        pids.filter(|pid| test_kill_process(to_pid(*pid)).is_ok()).collect()
    }

    /// The processes that rigs started.
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
        // A process whose socket has no other end any more ends itself.
        for process in &*self.processes.lock().unwrap() {
            // It may just be saying hello.
            for _ in 0..1_000 {
                if let Ok(mut line) = process.0.control.try_lock() {
                    *line = None;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// A rig in a process of its own.
#[derive(Clone)]
pub struct FakeServerProcess(Arc<Inner>);

struct Inner {
    info: ProcessInfo,
    alive: watch::Receiver<bool>,
    control: tokio::sync::Mutex<Option<(OwnedWriteHalf, mpsc::UnboundedReceiver<Counters>)>>,
}

impl FakeServerProcess {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.info.pid
    }

    /// Who it said it is.
    pub fn info(&self) -> &ProcessInfo {
        &self.0.info
    }

    /// False once it has ended, however it did.
    pub fn is_alive(&self) -> bool {
        *self.0.alive.borrow()
    }

    /// Waits for its end.
    pub async fn wait_for_exit(&self) {
        let _ = self.0.alive.clone().wait_for(|alive| !alive).await;
    }

    /// What it has seen so far.
    pub async fn counters(&self) -> Counters {
        self.send_command(ControlCommand::Counters).await.expect("the process is alive")
    }

    /// Gives it another script; its rules start anew.
    pub async fn set_script(&self, script: Script) {
        self.send_command(ControlCommand::Set(Box::new(script))).await.expect("the process is alive");
    }

    /// Tells it something; what it has seen then, or nothing if it has ended.
    pub async fn send_command(&self, command: ControlCommand) -> Option<Counters> {
        let mut line_to = self.0.control.lock().await;
        let (writer, answers) = line_to.as_mut()?;
        writer.write_all(&json_line(&command)).await.ok()?;
        answers.recv().await
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = kill_process(to_pid(self.pid()), Signal::KILL);
    }
}

fn to_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap()
}

/// Where all processes are counted that rigs ever were.
fn control_runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap());
    &RUNTIME
}

async fn accept_processes(listener: UnixListener, processes: Arc<Mutex<Vec<FakeServerProcess>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        // Ends with its process.
        tokio::spawn(register_process(stream, processes.clone()));
    }
}

async fn register_process(stream: UnixStream, processes: Arc<Mutex<Vec<FakeServerProcess>>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let Ok(Some(hello)) = lines.next_line().await else {
        return;
    };
    let (alive, watched) = watch::channel(true);
    let (sender, answers) = mpsc::unbounded_channel();
    let inner = Arc::new(Inner {
        info: serde_json::from_str(&hello).unwrap(),
        alive: watched,
        control: tokio::sync::Mutex::new(None),
    });
    // Before anybody can tell it something.
    let mut line = inner.control.lock().await;
    processes.lock().unwrap().push(FakeServerProcess(Arc::clone(&inner)));
    // It may have ended meanwhile, which shows below.
    let _ = writer.write_all(b"heard\n").await;
    *line = Some((writer, answers));
    drop(line);
    while let Ok(Some(text)) = lines.next_line().await {
        let _ = sender.send(serde_json::from_str(&text).unwrap());
    }
    let _ = alive.send(false);
}

/// Finds the rig as a program.
pub fn executable() -> PathBuf {
    example("rig", &["tests/rig"])
}
