//! A running evenkeel, and commands that ask it.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{Declared, Evenkeel, within};

/// evenkeel on a directory.
pub struct Stage {
    pub declared: Declared,
    pub evenkeel: Evenkeel,
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Stage {
    /// Declares servers, each by its name and the lines of its spec, and runs.
    pub async fn start(servers: &[(&str, &str)]) -> Self {
        Self::start_with(servers, &[]).await
    }

    /// The same, run with more flags.
    pub async fn start_with(servers: &[(&str, &str)], flags: &[&str]) -> Self {
        let declared = Declared::new();
        for (name, spec) in servers {
            declared.server(name, spec);
        }
        let evenkeel = Evenkeel::run_with(declared.path(), flags).await;
        Self { declared, evenkeel }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.declared.path()
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Done {
        let output = within(&args.join(" "), self.command(args).output()).await.unwrap();
        Done::of(&output)
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub async fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args).await;
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.out
    }

    /// Runs a command that must fail, and gives what it said.
    pub async fn fails(&self, args: &[&str]) -> String {
        let done = self.run(args).await;
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        done.err
    }

    /// Starts a command that goes on.
    pub fn follow(&self, args: &[&str]) -> Following {
        let mut child = self.command(args).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Following { _child: child, lines }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.evenkeel.command(args);
        command.env("EVENKEEL_DIR", self.path());
        command.into()
    }
}

impl Done {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

/// A command that goes on; killed when dropped.
pub struct Following {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Following {
    /// The next line that holds a text.
    pub async fn line_with(&mut self, text: &str) -> String {
        let next = async {
            loop {
                let line =
                    self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("ended before {text:?}"));
                if line.contains(text) {
                    return line;
                }
            }
        };
        within(text, next).await
    }
}

/// The lines of JSON in a text.
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
