//! Changes that people make to a directory of declarations, and their results. With real files and real events.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests may block and fail"
)]

mod edits;
mod git;
mod hostile;
mod lists;
mod measure;
#[path = "../support/git.rs"]
mod real_git;
mod roots;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evenkeel::net::SupervisedTasks;
use evenkeel::resource::{
    DeclaredObject, Desired, DigestKey, McpServerSpec, ObjectKey, Reason, Transport, WatchMethod,
};
use evenkeel::source::directory::Args;
use evenkeel::source::{
    Environment, Source as _, SourceContext, SourceControl, SourceHandle, SourceMetrics, StdioPolicy,
};
use evenkeel::state_dir::StateDir;
use tempfile::TempDir;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const WAIT_TIMEOUT: Duration = Duration::from_mins(1);

/// A temporary folder with a directory source in it, whose root is `fleet` by default.
struct TestDirectory {
    folder: TempDir,
    args: Args,
    source: Option<RunningSource>,
}

struct RunningSource {
    control: SourceControl,
    desired: Receiver<Arc<Desired>>,
    tasks: SupervisedTasks,
    cancel: CancellationToken,
}

impl TestDirectory {
    /// Writes the files before the source starts.
    fn new(files: &[(&str, String)]) -> Self {
        Self::with_root("fleet", files)
    }

    /// Creates a directory whose root is `root`; the root is created by `files` or later.
    fn with_root(root: &str, files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = Args {
            root: folder.path().join(root),
            secrets_dir: folder.path().join("secrets"),
            environment: Environment::from_iter([("PROXY", "http://proxy")]),
            policy: StdioPolicy::allow_all(),
            prune_empty: false,
            poll_interval: None,
        };
        let directory = Self { folder, args, source: None };
        for (name, text) in files {
            directory.write(name, text);
        }
        directory
    }

    fn start(&mut self) {
        let state = StateDir::open(&self.folder.path().join("state"), &self.args.root).unwrap();
        let (tasks, cancel) = (SupervisedTasks::default(), CancellationToken::new());
        let SourceHandle { desired, control, .. } = Box::new(self.args.clone().open()).start(SourceContext {
            state_dir: Arc::new(state),
            digest_key: DigestKey::new(b"key"),
            metrics: SourceMetrics::default(),
            tasks: tasks.clone(),
            stop: cancel.clone(),
        });
        self.source = Some(RunningSource { control: control.unwrap(), desired, tasks, cancel });
    }

    async fn stop(&mut self) {
        let source = self.source.take().unwrap();
        source.cancel.cancel();
        timeout(WAIT_TIMEOUT, source.tasks.wait()).await.unwrap().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("fleet").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn confirm_removal(&self) {
        self.source.as_ref().unwrap().control.confirm_removal();
    }

    fn desired(&self) -> Arc<Desired> {
        Arc::clone(&self.source.as_ref().unwrap().desired.borrow())
    }

    fn server(&self, name: &str) -> Arc<DeclaredObject<McpServerSpec>> {
        let key = ObjectKey::new("default", name);
        Arc::clone(
            self.desired()
                .servers
                .get(&key)
                .unwrap_or_else(|| panic!("no {name} in {:?}", describe_servers(&self.desired()))),
        )
    }

    /// Waits until the declared servers are as expected.
    async fn wait_for_servers(&mut self, expected: &[&str]) -> Arc<Desired> {
        self.wait_for(|desired| desired.source.synced && describe_servers(desired) == expected).await
    }

    async fn wait_for(&mut self, condition: impl Fn(&Desired) -> bool) -> Arc<Desired> {
        let desired = &mut self.source.as_mut().unwrap().desired;
        let result = timeout(WAIT_TIMEOUT, desired.wait_for(|desired| condition(desired))).await;
        let result = result.map(|result| Arc::clone(&result.unwrap()));
        if let Ok(result) = result {
            return result;
        }
        let now = self.desired();
        panic!(
            "the expected state was not reached; it is {:?} with {:#?}",
            describe_servers(&now),
            now.source
        )
    }

    /// Waits until all earlier changes were scanned: a later change is applied together with them.
    async fn wait_for_earlier_changes(&mut self) {
        let name = "marker.yaml";
        for command in ["one", "two"] {
            self.write(name, &server("marker", command));
            self.wait_for(|desired| {
                let marker = desired.servers.get(&ObjectKey::new("default", "marker"));
                marker.and_then(|marker| command_of(marker)).is_some_and(|found| found == command)
            })
            .await;
        }
        self.remove(name);
        self.wait_for(|desired| !desired.servers.contains_key(&ObjectKey::new("default", "marker"))).await;
    }
}

fn server(name: &str, command: &str) -> String {
    format!(
        "---\napiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {name}\nspec:\n  stdio:\n    command: {command}\n"
    )
}

fn command_of(server: &DeclaredObject<McpServerSpec>) -> Option<&str> {
    Some(server.spec.as_ref()?.stdio.as_ref()?.command.as_str())
}

/// Returns each server as `name/generation command`, with the reason it is rejected.
fn describe_servers(desired: &Desired) -> Vec<String> {
    let describe = |server: &Arc<DeclaredObject<McpServerSpec>>| {
        let refused = server.rejected.as_ref().map(|problem| format!(" {}", problem.reason));
        let command = command_of(server).unwrap_or("-");
        format!(
            "{}/{} {command}{}",
            server.meta.key.name,
            server.meta.generation,
            refused.unwrap_or_default()
        )
    };
    desired.servers.values().map(describe).collect()
}

fn two_servers() -> [(&'static str, String); 2] {
    [("a.yaml", server("a", "x")), ("team/b.yaml", server("b", "x"))]
}
