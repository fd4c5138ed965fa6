//! A directory of declarations, and the operations that change it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use super::{Era, Result, cores, unix_nanos};

/// A temporary directory with the declarations, the state of evenkeel and its log.
pub struct BenchDirectory {
    root: TempDir,
    upstream: SocketAddr,
}

impl BenchDirectory {
    /// Creates an empty directory, for servers of this upstream.
    pub async fn new(upstream: SocketAddr) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("evenkeel-bench-").tempdir()?;
        let directory = Self { root, upstream };
        tokio::fs::create_dir(directory.declarations_dir()).await?;
        Ok(directory)
    }

    /// Returns the directory that evenkeel reads.
    pub fn declarations_dir(&self) -> PathBuf {
        self.root.path().join("declared")
    }

    /// Returns the state directory of evenkeel.
    pub fn state_dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Returns the log file of evenkeel.
    pub fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }

    /// Declares a server of the fake upstream, by a rename into place. Returns the time before the rename. The server's
    /// tool is [`tool_name`].
    pub async fn declare(&self, kind: &str, number: usize) -> Result<i128> {
        let name = format!("{kind}-{number}.yaml");
        let staged = self.root.path().join(&name);
        tokio::fs::write(&staged, self.declaration_yaml(kind, number)).await?;
        let target = self.declarations_dir().join(&name);
        let before = unix_nanos();
        std::fs::rename(&staged, &target)?;
        Ok(before)
    }

    /// Removes a declaration. Returns the time before the removal.
    pub fn remove(&self, kind: &str, number: usize) -> Result<i128> {
        let before = unix_nanos();
        std::fs::remove_file(self.declarations_dir().join(format!("{kind}-{number}.yaml")))?;
        Ok(before)
    }

    /// Declares `count` servers, numbered from 0.
    pub async fn declare_many(&self, era: Era, count: usize) -> Result<()> {
        for number in 0..count {
            self.declare(era.name(), number).await?;
        }
        Ok(())
    }

    /// Declares the fake server as a program that evenkeel starts.
    pub async fn declare_stdio(&self, era: Era) -> Result<()> {
        let program = std::env::current_exe()?;
        let args: Vec<String> = ["--role".to_owned()]
            .into_iter()
            .chain(role_args("stdio-server", era, cores::load_core()))
            .collect();
        let declaration = json!({
            "apiVersion": "evenkeel.dev/v1alpha1",
            "kind": "McpServer",
            "metadata": { "name": format!("{era}-0") },
            "spec": { "stdio": { "command": program, "args": args }, "health": { "interval": "0s" } },
        });
        // JSON is valid YAML.
        Ok(tokio::fs::write(self.declarations_dir().join(format!("{era}-0.yaml")), declaration.to_string())
            .await?)
    }

    fn declaration_yaml(&self, kind: &str, number: usize) -> String {
        let upstream = self.upstream;
        // Health checks are off: every request that reaches a server is caused by the change.
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {kind}-{number}\nspec:\n  \
             http:\n    url: http://{upstream}/{kind}/{number}/mcp\n  health:\n    interval: 0s\n"
        )
    }
}

/// Returns the exposed name of the tool of a declared server.
pub fn tool_name(era: Era, number: usize) -> String {
    format!("{era}-{number}_echo")
}

/// Returns the arguments of a role of the stdio part. `core` is the core of the fake server. The server pins itself,
/// since the process that starts it may be the measured one.
pub fn role_args(name: &str, era: Era, core: Option<usize>) -> Vec<String> {
    let role = [name, "--era", era.name()].map(str::to_owned);
    let core = core.map(|core| ["--core".to_owned(), core.to_string()]);
    role.into_iter().chain(core.into_iter().flatten()).collect()
}
