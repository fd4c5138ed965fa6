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
#[expect(clippy::doc_markdown, reason = "printed as it is by --help")]
pub(super) struct Args {
    /// The declarations to plan for [default: $XDG_CONFIG_HOME/evenkeel]; with --kubernetes manifests: directories
    /// with all their folders, files, and - for standard input
    #[arg(env = "EVENKEEL_DIR", value_name = "DIR")]
    paths: Vec<PathBuf>,
    /// The directory that evenkeel runs on, if DIR is another copy of it
    #[arg(long, value_name = "DIR", conflicts_with = "kubernetes")]
    against: Option<PathBuf>,
    /// Plan what kubectl apply of manifests would change: compare them with the objects of their namespaces in the
    /// cluster that KUBECONFIG names; takes the permission to list them, and no evenkeel
    #[arg(long)]
    kubernetes: bool,
    /// The namespace of manifests that name none [default: that of the kubeconfig's context]
    #[arg(short, long, value_name = "NAMESPACE", value_parser = parse_namespace, requires = "kubernetes")]
    namespace: Option<String>,
    /// Plan for objects to go that are in those namespaces and not in the manifests; kubectl apply leaves them untouched
    #[arg(long, requires = "kubernetes")]
    prune: bool,
    /// How the plan is printed
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints what the declarations would change where they are applied, and changes nothing.
pub(super) fn plan(args: &Args) -> Result<(), CommandError> {
    let (plan, place) = block_on(async {
        if args.kubernetes { plan_for_cluster(args).await } else { plan_for_directory(args).await }
    })?;
    let text = match args.output {
        Format::Text => plan.to_text(&place),
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

/// Compares a directory with what is in force in the evenkeel that runs; gives the plan, and that evenkeel in words.
async fn plan_for_directory(args: &Args) -> Result<(Plan, String), CommandError> {
    let dir = match args.paths.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => {
            let message = "name one directory; only with --kubernetes manifests may be in several places";
            return Err(CommandError::Usage(message.to_owned()));
        }
    };
    let dir = dirs::declarations_dir(dir)?;
    let running = match &args.against {
        Some(other) => dirs::normalize(other)?,
        None => dir.clone(),
    };
    let (in_force, key) = match fetch_declared_state(&running).await? {
        Some(in_force) => {
            let state = StateDir::open(&dirs::state_home()?, &running).map_err(CommandError::failed)?;
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
    // Where the processes will run, not where this copy of the declarations is.
    let base = WorkingDirectory {
        root: root.unwrap_or_else(|| running.clone()),
        default_cwd: policy.working_directory().map(Into::into),
    };
    let environment = dirs::environment();
    let (key_of_check, destination) = (key.clone(), TargetMode::Directory);
    let against = CheckContext {
        secrets_dir: None,
        environment,
        digest_key: key_of_check,
        policy,
        target: destination,
    };
    let checked = check_directory(&dir, &against)
        .map_err(|error| CommandError::Failed(format!("{}: {error}", dir.display())))?;
    let place = if in_force.is_some() { "against the evenkeel of" } else { "no evenkeel runs on" };
    let mut plan = Plan::new(in_force.is_some().then(|| running.display().to_string()));
    let declarations = PlanInput {
        desired: &checked.desired,
        findings: &checked.findings,
        working_directory: Some(&base),
        complete: true,
    };
    plan.add_all(&declarations, in_force.unwrap_or_default(), &key);
    Ok((plan, format!("{place} {}", running.display())))
}

async fn fetch_declared_state(running: &Path) -> Result<Option<DeclaredState>, CommandError> {
    match StatusClient::connect_if_running(&Instance::for_directory(running.to_path_buf())?).await? {
        Some(mut daemon) => Ok(Some(daemon.get(DECLARED_PATH).await?)),
        None => Ok(None),
    }
}
