//! Evenkeel keeps a fleet of MCP servers and Agent Skills attached to running agents.
//!
//! The rooms, in the order that data flows through them: [`resource`] is what people declare, [`source`]
//! where it is declared, [`plan`] what follows from it, [`fleet`] the live connections, [`catalog`] what
//! agents may see, [`gateway`] the endpoint they talk to. [`skills`] offers Agent Skills. [`wire`] is MCP on the
//! wire, [`report`] where the truth is told, [`admin`] serves it, [`telemetry`] traces the work, [`cli`] is the
//! commands. [`state`] is what outlives a run, [`net`] holds small tools for the network, [`words`] how it is told to people. `docs/architecture.md` draws it.

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
pub mod state;
pub mod telemetry;
pub mod upstream;
pub mod wire;
pub mod words;
