use std::path::PathBuf;

use super::error::CommandError;
use super::instance::InstanceArgs;
use super::output;
use super::runtime::block_on;
use crate::daemon::{KUBECONFIG, socket};

/// The arguments of `evenkeel kubeconfig`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the instance; the same as --dir
    #[arg(value_name = "DIR", conflicts_with = "kubernetes")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    instance: InstanceArgs,
}

/// Prints the path of the kubeconfig, if it exists. A note on stderr says if no instance is running.
pub(super) fn run(args: Args) -> Result<(), CommandError> {
    let instance = args.instance.with_dir(args.directory).resolve()?;
    let mut state_dirs = instance.state_dirs.clone();
    state_dirs.retain(|state| state.join(KUBECONFIG).is_file());
    block_on(async {
        let is_running = |state: &&PathBuf| matches!(socket::connect(state), Ok(Some(_)));
        let running = state_dirs.iter().find(is_running);
        let start = &instance.start_command;
        let Some(state) = running.or(state_dirs.first()) else {
            return Err(CommandError::Failed(format!(
                "evenkeel has never run for {instance}; start it with: {start}"
            )));
        };
        if running.is_none() {
            output::print_note(&format!(
                "no evenkeel instance is running for {instance}; start one with: {start}"
            ));
        }
        output::print(&format!("{}\n", state.join(KUBECONFIG).display())).map_err(CommandError::failed)
    })
}
