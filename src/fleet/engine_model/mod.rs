//! A model of the whole engine, from the files of a directory to the catalog: the real scanner, plan, state machines and
//! catalog, with simulated servers, a clock of its own and random operations.
//!
//! [`operations`] holds the reference: what is declared, and what can happen. [`engine`] puts the real parts together:
//! [`declarations`], [`effects`] and [`delivery`] run them against [`world`], the simulated servers, and check the promises
//! of `docs/guarantees.md` as they run; [`end`] checks what must be true in the end. [`tests`] generates operations, and
//! repeats runs with a crash after each effect.

mod declarations;
mod delivery;
mod effects;
mod end;
mod engine;
mod managed_server;
mod operations;
mod tests;
mod world;
