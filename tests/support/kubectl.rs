//! The real kubectl, with the kubeconfig of an instance.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{Evenkeel, cluster_programs, eventually, find_on_path};

/// Returns the path of kubectl: that of `KUBECTL`, the one on PATH (unless `KUBEBUILDER_ASSETS` is set), or the one
/// that is built with the API server for tests.
pub fn kubectl_program() -> PathBuf {
    let from_env = std::env::var_os("KUBECTL").map(PathBuf::from);
    let from_path = || find_on_path("kubectl").filter(|_| std::env::var_os("KUBEBUILDER_ASSETS").is_none());
    from_env.or_else(from_path).unwrap_or_else(|| cluster_programs().kubectl)
}

/// kubectl with the kubeconfig of a running instance.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache_dir: TempDir,
}

/// The output and outcome of a command.
#[derive(Debug)]
pub struct KubectlOutput {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl {
    /// Returns kubectl for an instance that runs on `directory`.
    pub fn for_instance(evenkeel: &Evenkeel, directory: &Path) -> Self {
        let program = kubectl_program();
        let output = evenkeel.command(&["kubeconfig", directory.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let kubeconfig = String::from_utf8(output.stdout).unwrap().trim_end().into();
        Self { program, kubeconfig, cache_dir: TempDir::with_prefix("kubectl").unwrap() }
    }

    /// Returns the path of the kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Returns a command, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(self.cache_dir.path());
        // A rejected edit leaves its copy in the temporary directory.
        command
            .args(args)
            .env("HOME", self.cache_dir.path())
            .env("TMPDIR", self.cache_dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command until it ends.
    pub async fn run(&self, args: &[&str]) -> KubectlOutput {
        let output = tokio::process::Command::from(self.command(args)).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        KubectlOutput {
            success: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs a command and returns its stdout. Fails the test if the command fails.
    pub async fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.success, "kubectl {args:?}: {output:?}");
        output.stdout
    }

    /// Starts a command that runs until it is dropped.
    pub fn spawn(&self, args: &[&str]) -> RunningKubectl {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stdout, lines_writer) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                lines_writer.lock().unwrap().push(line);
            }
        });
        RunningKubectl { child, lines }
    }
}

/// A running command. It is killed when dropped.
pub struct RunningKubectl {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl RunningKubectl {
    /// Waits for a line that contains all these texts, and returns all lines so far.
    pub async fn wait_for_line(&self, texts: &[&str]) -> Vec<String> {
        eventually(&format!("kubectl prints {texts:?}"), async || {
            let lines = self.lines.lock().unwrap().clone();
            lines.iter().any(|line| texts.iter().all(|text| line.contains(text))).then_some(lines)
        })
        .await
    }

    /// Waits until the command ends by itself. Returns true if it succeeded.
    pub async fn wait_for_exit(&mut self) -> bool {
        eventually("kubectl ends", async || self.child.try_wait().unwrap()).await.success()
    }
}

impl Drop for RunningKubectl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
