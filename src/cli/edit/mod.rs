//! The commands that edit the files of a directory of declarations, or ask a running evenkeel for work.
//!
//! Promises that a file is whole or absent at any moment, that no file is written over, and that what a person
//! wrote around a declaration stays. Never edits what it cannot find for sure: then it says where to look.

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
    /// Declare a server in a file of its own and wait until it is attached
    #[command(
        override_usage = "evenkeel mcp add [OPTIONS] NAME URL\n       evenkeel mcp add [OPTIONS] NAME -- COMMAND [ARG]..."
    )]
    Add(add::Args),
    /// Take a server's declaration away
    Remove(remove::Args),
    /// Print the servers
    List(ListArgs),
    /// Retry what failed and read the lists of what is healthy again
    Reload(reload::Args),
}

/// `evenkeel skill …`
#[derive(Debug, Subcommand)]
pub(super) enum SkillCommand {
    /// Print the skills, with what they say of themselves
    List(ListArgs),
    /// Look at the files of skills again, and say what changed
    Reload(reload_skills::Args),
}

/// Runs `evenkeel mcp …`.
pub(super) fn mcp(command: &McpCommand) -> Result<(), CommandError> {
    match command {
        McpCommand::Add(args) => add::add(args),
        McpCommand::Remove(args) => remove::remove(args),
        McpCommand::List(listing) => listing.print(&Selection::all_of(ObjectKind::McpServer), false),
        McpCommand::Reload(args) => reload::reload(args),
    }
}

/// Runs `evenkeel skill …`.
pub(super) fn skill(command: &SkillCommand) -> Result<(), CommandError> {
    match command {
        SkillCommand::List(listing) => {
            listing.clone().wide().print(&Selection::all_of(ObjectKind::Skill), false)
        }
        SkillCommand::Reload(args) => reload_skills::reload(args),
    }
}
