//! The commands: arguments and environment in, an exit code out.
//!
//! Promises that what a command prints goes to stdout and everything else to stderr, and that the exit
//! code is 0 for done, 1 for failed and 2 for wrong usage. Never decides anything about servers.

mod client;
mod dirs;
mod edit;
mod error;
mod explain;
mod init;
mod instance;
mod kubeconfig;
mod logging;
mod namespace;
mod output;
mod plan;
mod query;
mod run;
mod runtime;
mod validate;

use std::process::ExitCode;

use self::error::CommandError;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Keeps MCP servers and Agent Skills attached to running agents.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed as it is by --help")]
enum Command {
    /// Reconcile a directory of declarations and serve its servers to agents
    Run(Box<run::Args>),
    /// Show what declarations would change in the fleet that runs, or in a cluster, and change nothing
    Plan(plan::Args),
    /// Check declarations without running anything: for editors, hooks and CI
    Validate(validate::Args),
    /// Print where the kubeconfig of the status API is, for KUBECONFIG=$(evenkeel kubeconfig)
    Kubeconfig(kubeconfig::Args),
    /// Print what is declared and how it is, with the columns of kubectl
    Get(query::GetArgs),
    /// Print all that is known of one object: spec, conditions and events
    Describe(query::DescribeArgs),
    /// Wait until a condition holds, or until something is gone; exit code 1 if it is not so in time
    Wait(query::WaitArgs),
    /// Print what happened in the last hour
    Events(query::EventsArgs),
    /// Print what a server wrote to stderr and the log messages that it sent
    Logs(query::LogsArgs),
    /// Declare, remove, list and reload servers
    #[command(subcommand)]
    Mcp(edit::McpCommand),
    /// List and reload skills
    #[command(subcommand)]
    Skill(edit::SkillCommand),
    /// Print type, default, bounds and description of a field, such as McpServer.spec.timeouts
    Explain(explain::Args),
    /// Print the CustomResourceDefinitions of McpServer and Skill
    Crds,
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// End our servers' processes once stdin closes; started by run
    #[command(hide = true)]
    Guard,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // First of all: two crypto providers are in reach of the crates we use, and the first TLS client that
    // had to choose between them would panic. It can only be installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        Ok((Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))?, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version come here too, with exit code 0. If they cannot be printed nobody reads.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if matches!(cli.command, Command::Run(_)) && init::is_init_process() {
        return init::supervise().unwrap_or_else(|failure| report_failure(&failure));
    }
    let outcome = match cli.command {
        Command::Run(args) => {
            run::run(*args, |argument| matches.subcommand().and_then(|(_, run)| run.value_source(argument)))
        }
        Command::Plan(args) => plan::plan(&args),
        Command::Validate(args) => validate::validate(&args),
        Command::Kubeconfig(args) => kubeconfig::run(args),
        Command::Get(args) => query::get(&args),
        Command::Describe(args) => query::describe(&args),
        Command::Wait(args) => query::wait(&args),
        Command::Events(args) => query::events(&args),
        Command::Logs(args) => query::logs(&args),
        Command::Mcp(command) => edit::mcp(&command),
        Command::Skill(command) => edit::skill(&command),
        Command::Explain(args) => explain::explain(&args),
        Command::Crds => print_crds(),
        Command::Completions { shell } => print_completions(shell),
        Command::Guard => {
            crate::wire::guard_children(std::io::stdin().lock());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report_failure(&failure),
    }
}

/// Says why a command did not succeed; gives the exit code.
fn report_failure(failure: &CommandError) -> ExitCode {
    output::print_error(failure);
    ExitCode::from(match failure {
        CommandError::Failed(_) | CommandError::Interrupted(_) => 1,
        CommandError::Usage(_) => 2,
    })
}

fn print_crds() -> Result<(), CommandError> {
    let crds = crate::resource::crds().map_err(CommandError::failed)?;
    let documents: Vec<_> = crds.into_iter().map(|(_, text)| text).collect();
    output::print(&documents.join("---\n")).map_err(CommandError::failed)
}

fn print_completions(shell: clap_complete::Shell) -> Result<(), CommandError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut text);
    output::print(&String::from_utf8_lossy(&text)).map_err(CommandError::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_definitions_are_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_run_flag_has_an_environment_variable() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        for argument in run.get_arguments().filter(|argument| argument.get_id() != "help") {
            let name = argument.get_long().unwrap_or("dir").replace('-', "_").to_uppercase();
            let twin = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert_eq!(twin, format!("EVENKEEL_{name}"));
        }
    }
}
