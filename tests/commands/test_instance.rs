//! A running instance, and commands that connect to it.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::support::{Evenkeel, TestDirectory, within};

/// A running instance on a directory of its own.
pub struct TestInstance {
    pub declared: TestDirectory,
    pub evenkeel: Evenkeel,
}

/// The output and exit code of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl TestInstance {
    /// Declares servers, each by name and the lines of its spec, and starts an instance.
    pub async fn start(servers: &[(&str, &str)]) -> Self {
        Self::start_with_flags(servers, &[]).await
    }

    /// Like [`Self::start`], with additional flags.
    pub async fn start_with_flags(servers: &[(&str, &str)], flags: &[&str]) -> Self {
        let declared = TestDirectory::new();
        for (name, spec) in servers {
            declared.write_server(name, spec);
        }
        let evenkeel = Evenkeel::run_with(declared.path(), flags).await;
        Self { declared, evenkeel }
    }

    /// Returns the directory of declarations.
    pub fn path(&self) -> &Path {
        self.declared.path()
    }

    /// Runs a command until it exits.
    pub async fn run(&self, args: &[&str]) -> CommandOutput {
        let output = within(&args.join(" "), self.command(args).output()).await.unwrap();
        CommandOutput::from_output(&output)
    }

    /// Runs a command that must succeed, and returns its stdout.
    pub async fn run_ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(output.code, 0, "{args:?}: {output:?}");
        output.stdout
    }

    /// Runs a command that must exit with code 1, and returns its stderr.
    pub async fn run_failing(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(output.code, 1, "{args:?}: {output:?}");
        output.stderr
    }

    /// Starts a command that keeps running.
    pub fn follow(&self, args: &[&str]) -> RunningCommand {
        let mut command = self.command(args);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let notes = BufReader::new(child.stderr.take().unwrap()).lines();
        RunningCommand { child, stdout_lines: lines, stderr_lines: notes }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.evenkeel.command(args);
        command.env("EVENKEEL_DIR", self.path());
        command.into()
    }
}

impl CommandOutput {
    pub fn from_output(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// A command that keeps running; killed when dropped.
pub struct RunningCommand {
    child: Child,
    stdout_lines: Lines<BufReader<ChildStdout>>,
    stderr_lines: Lines<BufReader<ChildStderr>>,
}

impl RunningCommand {
    /// Reads stdout to its end, and returns the exit code.
    pub async fn wait(&mut self) -> Option<i32> {
        let end = async {
            while self.stdout_lines.next_line().await.unwrap().is_some() {}
            self.child.wait().await.unwrap().code()
        };
        within("the command ends", end).await
    }

    /// Returns the next line of stdout that contains a text.
    pub async fn line_with(&mut self, text: &str) -> String {
        self.lines_until(text).await.pop().unwrap()
    }

    /// Returns the lines of stdout up to the next one that contains a text.
    pub async fn lines_until(&mut self, text: &str) -> Vec<String> {
        read_lines_until(&mut self.stdout_lines, text).await
    }

    /// Waits for a line of stderr that contains a text.
    pub async fn wait_for_stderr(&mut self, text: &str) {
        read_lines_until(&mut self.stderr_lines, text).await;
    }
}

/// Reads lines up to the next one that contains a text.
async fn read_lines_until(from: &mut Lines<BufReader<impl AsyncRead + Unpin>>, text: &str) -> Vec<String> {
    let next = async {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|last: &String| !last.contains(text)) {
            let line = from.next_line().await.unwrap();
            lines.push(line.unwrap_or_else(|| panic!("ended before {text:?}")));
        }
        lines
    };
    within(text, next).await
}

/// Parses a text of JSON lines.
pub fn parse_json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
