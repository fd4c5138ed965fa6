use std::io::ErrorKind;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::ExposeSecret;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::super::LinkError;
use super::guard::Guard;
use crate::resource::{Reason, StdioEndpoint, is_inherited};

/// How long a child has to end after its stdin was closed, and again after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running child, the leader of a process group of its own.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    exited: watch::Receiver<Option<ExitStatus>>,
}

/// Starts the child with piped stdio. It leads a new process group, so that what it starts ends with it.
pub(super) fn spawn(endpoint: &StdioEndpoint, guard: Option<&Guard>) -> Result<Child, LinkError> {
    let mut command = Command::new(&endpoint.command);
    command
        .args(&endpoint.args)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited)))
        .envs(endpoint.env.iter().map(|(name, value)| (name, value.expose_secret())))
        .envs(guard.map(Guard::mark))
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
            (ErrorKind::NotFound, Some(cwd)) => LinkError::new(
                Reason::CommandNotFound,
                format!("the working directory {} of {name:?} does not exist", cwd.display()),
            ),
            (ErrorKind::NotFound, None) if name.contains('/') => {
                LinkError::new(Reason::CommandNotFound, format!("there is no program at {name:?}"))
            }
            (ErrorKind::NotFound, None) => {
                LinkError::new(Reason::CommandNotFound, format!("{name:?} was not found on PATH"))
            }
            (ErrorKind::PermissionDenied, _) => {
                LinkError::new(Reason::CommandNotFound, format!("{name:?} is not executable"))
            }
            _ => LinkError::new(Reason::ConnectFailed, format!("{name:?} could not be started: {error}")),
        }
    })
}

impl Process {
    /// Watches over a child: reaps it, and then ends what is left of its group. The future ends with the
    /// child; it must be driven.
    pub(super) fn watch(mut child: Child, guard: Option<Guard>) -> (Self, impl Future<Output = ()>) {
        let pid = child.id().unwrap_or_default();
        if let Some(guard) = &guard {
            guard.add(pid);
        }
        let (sender, exited) = watch::channel(None);
        let reap = async move {
            let status = child.wait().await.unwrap_or_default();
            signal(pid, Signal::KILL);
            if let Some(guard) = guard {
                guard.remove(pid);
            }
            sender.send_replace(Some(status));
        };
        (Self { pid, exited }, reap)
    }

    /// How the child ended, once it has.
    pub(super) async fn exited(&self) -> ExitStatus {
        let mut exited = self.exited.clone();
        let status = exited.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.unwrap_or_default()
    }

    /// After stdin was closed: waits, then SIGTERM, then SIGKILL to the group.
    pub(super) async fn end(&self) -> ExitStatus {
        for escalation in [Signal::TERM, Signal::KILL] {
            if let Ok(status) = tokio::time::timeout(PATIENCE, self.exited()).await {
                return status;
            }
            signal(self.pid, escalation);
        }
        self.exited().await
    }
}

pub(super) fn group(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(group) = group(pid) {
        // ESRCH: the group is gone, which is what we want.
        let _ = kill_process_group(group, signal);
    }
}
