//! Real servers from their registries, installed once into `target/peers`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A server to start over stdio.
#[derive(Clone, Debug)]
pub struct Peer {
    pub program: PathBuf,
    pub args: Vec<String>,
}

impl Peer {
    /// The transport of an `McpServer` that is this server, as a line of YAML.
    pub fn spec(&self) -> String {
        format!("stdio: {{ command: \"{}\", args: {:?} }}", self.program.display(), self.args)
    }
}

/// The official everything server, on Node: speaks 2025-11-25. `None`, said loudly, if there is no Node.
pub fn everything() -> Option<Peer> {
    const PACKAGE: &str = "@modelcontextprotocol/server-everything@2026.8.31";
    let node = present("node", PACKAGE)?;
    present("npm", PACKAGE)?;
    let home = installed("server-everything-2026.8.31", |home| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
            .arg(home)
            .arg(PACKAGE);
        vec![npm]
    });
    let main = home.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    Some(Peer { program: node, args: vec![main.display().to_string(), "stdio".into()] })
}

/// The official time server, on Python: speaks 2026-07-28. `None`, said loudly, if there is no Python.
pub fn time() -> Option<Peer> {
    const PACKAGE: &str = "mcp-server-time==2026.10.19";
    let python = present("python3", PACKAGE)?;
    let home = installed("mcp-server-time-2026.10.19", |home| {
        let mut venv = Command::new(python);
        venv.args(["-m", "venv"]).arg(home);
        let mut pip = Command::new(home.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]);
        vec![venv, pip]
    });
    Some(Peer {
        program: home.join("bin/mcp-server-time"),
        args: vec!["--local-timezone".into(), "UTC".into()],
    })
}

/// Runs the commands that fill a directory, unless that was done before. Parallel tests wait for each other.
fn installed(name: &str, commands: impl FnOnce(&Path) -> Vec<Command>) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).expect("a test lives in target/PROFILE/deps");
    let home = target.join("peers").join(name);
    let done = home.join("installed");
    std::fs::create_dir_all(&home).unwrap();
    let lock = File::create(target.join("peers").join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !done.exists() {
        for mut command in commands(&home) {
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
        }
        File::create(done).unwrap();
    }
    home
}

/// The program on PATH. Without it the test is skipped and says so, or fails if `EVENKEEL_REQUIRE_PEERS` is set.
fn present(program: &str, package: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
    });
    if found.is_none() {
        let message = format!("SKIPPED: {package} needs {program}, which is not on PATH");
        assert!(std::env::var_os("EVENKEEL_REQUIRE_PEERS").is_none(), "{message}");
        // Not the macro: the test harness would keep that to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "\n*** {message} ***\n").unwrap();
    }
    found
}
