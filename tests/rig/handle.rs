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

use super::control::{Command, Hello, line};
use super::counters::Counters;
use super::example::example;
use super::script::Script;
use super::server::Rig;

/// A rig over HTTP in the test's own process; ends when dropped.
pub struct Http {
    rig: Arc<Rig>,
    address: SocketAddr,
    server: Option<JoinHandle<std::convert::Infallible>>,
}

impl Http {
    /// Starts on a free port, from below the range that systems hand out by themselves and above that of
    /// `support::free_port`: nobody else takes it while the rig is stopped.
    pub async fn start(script: Script) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = std::process::id() % 2_000 * 37;
        let listener = loop {
            let port = 30_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 2_000;
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap())).await {
                break listener;
            }
        };
        let address = listener.local_addr().unwrap();
        let rig = Rig::new(script);
        let server = Some(tokio::spawn(super::http::serve(rig.clone(), listener)));
        Self { rig, address, server }
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
        self.rig.counters()
    }

    /// Changes the script in force; its rules start anew.
    pub fn edit(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.rig.script();
        change(&mut script);
        self.tell(Command::Set(Box::new(script)));
    }

    /// Tells it something.
    pub fn tell(&self, command: Command) {
        self.rig.obey(command);
    }

    /// Cuts every connection and stops listening.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
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
        self.server = Some(tokio::spawn(super::http::serve(self.rig.clone(), listener)));
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// The script of a rig that others start over stdio, and all processes that ever played it. They end when it is
/// dropped.
pub struct Stdio {
    directory: TempDir,
    script: Mutex<Script>,
    processes: Arc<Mutex<Vec<Process>>>,
    census: JoinHandle<()>,
}

impl Stdio {
    /// Puts the script where processes find it, and waits for them.
    pub fn new(script: Script) -> Self {
        let directory = TempDir::with_prefix("rig").unwrap();
        let control = directory.path().join("control");
        // Beside the test, which may block: a process waits until it was heard.
        let runtime = census_office();
        let _context = runtime.enter();
        let listener = UnixListener::bind(&control).unwrap();
        let processes = Arc::default();
        let this = Self {
            census: runtime.spawn(census(listener, Arc::clone(&processes))),
            script: Mutex::new(Script { control: Some(control), ..script }),
            directory,
            processes,
        };
        this.edit(|_| ());
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
    pub fn edit(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.script.lock().unwrap();
        change(&mut script);
        let path = self.directory.path().join("script.json");
        let half = path.with_extension("half");
        std::fs::write(&half, serde_json::to_vec(&*script).unwrap()).unwrap();
        std::fs::rename(half, path).unwrap();
    }

    /// All that were ever started and have said hello, in that order; without grandchildren.
    pub fn processes(&self) -> Vec<Process> {
        self.all(false)
    }

    /// Those that are alive.
    pub fn alive(&self) -> Vec<Process> {
        self.processes().into_iter().filter(Process::is_alive).collect()
    }

    /// The ids of those that the system still knows, now: the end of one is heard of a moment later.
    pub fn left(&self) -> Vec<u32> {
        let pids = self.processes().into_iter().map(|process| process.pid());
        pids.filter(|pid| test_kill_process(id(*pid)).is_ok()).collect()
    }

    /// The processes that rigs started.
    pub fn grandchildren(&self) -> Vec<Process> {
        self.all(true)
    }

    fn all(&self, grandchildren: bool) -> Vec<Process> {
        let processes = self.processes.lock().unwrap();
        processes.iter().filter(|process| process.hello().grandchild == grandchildren).cloned().collect()
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.census.abort();
        // A process whose socket has no other end any more ends itself.
        for process in &*self.processes.lock().unwrap() {
            // It may just be saying hello.
            for _ in 0..1_000 {
                if let Ok(mut line) = process.0.line.try_lock() {
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
pub struct Process(Arc<Inner>);

struct Inner {
    hello: Hello,
    alive: watch::Receiver<bool>,
    line: tokio::sync::Mutex<Option<(OwnedWriteHalf, mpsc::UnboundedReceiver<Counters>)>>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.hello.pid
    }

    /// Who it said it is.
    pub fn hello(&self) -> &Hello {
        &self.0.hello
    }

    /// False once it has ended, however it did.
    pub fn is_alive(&self) -> bool {
        *self.0.alive.borrow()
    }

    /// Waits for its end.
    pub async fn gone(&self) {
        let _ = self.0.alive.clone().wait_for(|alive| !alive).await;
    }

    /// What it has seen so far.
    pub async fn counters(&self) -> Counters {
        self.tell(Command::Counters).await.expect("the process is alive")
    }

    /// Gives it another script; its rules start anew.
    pub async fn play(&self, script: Script) {
        self.tell(Command::Set(Box::new(script))).await.expect("the process is alive");
    }

    /// Tells it something; what it has seen then, or nothing if it has ended.
    pub async fn tell(&self, command: Command) -> Option<Counters> {
        let mut line_to = self.0.line.lock().await;
        let (writer, answers) = line_to.as_mut()?;
        writer.write_all(&line(&command)).await.ok()?;
        answers.recv().await
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = kill_process(id(self.pid()), Signal::KILL);
    }
}

fn id(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap()
}

/// Where all processes are counted that rigs ever were.
fn census_office() -> &'static Runtime {
    static OFFICE: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap());
    &OFFICE
}

async fn census(listener: UnixListener, processes: Arc<Mutex<Vec<Process>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        // Ends with its process.
        tokio::spawn(attend(stream, processes.clone()));
    }
}

async fn attend(stream: UnixStream, processes: Arc<Mutex<Vec<Process>>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let Ok(Some(hello)) = lines.next_line().await else {
        return;
    };
    let (alive, watched) = watch::channel(true);
    let (sender, answers) = mpsc::unbounded_channel();
    let inner = Arc::new(Inner {
        hello: serde_json::from_str(&hello).unwrap(),
        alive: watched,
        line: tokio::sync::Mutex::new(None),
    });
    // Before anybody can tell it something.
    let mut line = inner.line.lock().await;
    processes.lock().unwrap().push(Process(Arc::clone(&inner)));
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
