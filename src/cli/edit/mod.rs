//! The commands that edit the files of a directory of declarations, or ask a running evenkeel for work.
//!
//! Promises that a file is whole or absent at any moment, that no file is written over, and that what a person
//! wrote around a declaration stays. Never edits what it cannot find for sure: then it says where to look.

mod add;
mod file;
mod held;
mod limit;
mod manifest;
mod reload;
mod reload_skills;
mod remove;

use clap::Subcommand;

use super::ask::{Listing, Selection};
use super::failure::Failure;
use crate::report::Kind;

/// `evenkeel mcp …`
#[derive(Debug, Subcommand)]
pub(super) enum Mcp {
    /// Declare a server in a file of its own and wait until it is attached
    #[command(
        override_usage = "evenkeel mcp add [OPTIONS] NAME URL\n       evenkeel mcp add [OPTIONS] NAME -- COMMAND [ARG]..."
    )]
    Add(add::Args),
    /// Take a server's declaration away
    Remove(remove::Args),
    /// Print the servers
    List(Listing),
    /// Retry what failed and read the lists of what is healthy again
    Reload(reload::Args),
}

/// `evenkeel skill …`
#[derive(Debug, Subcommand)]
pub(super) enum Skill {
    /// Print the skills, with what they say of themselves
    List(Listing),
    /// Look at the files of skills again, and say what changed
    Reload(reload_skills::Args),
}

/// Runs `evenkeel mcp …`.
pub(super) fn mcp(command: &Mcp) -> Result<(), Failure> {
    match command {
        Mcp::Add(args) => add::add(args),
        Mcp::Remove(args) => remove::remove(args),
        Mcp::List(listing) => listing.print(&Selection::all(Kind::McpServer), false),
        Mcp::Reload(args) => reload::reload(args),
    }
}

/// Runs `evenkeel skill …`.
pub(super) fn skill(command: &Skill) -> Result<(), Failure> {
    match command {
        Skill::List(listing) => listing.clone().wide().print(&Selection::all(Kind::Skill), false),
        Skill::Reload(args) => reload_skills::reload(args),
    }
}
