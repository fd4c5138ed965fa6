use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::handle::UpstreamHandle;
use crate::wire::{Members, RpcResponse};

/// Who answers requests for what a section lists.
#[derive(Clone, Debug)]
pub enum Responder {
    /// A server, over its connection.
    Server(UpstreamHandle),
    /// Evenkeel itself.
    Local(Arc<dyn LocalResponder>),
}

/// Answers requests with no server behind it.
pub trait LocalResponder: fmt::Debug + Send + Sync {
    /// Answers a request for an item of the section, `name` being its name or URI. Must not block.
    fn respond(&self, method: &str, name: &str, params: &Members<'_>) -> RpcResponse;

    /// Gives the skill that the section stands for, if it does.
    fn skill(&self) -> Option<SkillEntry<'_>> {
        None
    }
}

/// A skill of the Skills extension (SEP-2640).
#[derive(Clone, Copy, Debug)]
pub struct SkillEntry<'a> {
    /// The URI of its SKILL.md.
    pub uri: &'a str,
    /// The skill as `skills/list` gives it.
    pub json: &'a RawValue,
}
