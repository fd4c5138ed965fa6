//! A directory of declarations, and the ways in which a file gets into it.

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
    /// An empty one, for servers of this upstream.
    pub async fn new(upstream: SocketAddr) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("evenkeel-bench-").tempdir()?;
        let directory = Self { root, upstream };
        tokio::fs::create_dir(directory.declarations_dir()).await?;
        Ok(directory)
    }

    /// What evenkeel reads.
    pub fn declarations_dir(&self) -> PathBuf {
        self.root.path().join("declared")
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// What it prints.
    pub fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }

    /// Declares a server of the fake upstream, by a rename into place; gives the time before it. Its tool
    /// is [`tool`].
    pub async fn declare(&self, kind: &str, number: usize) -> Result<i128> {
        let name = format!("{kind}-{number}.yaml");
        let staged = self.root.path().join(&name);
        tokio::fs::write(&staged, self.declaration_yaml(kind, number)).await?;
        let place = self.declarations_dir().join(&name);
        let before = unix_nanos();
        std::fs::rename(&staged, &place)?;
        Ok(before)
    }

    /// Removes a declaration; gives the time before it.
    pub fn remove(&self, kind: &str, number: usize) -> Result<i128> {
        let before = unix_nanos();
        std::fs::remove_file(self.declarations_dir().join(format!("{kind}-{number}.yaml")))?;
        Ok(before)
    }

    /// Declares the servers from 0 to `count`.
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
        // JSON is YAML.
        Ok(tokio::fs::write(self.declarations_dir().join(format!("{era}-0.yaml")), declaration.to_string())
            .await?)
    }

    fn declaration_yaml(&self, kind: &str, number: usize) -> String {
        let upstream = self.upstream;
        // Health checks are off, so that a request that reaches a server is one that the change caused.
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {kind}-{number}\nspec:\n  \
             http:\n    url: http://{upstream}/{kind}/{number}/mcp\n  health:\n    interval: 0s\n"
        )
    }
}

/// The name under which agents see the tool of a declared server.
pub fn tool_name(era: Era, number: usize) -> String {
    format!("{era}-{number}_echo")
}

/// Returns the arguments of a helper of the stdio part. The core is that of the fake server, which moves there by
/// itself: what starts it may be what is measured.
pub fn role_args(name: &str, era: Era, core: Option<usize>) -> Vec<String> {
    let role = [name, "--era", era.name()].map(str::to_owned);
    let core = core.map(|core| ["--core".to_owned(), core.to_string()]);
    role.into_iter().chain(core.into_iter().flatten()).collect()
}
