//! Reads the list of known differences, and computes the differences between two runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};

use serde::Deserialize;

use crate::fixture::Era;
use crate::suite::{Results, Status};

/// The content of `differences.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DifferenceList {
    /// The scenario counts of each protocol revision.
    pub revisions: BTreeMap<String, ScenarioCounts>,
    pub differences: Vec<DifferenceEntry>,
}

/// The scenario counts of a revision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioCounts {
    /// The number of scenarios that the suite runs.
    pub run: usize,
    /// The scenarios that the revision does not require.
    pub optional: BTreeSet<String>,
}

/// Differences with a common reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DifferenceEntry {
    /// The explanation for users.
    pub reason: String,
    pub found: Vec<AffectedChecks>,
}

/// The checks that differ for some agents and servers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AffectedChecks {
    /// The protocol revisions of the agents.
    pub agents: Vec<String>,
    pub servers: Vec<ServerKind>,
    /// The outcome of each check, by scenario.
    pub checks: BTreeMap<String, BTreeMap<String, Outcome>>,
}

/// The protocol revision and the transport between evenkeel and a server, and whether the server is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    LegacyHttp,
    LegacyStdio,
    ModernHttp,
    ModernStdio,
    IsolatedLegacyHttp,
    IsolatedLegacyStdio,
    IsolatedModernHttp,
    IsolatedModernStdio,
}

/// The outcomes of a check, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Skipped,
    /// The scenario ended before the check.
    NotJudged,
    Warning,
    Failed,
}

/// One difference: scenario, check and outcome.
pub type Difference = (String, String, Outcome);

impl ServerKind {
    /// The servers whose connection all agents share.
    pub const SHARED: [Self; 4] = [Self::LegacyHttp, Self::LegacyStdio, Self::ModernHttp, Self::ModernStdio];

    /// The servers with a connection for each caller (`isolation: Session`), which get its roots.
    pub const ISOLATED: [Self; 4] = [
        Self::IsolatedLegacyHttp,
        Self::IsolatedLegacyStdio,
        Self::IsolatedModernHttp,
        Self::IsolatedModernStdio,
    ];

    pub fn era(self) -> Era {
        match self {
            Self::LegacyHttp | Self::LegacyStdio | Self::IsolatedLegacyHttp | Self::IsolatedLegacyStdio => {
                Era::Legacy
            }
            Self::ModernHttp | Self::ModernStdio | Self::IsolatedModernHttp | Self::IsolatedModernStdio => {
                Era::Modern
            }
        }
    }

    pub fn uses_http(self) -> bool {
        match self {
            Self::LegacyHttp | Self::ModernHttp | Self::IsolatedLegacyHttp | Self::IsolatedModernHttp => true,
            Self::LegacyStdio | Self::ModernStdio | Self::IsolatedLegacyStdio | Self::IsolatedModernStdio => {
                false
            }
        }
    }

    pub fn is_isolated(self) -> bool {
        Self::ISOLATED.contains(&self)
    }
}

impl Display for ServerKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let isolated = if self.is_isolated() { "isolated " } else { "" };
        let revision = if self.era() == Era::Legacy { "2025-11-25" } else { "2026-07-28" };
        let transport = if self.uses_http() { "HTTP" } else { "stdio" };
        write!(f, "{isolated}{revision} over {transport}")
    }
}

impl DifferenceList {
    /// Parses `differences.yaml`. Panics if it names a revision for which no scenarios are run.
    pub fn load() -> Self {
        let list: Self =
            serde_yaml::from_str(include_str!("differences.yaml")).expect("differences.yaml is valid");
        let groups = list.differences.iter().flat_map(|entry| &entry.found);
        for agent in groups.flat_map(|affected| &affected.agents) {
            assert!(list.revisions.contains_key(agent), "{agent} is not a revision of differences.yaml");
        }
        list
    }

    /// Returns the known differences for agents of a revision and a server.
    pub fn listed_for(&self, agent: &str, server: ServerKind) -> BTreeSet<Difference> {
        let groups = self.differences.iter().flat_map(|entry| &entry.found);
        let mut listed = BTreeSet::new();
        for affected in groups.filter(|affected| affected.applies_to(agent, server)) {
            for (scenario, checks) in &affected.checks {
                for (check, outcome) in checks {
                    let is_new = listed.insert((scenario.clone(), check.clone(), *outcome));
                    assert!(is_new, "{scenario}: {check} is listed twice for {agent} and {server:?}");
                }
            }
        }
        listed
    }
}

impl AffectedChecks {
    fn applies_to(&self, agent: &str, server: ServerKind) -> bool {
        self.servers.contains(&server) && self.agents.iter().any(|listed| listed == agent)
    }
}

/// Returns the checks whose outcome through evenkeel differs from the direct run.
pub fn differences_between(direct: &Results, through: &Results) -> BTreeSet<Difference> {
    let scenarios: BTreeSet<&String> = direct.keys().chain(through.keys()).collect();
    scenarios.into_iter().flat_map(|scenario| scenario_differences(scenario, direct, through)).collect()
}

/// Returns the checks of one scenario whose outcome through evenkeel differs from the direct run.
pub fn scenario_differences(scenario: &str, direct: &Results, through: &Results) -> BTreeSet<Difference> {
    let none = BTreeMap::new();
    let [direct, through] = [direct, through].map(|results| results.get(scenario).unwrap_or(&none));
    let checks: BTreeSet<&String> = direct.keys().chain(through.keys()).collect();
    checks
        .into_iter()
        .filter(|check| direct.get(*check) != through.get(*check))
        .map(|check| (scenario.to_owned(), check.clone(), worst_outcome(through.get(check))))
        .collect()
}

/// Returns the checks of one scenario that did not pass.
pub fn not_passed(scenario: &str, results: &Results) -> BTreeSet<Difference> {
    let checks = results.get(scenario).into_iter().flatten();
    checks
        .map(|(check, statuses)| (scenario.to_owned(), check.clone(), worst_outcome(Some(statuses))))
        .filter(|(.., outcome)| *outcome != Outcome::Passed)
        .collect()
}

fn worst_outcome(statuses: Option<&Vec<Status>>) -> Outcome {
    match statuses.and_then(|statuses| statuses.iter().max()) {
        Some(Status::Success | Status::Info) => Outcome::Passed,
        Some(Status::Skipped) => Outcome::Skipped,
        None => Outcome::NotJudged,
        Some(Status::Warning) => Outcome::Warning,
        Some(Status::Failure) => Outcome::Failed,
    }
}

#[test]
fn difference_is_a_changed_missing_or_new_check() {
    use Status::{Failure, Success, Warning};
    let results = |checks: &[(&str, &[Status])]| {
        let checks = checks.iter().map(|(check, statuses)| ((*check).to_owned(), statuses.to_vec()));
        Results::from([("scenario".to_owned(), checks.collect())])
    };
    let direct =
        results(&[("same", &[Success, Success]), ("one", &[Success, Success]), ("gone", &[Success])]);
    let through =
        results(&[("same", &[Success, Success]), ("one", &[Success, Failure]), ("new", &[Success])]);
    let found = |direct: &Results, through: &Results| -> Vec<(String, Outcome)> {
        differences_between(direct, through).into_iter().map(|(_, check, outcome)| (check, outcome)).collect()
    };
    let expected = [("gone", Outcome::NotJudged), ("new", Outcome::Passed), ("one", Outcome::Failed)];
    assert_eq!(found(&direct, &through), expected.map(|(check, outcome)| (check.to_owned(), outcome)));
    assert_eq!(found(&direct, &Results::new()).len(), 3, "a scenario that did not run");
    assert_eq!(found(&direct, &direct), []);

    let warned = results(&[("same", &[Success]), ("one", &[Success, Warning])]);
    let passed: Vec<_> = not_passed("scenario", &warned).into_iter().collect();
    assert_eq!(passed, [("scenario".to_owned(), "one".to_owned(), Outcome::Warning)]);
}
