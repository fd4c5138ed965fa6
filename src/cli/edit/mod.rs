//! The commands that edit the files of a directory of declarations, or request work from a running instance.
//!
//! Promises that files are written atomically, that no other file is overwritten, and that the text around a
//! declaration stays. Never edits a file if the declaration cannot be located for certain; the error then names the
//! place.

mod add;
mod file;
mod manifest;
mod reload;
mod reload_skills;
mod removal_held;
mod remove;
mod wait_timeout;

use clap::Subcommand;

use super::error::CommandError;
use super::query::{ListArgs, Selection};
use crate::report::ObjectKind;

/// `evenkeel mcp …`
#[derive(Debug, Subcommand)]
pub(super) enum McpCommand {
    /// Declare a server in its own file and wait until it is attached
    #[command(override_usage = "evenkeel mcp add [OPTIONS] NAME URL\n       \
        evenkeel mcp add [OPTIONS] NAME -- COMMAND [ARG]...")]
    Add(add::Args),
    /// Remove the declaration of a server
    Remove(remove::Args),
    /// List servers
    List(ListArgs),
    /// Retry failed servers and refresh the tools, prompts and resources of healthy ones
    Reload(reload::Args),
}

/// `evenkeel skill …`
#[derive(Debug, Subcommand)]
pub(super) enum SkillCommand {
    /// List skills with their descriptions
    List(ListArgs),
    /// Scan the files of skills and print what changed
    Reload(reload_skills::Args),
}

/// Runs `evenkeel mcp …`.
pub(super) fn mcp(command: &McpCommand) -> Result<(), CommandError> {
    match command {
        McpCommand::Add(args) => add::add(args),
        McpCommand::Remove(args) => remove::remove(args),
        McpCommand::List(list) => list.print(&Selection::all_of(ObjectKind::McpServer), false),
        McpCommand::Reload(args) => reload::reload(args),
    }
}

/// Runs `evenkeel skill …`.
pub(super) fn skill(command: &SkillCommand) -> Result<(), CommandError> {
    match command {
        SkillCommand::List(list) => list.clone().wide().print(&Selection::all_of(ObjectKind::Skill), false),
        SkillCommand::Reload(args) => reload_skills::reload(args),
    }
}
