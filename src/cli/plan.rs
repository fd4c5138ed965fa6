mod outline;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use self::outline::Plan;
use super::client::Client;
use super::which::Whose;
use super::{Failure, dirs, output};
use crate::admin::{DECLARED, InForce};
use crate::resource::{Base, DigestKey};
use crate::source::Policy;
use crate::source::directory::{Against, check_directory};
use crate::state::StateDir;

/// The arguments of `evenkeel plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The declarations to plan for [default: $`XDG_CONFIG_HOME`/evenkeel]
    #[arg(env = "EVENKEEL_DIR")]
    dir: Option<PathBuf>,
    /// The directory that evenkeel runs on, if DIR is another copy of it
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// How the plan is printed
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints what the declarations would change in the fleet that runs, and changes nothing.
pub(super) fn plan(args: &Args) -> Result<(), Failure> {
    let dir = dirs::declarations(args.dir.clone())?;
    let running = match &args.against {
        Some(other) => dirs::spelled(other)?,
        None => dir.clone(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let (in_force, key) = match runtime.block_on(ask(&running))? {
        Some(in_force) => {
            let state = StateDir::open(&dirs::state_home()?, &running).map_err(Failure::failed)?;
            (Some(in_force), state.key("digests").map_err(Failure::failed)?.to_vec())
        }
        None => (None, Vec::new()),
    };
    let key = DigestKey::new(&key);
    let allowed = in_force.as_ref().and_then(|in_force| in_force.allowed.as_ref());
    let policy = allowed
        .map_or(Ok(Policy::everything()), |allowed| Policy::only(&allowed.commands, &allowed.variables));
    let policy = policy.map_err(Failure::failed)?;
    let root = in_force.as_ref().and_then(|in_force| in_force.root.clone());
    // Where the processes will run, not where this copy of the declarations is.
    let base = Base { root: root.unwrap_or_else(|| running.clone()), home: policy.home().map(Into::into) };
    let against = Against { secrets: None, environment: dirs::environment(), key: key.clone(), policy };
    let checked = check_directory(&dir, &against)
        .map_err(|error| Failure::Failed(format!("{}: {error}", dir.display())))?;
    let mut plan = Plan::new(in_force.is_some().then(|| running.display().to_string()));
    plan.fill(&checked, in_force.unwrap_or_default(), &key, Some(&base));
    let text = match args.output {
        Format::Text => {
            let against =
                if plan.against.is_some() { "against the evenkeel of" } else { "no evenkeel runs on" };
            plan.text(&format!("{against} {}", running.display()))
        }
        Format::Json => serde_json::to_string_pretty(&plan).map_err(Failure::failed)? + "\n",
    };
    output::print(&text).map_err(Failure::failed)
}

async fn ask(running: &Path) -> Result<Option<InForce>, Failure> {
    match Client::find(&Whose::Directory(running.to_path_buf())).await? {
        Some(mut daemon) => Ok(Some(daemon.get(DECLARED).await?)),
        None => Ok(None),
    }
}
