//! What manifests would change in a cluster, if they were applied to it.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf, absolute};

use super::super::error::CommandError;
use super::planned_changes::{Plan, PlanInput};
use crate::admin::DeclaredState;
use crate::net::api_server::{InferredApiServer, infer};
use crate::resource::{Desired, DigestKey, Reason};
use crate::source::directory::{
    CheckContext, CheckResult, Severity, TargetMode, check_directory, check_files, check_text,
};
use crate::source::{Environment, StdioPolicy, kubernetes};

/// Stands for standard input.
const STDIN_PATH: &str = "-";

/// Which manifests, and what of a cluster.
pub(super) struct ManifestArgs<'a> {
    /// Directories, files, and `-` for standard input.
    pub paths: &'a [PathBuf],
    /// Of objects that name none; that of the kubeconfig's context if this is none.
    pub namespace: Option<&'a str>,
    /// Whether objects go that are not in the manifests.
    pub prune: bool,
}

/// Compares manifests with the objects of their namespaces; gives the plan, and what it was compared with.
pub(super) async fn plan(manifests: &ManifestArgs<'_>) -> Result<(Plan, String), CommandError> {
    let InferredApiServer { client, address: server, namespace } =
        infer().await.map_err(CommandError::failed)?;
    let namespace = manifests.namespace.unwrap_or(&namespace);
    // Digests that do not leave this process are compared with nothing else.
    let key = DigestKey::new(&[]);
    let desired = read_manifests(manifests.paths, namespace, &key)?;
    let keys = desired.servers.keys().chain(desired.skills.keys());
    let namespaces: BTreeSet<_> = keys.map(|key| key.namespace.to_string()).collect();
    let mut there = Desired::default();
    for namespace in &namespaces {
        let Desired { servers, skills, .. } = kubernetes::list(&client, &server, namespace)
            .await
            .map_err(|problem| CommandError::Failed(problem.message))?;
        there.servers.extend(servers);
        there.skills.extend(skills);
    }
    let in_force = DeclaredState::from_desired(&there, &key, &StdioPolicy::allow_all(), None);
    let mut plan = Plan::new(Some(server.to_string()));
    let declarations =
        PlanInput { desired: &desired, findings: &[], working_directory: None, complete: manifests.prune };
    plan.add_all(&declarations, in_force, &key);
    let namespaces: Vec<_> = namespaces.into_iter().collect();
    let plural = if namespaces.len() == 1 { "" } else { "s" };
    Ok((plan, format!("against namespace{plural} {} of {server}", namespaces.join(", "))))
}

/// Everything that is declared; of two manifests of one object that of the later path.
fn read_manifests(paths: &[PathBuf], namespace: &str, key: &DigestKey) -> Result<Desired, CommandError> {
    let against = CheckContext {
        secrets_dir: None,
        environment: Environment::default(),
        digest_key: key.clone(),
        policy: StdioPolicy::allow_all(),
        target: TargetMode::Cluster { namespace: namespace.to_owned() },
    };
    let mut desired = Desired::default();
    for path in paths {
        let checked = check_path(path, &against)
            .map_err(|error| CommandError::Failed(format!("{}: {error}", path.display())))?;
        ensure_readable(&checked)?;
        desired.servers.extend(checked.desired.servers);
        desired.skills.extend(checked.desired.skills);
    }
    if desired.servers.is_empty() && desired.skills.is_empty() {
        let named: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(CommandError::Failed(format!(
            "there are no manifests of McpServer or Skill in {}; what Kustomize or Helm makes is read from standard \
             input: kustomize build DIR | evenkeel plan --kubernetes -",
            named.join(", ")
        )));
    }
    Ok(desired)
}

fn check_path(path: &Path, against: &CheckContext) -> std::io::Result<CheckResult> {
    if path == Path::new(STDIN_PATH) {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text)?;
        return Ok(check_text(Path::new("stdin"), &text, against));
    }
    if path.is_dir() {
        return check_directory(&absolute(path)?, against);
    }
    check_files(&absolute(".")?, &[path.to_path_buf()], against)
}

/// What cannot be read could be any object, so that nothing can be said of the rest.
fn ensure_readable(checked: &CheckResult) -> Result<(), CommandError> {
    let lost = [Reason::ParseError, Reason::SourceUnavailable];
    let lost = checked
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error && lost.contains(&finding.fault.problem.reason));
    let Some(finding) = lost else { return Ok(()) };
    let place = finding.fault.location().map(|place| format!("{place}: ")).unwrap_or_default();
    Err(CommandError::Failed(format!("{place}{}", finding.fault.problem.message)))
}
