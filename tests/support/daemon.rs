//! `evenkeel run`, started for one test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{eventually, http};

/// A running instance. It is killed when dropped; a failing test prints its stderr.
pub struct Evenkeel {
    child: Child,
    source: Source,
    flags: Vec<String>,
    listen_port: u16,
    admin_port: u16,
    home: TempDir,
    log: Arc<Mutex<String>>,
}

/// The source of an instance.
#[derive(Clone)]
enum Source {
    Directory(PathBuf),
    /// The API server of a kubeconfig file.
    Cluster(PathBuf),
}

impl Evenkeel {
    /// Runs on a directory and waits until it is live.
    pub async fn run(directory: &Path) -> Self {
        Self::run_with(directory, &[]).await
    }

    /// Runs on a directory with more flags and waits until it is live.
    pub async fn run_with(directory: &Path, flags: &[&str]) -> Self {
        Self::run_with_env(directory, flags, &[]).await
    }

    /// Runs on a directory with more flags and environment variables, and waits until it is live. A restart does not
    /// set the variables again.
    pub async fn run_with_env(directory: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start(Source::Directory(directory.into()), flags, variables).await
    }

    /// Runs on the API server of a kubeconfig file and waits until it is live.
    pub async fn run_in_cluster(kubeconfig: &Path, flags: &[&str]) -> Self {
        Self::start(Source::Cluster(kubeconfig.into()), flags, &[]).await
    }

    async fn start(source: Source, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let home = TempDir::with_prefix("home").unwrap();
        let (listen, admin) = (free_port(), free_port());
        let log = Arc::default();
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let mut command = base_command(home.path());
        command.envs(variables.iter().copied());
        let child = spawn_run(command, &source, &flags, listen, admin, &log);
        let mut this = Self { child, source, flags, listen_port: listen, admin_port: admin, home, log };
        this.wait_until_live().await;
        this
    }

    /// Returns the URL of the endpoint for agents.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.listen_port)
    }

    /// Returns the URL of a path of the status API.
    pub fn admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin_port)
    }

    /// Returns another evenkeel command with the same state and configuration directories.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = base_command(self.home.path());
        command.args(args);
        command
    }

    /// Returns its state directory.
    pub fn state_dir(&self) -> PathBuf {
        let mut found = std::fs::read_dir(self.home.path().join("state/evenkeel")).unwrap();
        found.next().unwrap().unwrap().path()
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its stderr output so far.
    pub fn stderr(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line of its stderr output contains all of these texts, and returns the line. A line may arrive after
    /// the effect that it tells of.
    pub async fn wait_for_log(&self, texts: &[&str]) -> String {
        eventually(&format!("a log line with {texts:?}"), async || {
            let log = self.stderr();
            log.lines().find(|line| texts.iter().all(|text| line.contains(text))).map(ToOwned::to_owned)
        })
        .await
    }

    /// Returns a server from the status API, or `None` if there is none with this name.
    pub async fn get_server(&self, name: &str) -> Option<Value> {
        let path = format!("/apis/evenkeel.dev/v1alpha1/namespaces/default/mcpservers/{name}");
        let text = http::get(&self.admin(&path)).await.ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Returns a condition of a server, or `None` if there is none of this type.
    pub async fn condition(&self, name: &str, condition_type: &str) -> Option<Condition> {
        let server = self.get_server(name).await?;
        let conditions = server["status"]["conditions"].as_array()?;
        let found = conditions.iter().find(|condition| condition["type"] == condition_type)?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Some(Condition { status: text("status"), reason: text("reason"), message: text("message") })
    }

    /// Waits until a condition has this status and reason, and returns it.
    pub async fn wait_for(&self, name: &str, condition_type: &str, status: &str, reason: &str) -> Condition {
        let description = format!("{name}: {condition_type}={status}/{reason}");
        eventually(&description, async || {
            self.condition(name, condition_type)
                .await
                .filter(|found| found.status == status && found.reason == reason)
        })
        .await
    }

    /// Waits for an event with this reason about a server, and returns its note. For short-lived states: a condition
    /// may have changed again by the time it is read, while an event is kept.
    pub async fn wait_for_event(&self, name: &str, reason: &str) -> String {
        let events = self.admin("/apis/events.k8s.io/v1/events");
        eventually(&format!("an event about {name}: {reason}"), async || {
            let list: Value = serde_json::from_str(&http::get(&events).await.ok()?).unwrap();
            let mut events = list["items"].as_array()?.iter();
            let event =
                events.find(|event| event["regarding"]["name"] == name && event["reason"] == reason)?;
            Some(event["note"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Waits until a server is attached.
    pub async fn wait_until_attached(&self, name: &str) {
        self.wait_for(name, "Ready", "True", "Attached").await;
    }

    /// Kills the process with SIGKILL and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        eventually("evenkeel ends after SIGTERM", async || self.child.try_wait().unwrap()).await
    }

    /// Starts it again after it has ended, with the same source, ports and state directory.
    pub async fn restart(&mut self) {
        let command = base_command(self.home.path());
        self.child =
            spawn_run(command, &self.source, &self.flags, self.listen_port, self.admin_port, &self.log);
        self.wait_until_live().await;
    }

    async fn wait_until_live(&mut self) {
        let livez = self.admin("/livez");
        eventually("evenkeel is alive", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("evenkeel ended with {status}");
            }
            http::get(&livez).await.ok()
        })
        .await;
    }
}

impl Drop for Evenkeel {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- stderr of evenkeel:\n{}---", self.stderr());
        }
    }
}

/// A status condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub status: String,
    pub reason: String,
    pub message: String,
}

fn spawn_run(
    mut command: Command,
    source: &Source,
    flags: &[String],
    listen: u16,
    admin: u16,
    log: &Arc<Mutex<String>>,
) -> Child {
    command.arg("run");
    match source {
        Source::Directory(directory) => command.arg(directory),
        Source::Cluster(kubeconfig) => command.env("KUBECONFIG", kubeconfig).arg("--kubernetes"),
    };
    let mut child = command
        .args(["--listen", &format!("127.0.0.1:{listen}")])
        .args(["--admin", &format!("127.0.0.1:{admin}")])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let log = log.clone();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    child
}

fn base_command(home: &Path) -> Command {
    // Another program, such as a release build, can be set for measurements.
    let program = std::env::var_os("EVENKEEL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_evenkeel").into());
    let mut command = Command::new(program);
    command
        .env("XDG_STATE_HOME", home.join("state"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::null());
    command
}

/// Returns a port that is not in use, from below the ephemeral port range: it stays free while the test restarts the
/// program that listens there.
pub fn free_port() -> u16 {
    static NEXT_OFFSET: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id() % 20_000 * 37;
    loop {
        let port =
            u16::try_from(10_000 + (start + NEXT_OFFSET.fetch_add(1, Ordering::Relaxed)) % 20_000).unwrap();
        // Bound but never listening: a child process that another test is starting holds a copy of every socket for a
        // moment, and a copy of a listening socket would keep the port in use.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        if socket.bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok() {
            return port;
        }
    }
}
