//! The command line: parses arguments and environment, runs a command and returns its exit code.
//!
//! Promises that the result of a command goes to stdout and everything else to stderr, and that the exit code is 0 for
//! success, 1 for failure and 2 for a usage error. Never decides anything about servers.

mod client;
mod dirs;
mod edit;
mod error;
mod explain;
mod init;
mod instance;
mod kubeconfig;
mod limits;
mod log_writer;
mod logging;
mod login;
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
use tokio::signal::unix::{SignalKind, signal};

/// Keep MCP servers and Agent Skills attached to running agents.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::doc_markdown, reason = "printed verbatim by --help")]
enum Command {
    /// Reconcile the declarations of a directory or cluster and serve their MCP servers to agents
    Run(Box<run::Args>),
    /// Show what declarations would change in a running instance or a cluster, and change nothing
    Plan(plan::Args),
    /// Check declarations without starting servers, for editors, hooks and CI
    Validate(validate::Args),
    /// Print the path of the status API's kubeconfig, for KUBECONFIG=$(evenkeel kubeconfig)
    Kubeconfig(kubeconfig::Args),
    /// Display one or many objects and their status, with the columns of kubectl get
    Get(query::GetArgs),
    /// Show details of one object: spec, conditions and events
    Describe(query::DescribeArgs),
    /// Wait until objects meet a condition or are deleted; exit with code 1 on timeout
    Wait(query::WaitArgs),
    /// List the events of the last hour
    Events(query::EventsArgs),
    /// Print the stderr output and the MCP log messages of a server
    Logs(query::LogsArgs),
    /// Add, remove, list and reload servers
    #[command(subcommand)]
    Mcp(edit::McpCommand),
    /// List and reload skills
    #[command(subcommand)]
    Skill(edit::SkillCommand),
    /// Log in to servers that require OAuth, with the browser
    Login(login::LoginArgs),
    /// Remove the OAuth tokens of servers
    Logout(login::LogoutArgs),
    /// Print type, default, bounds and description of a field, such as McpServer.spec.timeouts
    Explain(explain::Args),
    /// Print the CustomResourceDefinitions of McpServer and Skill
    Crds,
    /// Print the completion script of a shell
    Completions {
        /// Shell to print the script for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Kill the processes of stdio servers once stdin closes; started by run
    #[command(hide = true)]
    Guard,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Must come first: dependencies enable two crypto providers, and the first TLS client that has to choose one would
    // panic. The call fails only if a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        Ok((Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))?, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version are errors too, with exit code 0. A failed print means that nobody reads the output.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if matches!(cli.command, Command::Run(_)) && init::is_init_process() {
        return init::supervise().unwrap_or_else(|error| report_failure(&error));
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
        Command::Login(args) => login::login(&args),
        Command::Logout(args) => login::logout(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Crds => print_crds(),
        Command::Completions { shell } => print_completions(shell),
        Command::Guard => {
            guard();
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report_failure(&error),
    }
}

/// Runs the guard process.
fn guard() {
    // If the guard is suspended when evenkeel dies, the kernel resumes it with SIGHUP, which must not end it. The
    // handler stays installed after the runtime is gone.
    let hangup = runtime::block_on(async { signal(SignalKind::hangup()).map_err(CommandError::failed) });
    drop(hangup);
    crate::wire::guard_children(std::io::stdin().lock());
}

/// Prints the error of a command and returns the exit code.
fn report_failure(error: &CommandError) -> ExitCode {
    output::print_error(error);
    ExitCode::from(match error {
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
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert_eq!(variable, format!("EVENKEEL_{name}"));
        }
    }
}
