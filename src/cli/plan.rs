mod manifests;
mod planned_changes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use self::manifests::ManifestArgs;
use self::planned_changes::{Plan, PlanInput};
use super::client::StatusClient;
use super::error::CommandError;
use super::instance::Instance;
use super::namespace::parse_namespace;
use super::runtime::block_on;
use super::{dirs, output};
use crate::admin::{DECLARED_PATH, DeclaredState};
use crate::resource::{DigestKey, WorkingDirectory};
use crate::source::StdioPolicy;
use crate::source::directory::{CheckContext, TargetMode, check_directory};
use crate::state_dir::StateDir;

/// The arguments of `evenkeel plan`.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "printed verbatim by --help")]
pub(super) struct Args {
    /// Directory of declarations to compare [default: $XDG_CONFIG_HOME/evenkeel]; with --kubernetes: manifests in
    /// directories and their subdirectories, files, and - for stdin
    #[arg(env = "EVENKEEL_DIR", value_name = "DIR")]
    paths: Vec<PathBuf>,
    /// Directory of the running instance, if DIR is another copy of it
    #[arg(long, value_name = "DIR", conflicts_with = "kubernetes")]
    against: Option<PathBuf>,
    /// Show what kubectl apply of the manifests would change: compare them with the objects of their namespaces in the
    /// cluster of KUBECONFIG; needs permission to list them, and no running instance
    #[arg(long)]
    kubernetes: bool,
    /// Namespace of manifests that set none [default: that of the kubeconfig context]
    #[arg(short, long, value_name = "NAMESPACE", value_parser = parse_namespace, requires = "kubernetes")]
    namespace: Option<String>,
    /// Include the removal of objects in those namespaces that are not in the manifests; kubectl apply does not
    /// remove them
    #[arg(long, requires = "kubernetes")]
    prune: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints what the declarations would change if they were applied. Changes nothing.
pub(super) fn plan(args: &Args) -> Result<(), CommandError> {
    let (plan, target) = block_on(async {
        if args.kubernetes { plan_for_cluster(args).await } else { plan_for_directory(args).await }
    })?;
    let text = match args.output {
        Format::Text => plan.to_text(&target),
        Format::Json => serde_json::to_string_pretty(&plan).map_err(CommandError::failed)? + "\n",
    };
    output::print(&text).map_err(CommandError::failed)
}

async fn plan_for_cluster(args: &Args) -> Result<(Plan, String), CommandError> {
    let default;
    let paths = match args.paths.as_slice() {
        [] => {
            default = [dirs::declarations_dir(None)?];
            &default
        }
        some => some,
    };
    manifests::plan(&ManifestArgs { paths, namespace: args.namespace.as_deref(), prune: args.prune }).await
}

/// Compares a directory with the declarations in force of a running instance. Returns the plan and a description of
/// what it was compared with.
async fn plan_for_directory(args: &Args) -> Result<(Plan, String), CommandError> {
    let dir = match args.paths.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => {
            let message = "expected one directory; several paths are allowed only with --kubernetes";
            return Err(CommandError::Usage(message.to_owned()));
        }
    };
    let dir = dirs::declarations_dir(dir)?;
    let instance_dir = match &args.against {
        Some(other) => dirs::normalize(other)?,
        None => dir.clone(),
    };
    let (in_force, key) = match fetch_declared_state(&instance_dir).await? {
        Some(in_force) => {
            let state = StateDir::open(&dirs::state_home()?, &instance_dir).map_err(CommandError::failed)?;
            (Some(in_force), state.key("digests").map_err(CommandError::failed)?.to_vec())
        }
        None => (None, Vec::new()),
    };
    let key = DigestKey::new(&key);
    let allowed = in_force.as_ref().and_then(|in_force| in_force.allowed.as_ref());
    let policy = allowed.map_or(Ok(StdioPolicy::allow_all()), |allowed| {
        StdioPolicy::allow_only(&allowed.commands, &allowed.variables)
    });
    let policy = policy.map_err(CommandError::failed)?;
    let root = in_force.as_ref().and_then(|in_force| in_force.root.clone());
    // The directory in which processes will run, not that of this copy of the declarations.
    let working_directory = WorkingDirectory {
        root: root.unwrap_or_else(|| instance_dir.clone()),
        default_cwd: policy.working_directory().map(Into::into),
    };
    let environment = dirs::environment();
    let (check_key, target_mode) = (key.clone(), TargetMode::Directory);
    let context = CheckContext {
        secrets_dir: None,
        environment,
        digest_key: check_key,
        policy,
        target: target_mode,
        exclude: Vec::new(),
    };
    let checked = check_directory(&dir, &context)
        .map_err(|error| CommandError::Failed(format!("{}: {error}", dir.display())))?;
    let target =
        if in_force.is_some() { "compared with the instance for" } else { "no instance is running for" };
    let mut plan = Plan::new(in_force.is_some().then(|| instance_dir.display().to_string()));
    let declarations = PlanInput {
        desired: &checked.desired,
        findings: &checked.findings,
        working_directory: Some(&working_directory),
        complete: true,
    };
    plan.add_all(&declarations, in_force.unwrap_or_default(), &key);
    Ok((plan, format!("{target} {}", instance_dir.display())))
}

async fn fetch_declared_state(instance_dir: &Path) -> Result<Option<DeclaredState>, CommandError> {
    match StatusClient::connect_if_running(&Instance::for_directory(instance_dir.to_path_buf())?).await? {
        Some(mut client) => Ok(Some(client.get(DECLARED_PATH).await?)),
        None => Ok(None),
    }
}
