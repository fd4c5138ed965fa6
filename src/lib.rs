//! Evenkeel keeps a fleet of MCP servers and Agent Skills attached to running agents.
//!
//! The modules, lowest first. Each module imports only modules that are listed before it (`tests/imports.rs`).
//!
//! - [`text`], [`net`], [`telemetry`], [`state_dir`]: utilities
//! - [`resource`]: the declared kinds `McpServer` and `Skill`
//! - [`plan`]: the changes that follow from new declarations
//! - [`source`]: directories and clusters that hold declarations
//! - [`wire`]: the MCP client protocol
//! - [`upstream`]: the servers and skills that are exposed to agents
//! - [`catalog`]: the merged lists that agents see
//! - [`fleet`]: the live connections
//! - [`skills`]: the Agent Skills
//! - [`gateway`]: the MCP endpoint for agents
//! - [`report`]: statuses and events
//! - [`admin`]: the status API
//! - [`daemon`]: assembles the other modules into a running instance
//! - [`cli`]: the commands
//!
//! `docs/architecture.md` has a diagram. The `evenkeel` command is [`cli::main`]. The library has no stable API; it is
//! public for the tests. To check a declaration before it is written:
//!
//! ```
//! use std::path::Path;
//!
//! let text = "
//! apiVersion: evenkeel.dev/v1alpha1
//! kind: McpServer
//! metadata: { name: search }
//! spec: { http: { url: 'https://mcp.example.com/mcp', timeout: 5s } }
//! ";
//! let problem = evenkeel::source::first_problem(Path::new("search.yaml"), text).expect("there is no such field");
//! assert!(problem.contains("timeout"), "{problem}");
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may block"))]

pub mod admin;
pub mod catalog;
pub mod cli;
pub mod daemon;
pub mod fleet;
pub mod gateway;
pub mod net;
pub mod oauth;
pub mod plan;
pub mod report;
pub mod resource;
pub mod skills;
pub mod source;
pub mod state_dir;
pub mod telemetry;
pub mod text;
pub mod upstream;
pub mod wire;
