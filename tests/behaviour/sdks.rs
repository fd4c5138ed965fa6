//! Installs the official SDKs, whose clients are the agents of some tests.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{install_once, require_on_path};

/// Installs the TypeScript SDKs 1.x and 2.x. Returns the URL of their packages.
pub fn typescript_sdks() -> String {
    const PACKAGES: [&str; 2] = ["@modelcontextprotocol/sdk@1.32.2", "@modelcontextprotocol/client@2.4.0"];
    let npm = require_on_path("npm", "the TypeScript SDKs");
    let home = install_once("peers/typescript-sdks-1.32.2-2.4.0", "installing the TypeScript SDKs", |home| {
        let mut install = Command::new(npm);
        install.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        install.arg(home).args(PACKAGES);
        vec![install]
    });
    format!("file://{}", home.join("node_modules").display())
}

/// Installs a version of the Python SDK. Returns the Python that has it.
pub fn python_sdk(version: &str) -> PathBuf {
    let python = require_on_path("python3", "the Python SDKs");
    let home =
        install_once(&format!("peers/python-sdk-{version}"), &format!("installing mcp {version}"), |home| {
            let mut venv = Command::new(&python);
            venv.args(["-m", "venv"]).arg(home);
            let mut pip = Command::new(home.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.arg(format!("mcp=={version}"));
            vec![venv, pip]
        });
    home.join("bin/python")
}
