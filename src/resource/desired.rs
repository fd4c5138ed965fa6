use std::sync::Arc;

use imbl::OrdMap;

use super::annotations::RequestedWork;
use super::bundle::Bundle;
use super::declared::{Commit, DeclaredObject};
use super::source_state::SourceState;
use super::{McpServerSpec, ObjectKey, Problem, SkillSpec};

/// Everything that is declared, at one instant: immutable, and cheap to clone and to change.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The declared servers.
    pub servers: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    /// The declared skills.
    pub skills: OrdMap<ObjectKey, Arc<DeclaredObject<SkillSpec>>>,
    /// What the skills hold. One that is not in here was not looked at yet, or was never declared well.
    pub skill_contents: OrdMap<ObjectKey, SkillContent>,
    /// The state of the source itself.
    pub source: Arc<SourceState>,
    /// What was in force when an earlier run ended, where the source remembers it: what differs from that changed
    /// while evenkeel was down.
    pub previous_run: Option<Arc<Self>>,
    /// What was asked for over the status API: these annotations stand in no file.
    pub requested_work: RequestedWork,
    /// Who took away what is declared no more, by the uids of the objects, where that is known.
    pub removal_commits: OrdMap<Arc<str>, Arc<Commit>>,
    /// Grows from one to the next that a directory gives, so that it can be waited for: what was made from one of
    /// this number or a later one knows all of it.
    pub sequence: u64,
}

/// What a skill holds, by the same `Arc` while it is the same; or why that is not known.
pub type SkillContent = Result<Arc<Bundle>, Problem>;
