//! A directory of YAML files as a source.

mod documents;
mod excerpt;
mod merge;
mod next;
mod parse;
mod read;
mod resolve;
mod secrets;
