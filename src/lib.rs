//! Evenkeel keeps a fleet of MCP servers and Agent Skills attached to running agents.
//!
//! The modules, lowest first; each imports only what stands before it (`tests/imports.rs`). Small tools: [`text`], [`net`],
//! [`telemetry`], [`state_dir`]. [`resource`] is what people declare, [`plan`] what follows from it, [`source`] where it is declared,
//! [`wire`] is MCP on the wire, [`upstream`] what servers and skills give to agents, [`catalog`] what agents may see, [`fleet`]
//! the live connections, [`skills`] the Agent Skills, [`gateway`] the endpoint that agents talk to, [`report`] status and events,
//! [`admin`] the API that serves them. [`daemon`] puts these together, and [`cli`] is the commands. `docs/architecture.md` draws it.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may block"))]

pub mod admin;
pub mod catalog;
pub mod cli;
pub mod daemon;
pub mod fleet;
pub mod gateway;
pub mod net;
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
