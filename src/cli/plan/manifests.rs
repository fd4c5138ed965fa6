//! Plans what manifests would change in a cluster if they were applied.

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

/// The path that stands for stdin.
const STDIN_PATH: &str = "-";

/// The manifests, and the scope of the comparison.
pub(super) struct ManifestArgs<'a> {
    /// Directories, files, and `-` for stdin.
    pub paths: &'a [PathBuf],
    /// The namespace of objects that set none; `None` for that of the kubeconfig context.
    pub namespace: Option<&'a str>,
    /// True if objects that are not in the manifests are removed.
    pub prune: bool,
}

/// Compares manifests with the objects of their namespaces. Returns the plan and a description of what it was
/// compared with.
pub(super) async fn plan(manifests: &ManifestArgs<'_>) -> Result<(Plan, String), CommandError> {
    let InferredApiServer { client, address: server, namespace } =
        infer().await.map_err(CommandError::failed)?;
    let namespace = manifests.namespace.unwrap_or(&namespace);
    // The digests are compared only within this process, so an empty key is enough.
    let key = DigestKey::new(&[]);
    let desired = read_manifests(manifests.paths, namespace, &key)?;
    let keys = desired.servers.keys().chain(desired.skills.keys());
    let namespaces: BTreeSet<_> = keys.map(|key| key.namespace.to_string()).collect();
    let mut existing = Desired::default();
    for namespace in &namespaces {
        let Desired { servers, skills, .. } = kubernetes::list(&client, &server, namespace)
            .await
            .map_err(|problem| CommandError::Failed(problem.message))?;
        existing.servers.extend(servers);
        existing.skills.extend(skills);
    }
    let in_force = DeclaredState::from_desired(&existing, &key, &StdioPolicy::allow_all(), None);
    let mut plan = Plan::new(Some(server.to_string()));
    let declarations =
        PlanInput { desired: &desired, findings: &[], working_directory: None, complete: manifests.prune };
    plan.add_all(&declarations, in_force, &key);
    let namespaces: Vec<_> = namespaces.into_iter().collect();
    let plural = if namespaces.len() == 1 { "" } else { "s" };
    Ok((plan, format!("compared with namespace{plural} {} of {server}", namespaces.join(", "))))
}

/// Returns all declared objects. Of two manifests of one object, that of the later path counts.
fn read_manifests(paths: &[PathBuf], namespace: &str, key: &DigestKey) -> Result<Desired, CommandError> {
    let context = CheckContext {
        secrets_dir: None,
        environment: Environment::default(),
        digest_key: key.clone(),
        policy: StdioPolicy::allow_all(),
        target: TargetMode::Cluster { namespace: namespace.to_owned() },
        exclude: Vec::new(),
    };
    let mut desired = Desired::default();
    for path in paths {
        let checked = check_path(path, &context)
            .map_err(|error| CommandError::Failed(format!("{}: {error}", path.display())))?;
        ensure_readable(&checked)?;
        desired.servers.extend(checked.desired.servers);
        desired.skills.extend(checked.desired.skills);
    }
    if desired.servers.is_empty() && desired.skills.is_empty() {
        let named: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(CommandError::Failed(format!(
            "no McpServer or Skill manifests found in {}; to plan the output of Kustomize or Helm, pipe it to stdin: \
             kustomize build DIR | evenkeel plan --kubernetes -",
            named.join(", ")
        )));
    }
    Ok(desired)
}

fn check_path(path: &Path, context: &CheckContext) -> std::io::Result<CheckResult> {
    if path == Path::new(STDIN_PATH) {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text)?;
        return Ok(check_text(Path::new("stdin"), &text, context));
    }
    if path.is_dir() {
        return check_directory(&absolute(path)?, context);
    }
    check_files(&absolute(".")?, &[path.to_path_buf()], context)
}

/// Fails if a manifest could not be read: it may declare any object, so no plan would be reliable.
fn ensure_readable(checked: &CheckResult) -> Result<(), CommandError> {
    let unreadable = [Reason::ParseError, Reason::SourceUnavailable];
    let unreadable = checked.findings.iter().find(|finding| {
        finding.severity == Severity::Error && unreadable.contains(&finding.fault.problem.reason)
    });
    let Some(finding) = unreadable else { return Ok(()) };
    let location = finding.fault.location().map(|location| format!("{location}: ")).unwrap_or_default();
    Err(CommandError::Failed(format!("{location}{}", finding.fault.problem.message)))
}
