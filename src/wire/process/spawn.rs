use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use secrecy::ExposeSecret;
use tokio::process::{Child, Command};

use super::super::ConnectionError;
use super::super::child_environment::ChildEnvironment;
use super::super::local_limit::local_limit_error;
use super::process_mark::ProcessMark;
use crate::resource::{Reason, StdioEndpoint, command_line_advice};

/// Starts the child with piped stdio. It gets the inherited variables and the declared ones, and leads a new process
/// group, so that its descendants can be killed with it.
pub(in crate::wire) fn spawn(
    endpoint: &StdioEndpoint,
    inherited: &ChildEnvironment,
    mark: Option<&ProcessMark>,
) -> Result<Child, ConnectionError> {
    let mut command = Command::new(&endpoint.command);
    command
        .args(&endpoint.args)
        .env_clear()
        .envs(inherited.variables())
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
        // The system returns the same error for a missing working directory as for a missing program.
        let missing_cwd = endpoint.cwd.as_ref().filter(|cwd| !cwd.is_dir());
        match (error.kind(), missing_cwd) {
            (ErrorKind::NotFound, Some(cwd)) => ConnectionError::new(
                Reason::CommandNotFound,
                format!(
                    "the working directory {} of {name:?} does not exist; create it or correct spec.stdio.cwd",
                    cwd.display()
                ),
            ),
            (ErrorKind::NotFound, None) => {
                ConnectionError::new(Reason::CommandNotFound, describe_not_found(endpoint))
            }
            (ErrorKind::PermissionDenied, _) if Path::new(name).is_dir() => ConnectionError::new(
                Reason::CommandNotFound,
                format!("{name:?} is a directory, not a program; correct spec.stdio.command"),
            ),
            (ErrorKind::PermissionDenied, _) => {
                let message = format!("{name:?} is not executable; make it so (chmod +x)");
                ConnectionError::new(Reason::CommandNotFound, message)
            }
            _ => local_limit_error(&format!("the process {name:?}"), &error).unwrap_or_else(|| {
                ConnectionError::new(Reason::ConnectFailed, format!("cannot start {name:?}: {error}"))
            }),
        }
    })
}

/// Describes why the system did not find a program: either the file or its interpreter is missing.
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
            format!("the interpreter {interpreter:?} in the first line of {name:?} does not exist")
        }
        (Some(None), _) => format!("{name:?} exists, but the dynamic loader that it requires does not"),
        (None, has_slash) => {
            let missing = if has_slash { "does not exist" } else { "was not found on PATH" };
            let advice = command_line_advice(name).map_or_else(String::new, |advice| format!("; {advice}"));
            format!("{name:?} {missing}{advice}")
        }
    }
}

/// Returns the interpreter in the first line of a script.
fn shebang_interpreter(script: &Path) -> Option<String> {
    let mut start = Vec::new();
    std::fs::File::open(script).ok()?.take(256).read_to_end(&mut start).ok()?;
    let start = String::from_utf8_lossy(&start);
    let line = start.strip_prefix("#!")?.split('\n').next()?.trim_start_matches([' ', '\t']);
    line.split([' ', '\t']).next().map(str::to_owned)
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
            // Written by another process: a child that another test forks at the same time could inherit a descriptor
            // that is open for writing, and then the system refuses to run the file (ETXTBSY).
            let write = ["-c", "echo '#! /no/such -x' > \"$0\"", &path(name)];
            assert!(std::process::Command::new("sh").args(write).status().unwrap().success());
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for (command, expected) in [
            (path("script"), "the interpreter \"/no/such\" in the first line of"),
            ("script".into(), "the interpreter \"/no/such\" in the first line of"),
            (path("plain"), "is not executable"),
            (path(""), "is a directory"),
            (path("absent"), "does not exist"),
            ("absent".into(), "was not found on PATH"),
        ] {
            let env = vec![("PATH".to_owned(), path("").into())];
            let endpoint = StdioEndpoint { command: command.clone(), args: Vec::new(), cwd: None, env };
            let problem = spawn(&endpoint, &ChildEnvironment::default(), None).unwrap_err().problem;
            assert_eq!(problem.reason, Reason::CommandNotFound, "{command}: {problem}");
            assert!(problem.message.contains(expected), "{command}: {problem}");
        }
    }
}
