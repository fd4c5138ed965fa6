//! Real servers from their registries, installed once into `target/peers`.

use std::path::PathBuf;
use std::process::Command;

use super::install::{find_on_path, install_once, require_on_path};

/// A real server to start over stdio.
#[derive(Clone, Debug)]
pub struct RealServer {
    pub program: PathBuf,
    pub args: Vec<String>,
}

impl RealServer {
    /// Returns the transport of an `McpServer` for this server, as a line of YAML.
    pub fn spec(&self) -> String {
        format!("stdio: {{ command: \"{}\", args: {:?} }}", self.program.display(), self.args)
    }
}

/// Returns the official everything server, on Node. It supports 2025-11-25.
pub fn everything_server() -> RealServer {
    const PACKAGE: &str = "@modelcontextprotocol/server-everything@2026.8.31";
    let node = require_on_path("node", PACKAGE);
    require_on_path("npm", PACKAGE);
    let home = install_once("peers/server-everything-2026.8.31", &format!("installing {PACKAGE}"), |home| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
            .arg(home)
            .arg(PACKAGE);
        vec![npm]
    });
    let main = home.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    RealServer { program: node, args: vec![main.display().to_string(), "stdio".into()] }
}

/// Returns the official time server, on Python. It supports 2026-07-28.
pub fn time_server() -> RealServer {
    const PACKAGE: &str = "mcp-server-time==2026.10.19";
    let python = require_on_path("python3", PACKAGE);
    let home = install_once("peers/mcp-server-time-2026.10.19", &format!("installing {PACKAGE}"), |home| {
        let mut venv = Command::new(python);
        venv.args(["-m", "venv"]).arg(home);
        let mut pip = Command::new(home.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]);
        vec![venv, pip]
    });
    RealServer {
        program: home.join("bin/mcp-server-time"),
        args: vec!["--local-timezone".into(), "UTC".into()],
    }
}

/// Returns promtool, the metrics linter of Prometheus: that of `PROMTOOL`, the one on PATH, or the one from Debian's
/// package, which is unpacked and not installed.
pub fn promtool() -> PathBuf {
    let from_env = std::env::var_os("PROMTOOL").map(PathBuf::from);
    if let Some(found) = from_env.or_else(|| find_on_path("promtool")) {
        return found;
    }
    require_on_path("apt-get", "promtool");
    let home =
        install_once("peers/promtool", "downloading promtool from Debian's package prometheus", |home| {
            let mut download = Command::new("sh");
            download.current_dir(home).args(["-c", FETCH_PROMTOOL]);
            vec![download]
        });
    home.join("usr/bin/promtool")
}

/// A new machine has no package lists before `apt-get update`.
const FETCH_PROMTOOL: &str = "apt-get download prometheus || { apt-get update && apt-get download prometheus; } && \
    dpkg -x prometheus_*.deb . && rm prometheus_*.deb";
