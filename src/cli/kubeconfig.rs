use std::path::PathBuf;

use super::error::CommandError;
use super::instance::InstanceArgs;
use super::output;
use super::runtime::block_on;
use crate::daemon::{KUBECONFIG, socket};

/// The arguments of `evenkeel kubeconfig`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory that evenkeel runs on, as --dir says it too
    #[arg(value_name = "DIR", conflicts_with = "kubernetes")]
    place: Option<PathBuf>,
    #[command(flatten)]
    instance: InstanceArgs,
}

/// Prints where the kubeconfig is, if there is one; if nothing runs behind it, that is said too.
pub(super) fn run(args: Args) -> Result<(), CommandError> {
    let whose = args.instance.with_dir(args.place).resolve()?;
    let mut states = whose.state_dirs.clone();
    states.retain(|state| state.join(KUBECONFIG).is_file());
    block_on(async {
        let is_running = |state: &&PathBuf| matches!(socket::connect(state), Ok(Some(_)));
        let running = states.iter().find(is_running);
        let start = &whose.start_command;
        let Some(state) = running.or(states.first()) else {
            return Err(CommandError::Failed(format!(
                "evenkeel has not run on {whose} yet; start it with `{start}`"
            )));
        };
        if running.is_none() {
            output::print_note(&format!("no evenkeel is running for {whose}; start it with: {start}"));
        }
        output::print(&format!("{}\n", state.join(KUBECONFIG).display())).map_err(CommandError::failed)
    })
}
