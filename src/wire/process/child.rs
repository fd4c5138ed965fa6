use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use secrecy::ExposeSecret;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::super::ConnectionError;
use super::group::signal_group;
use super::guard::ProcessGuard;
use super::process_mark::ProcessMark;
use crate::resource::{Reason, StdioEndpoint, is_inherited_variable};

/// How long a child has to end after its stdin was closed, and again after SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// A running child, the leader of a process group of its own.
#[derive(Debug)]
pub(in crate::wire) struct ChildProcess {
    pid: u32,
    exit_status: watch::Receiver<Option<ExitStatus>>,
}

/// Starts the child with piped stdio. It leads a new process group, so that what it starts ends with it.
pub(in crate::wire) fn spawn(
    endpoint: &StdioEndpoint,
    mark: Option<&ProcessMark>,
) -> Result<Child, ConnectionError> {
    let mut command = Command::new(&endpoint.command);
    command
        .args(&endpoint.args)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited_variable)))
        .envs(endpoint.env.iter().map(|(name, value)| (name, value.expose_secret())))
        .envs(mark.map(ProcessMark::env_var))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(cwd) = &endpoint.cwd {
        command.current_dir(cwd);
    }
    command.spawn().map_err(|error| {
        let name = &endpoint.command;
        // A missing working directory looks like a missing command.
        let missing_cwd = endpoint.cwd.as_ref().filter(|cwd| !cwd.is_dir());
        match (error.kind(), missing_cwd) {
            (ErrorKind::NotFound, Some(cwd)) => ConnectionError::new(
                Reason::CommandNotFound,
                format!("the working directory {} of {name:?} does not exist", cwd.display()),
            ),
            (ErrorKind::NotFound, None) => {
                ConnectionError::new(Reason::CommandNotFound, describe_not_found(endpoint))
            }
            (ErrorKind::PermissionDenied, _) if Path::new(name).is_dir() => ConnectionError::new(
                Reason::CommandNotFound,
                format!("{name:?} is a directory, and no program"),
            ),
            (ErrorKind::PermissionDenied, _) => {
                ConnectionError::new(Reason::CommandNotFound, format!("{name:?} is not executable"))
            }
            _ => {
                ConnectionError::new(Reason::ConnectFailed, format!("{name:?} could not be started: {error}"))
            }
        }
    })
}

/// Why the system found no program: either it is not there, or what it says it must be run with is not.
fn describe_not_found(endpoint: &StdioEndpoint) -> String {
    let name = &endpoint.command;
    let file = if name.contains('/') {
        Some(PathBuf::from(name)).filter(|path| path.is_file())
    } else {
        let declared = endpoint.env.iter().rfind(|(name, _)| name == "PATH");
        let path = declared.map(|(_, path)| path.expose_secret().into()).or_else(|| std::env::var_os("PATH"));
        std::env::split_paths(&path.unwrap_or_default())
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
    };
    match (file.map(|file| shebang_interpreter(&file)), name.contains('/')) {
        (Some(Some(interpreter)), _) => {
            format!(
                "{name:?} is to be run by {interpreter:?}, as its first line says, and there is no such program"
            )
        }
        (Some(None), _) => format!("{name:?} is there, but the loader that it was built for is not"),
        (None, true) => format!("there is no program at {name:?}"),
        (None, false) => format!("{name:?} was not found on PATH"),
    }
}

/// The program that the first line of a script names.
fn shebang_interpreter(script: &Path) -> Option<String> {
    let mut start = Vec::new();
    std::fs::File::open(script).ok()?.take(256).read_to_end(&mut start).ok()?;
    let start = String::from_utf8_lossy(&start);
    let line = start.strip_prefix("#!")?.split('\n').next()?.trim_start_matches([' ', '\t']);
    line.split([' ', '\t']).next().map(str::to_owned)
}

impl ChildProcess {
    /// Watches over a child: reaps it, and then ends what is left of its group, and what left it. The future ends
    /// when nothing is left; it must be driven.
    pub(in crate::wire) fn supervise(
        mut child: Child,
        guard: Option<(ProcessGuard, ProcessMark)>,
    ) -> (Self, impl Future<Output = ()>) {
        let pid = child.id().unwrap_or_default();
        if let Some((guard, _)) = &guard {
            guard.add_group(pid);
        }
        let (sender, exited) = watch::channel(None);
        let reap = async move {
            let status = child.wait().await.unwrap_or_default();
            signal_group(pid, Signal::KILL);
            sender.send_replace(Some(status));
            if let Some((guard, mark)) = guard {
                guard.remove_group(pid);
                mark.kill_marked().await;
            }
        };
        (Self { pid, exit_status: exited }, reap)
    }

    /// How the child ended, once it has.
    pub(in crate::wire) async fn exit_status(&self) -> ExitStatus {
        let mut exited = self.exit_status.clone();
        let status = exited.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.unwrap_or_default()
    }

    /// After stdin was closed: waits, then SIGTERM, then SIGKILL to the group.
    pub(in crate::wire) async fn terminate(&self) -> ExitStatus {
        for escalation in [Signal::TERM, Signal::KILL] {
            if let Ok(status) = tokio::time::timeout(EXIT_TIMEOUT, self.exit_status()).await {
                return status;
            }
            signal_group(self.pid, escalation);
        }
        self.exit_status().await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn spawn_error_names_the_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for (name, mode) in [("script", 0o755), ("plain", 0o644)] {
            // Not written from here: a copy of a file that is open for writing, which a process that another test is
            // starting holds for a moment, would keep it from being run.
            let write = ["-c", "echo '#! /no/such -x' > \"$0\"", &path(name)];
            assert!(std::process::Command::new("sh").args(write).status().unwrap().success());
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for (command, says) in [
            (path("script"), "is to be run by \"/no/such\", as its first line says"),
            ("script".into(), "is to be run by \"/no/such\", as its first line says"),
            (path("plain"), "is not executable"),
            (path(""), "is a directory"),
            (path("absent"), "there is no program at"),
            ("absent".into(), "was not found on PATH"),
        ] {
            let env = vec![("PATH".to_owned(), path("").into())];
            let endpoint = StdioEndpoint { command: command.clone(), args: Vec::new(), cwd: None, env };
            let problem = spawn(&endpoint, None).unwrap_err().problem;
            assert_eq!(problem.reason, Reason::CommandNotFound, "{command}: {problem}");
            assert!(problem.message.contains(says), "{command}: {problem}");
        }
    }
}
