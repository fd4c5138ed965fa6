//! The real kubectl, against whatever a kubeconfig names.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{Evenkeel, cluster_programs, eventually, find_on_path};

/// The program: that of `KUBECTL`, the one on PATH (unless `KUBEBUILDER_ASSETS` names another), or the one that is
/// built with the API server for tests.
pub fn kubectl_program() -> PathBuf {
    let given = std::env::var_os("KUBECTL").map(PathBuf::from);
    let found = || find_on_path("kubectl").filter(|_| std::env::var_os("KUBEBUILDER_ASSETS").is_none());
    given.or_else(found).unwrap_or_else(|| cluster_programs().kubectl)
}

/// kubectl with the kubeconfig of a running evenkeel.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache_dir: TempDir,
}

/// What a command printed, and whether it succeeded.
#[derive(Debug)]
pub struct KubectlOutput {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl {
    /// kubectl for an evenkeel that runs on `directory`.
    pub fn for_instance(evenkeel: &Evenkeel, directory: &Path) -> Self {
        let program = kubectl_program();
        let output = evenkeel.command(&["kubeconfig", directory.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let kubeconfig = String::from_utf8(output.stdout).unwrap().trim_end().into();
        Self { program, kubeconfig, cache_dir: TempDir::with_prefix("kubectl").unwrap() }
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command, ready to start.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(self.cache_dir.path());
        // An edit that is refused leaves its copy in the temporary folder.
        command
            .args(args)
            .env("HOME", self.cache_dir.path())
            .env("TMPDIR", self.cache_dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> KubectlOutput {
        let output = tokio::process::Command::from(self.command(args)).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        KubectlOutput {
            success: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// What a command prints, which must succeed.
    pub async fn stdout(&self, args: &[&str]) -> String {
        let said = self.run(args).await;
        assert!(said.success, "kubectl {args:?}: {said:?}");
        said.stdout
    }

    /// Starts a command that goes on until it is dropped.
    pub fn spawn(&self, args: &[&str]) -> RunningKubectl {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stdout, kept) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        RunningKubectl { child, lines }
    }
}

/// A command that goes on. Killed when dropped.
pub struct RunningKubectl {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl RunningKubectl {
    /// Waits for a line that has all these words, and gives all lines up to now.
    pub async fn wait_for_line(&self, words: &[&str]) -> Vec<String> {
        eventually(&format!("kubectl prints {words:?}"), async || {
            let lines = self.lines.lock().unwrap().clone();
            lines.iter().any(|line| words.iter().all(|word| line.contains(word))).then_some(lines)
        })
        .await
    }

    /// Waits until it ends by itself; true if it succeeded.
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
