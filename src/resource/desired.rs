use std::sync::Arc;

use imbl::OrdMap;

use super::annotations::RequestedWork;
use super::bundle::Bundle;
use super::declared::{Commit, DeclaredObject};
use super::source_state::SourceState;
use super::{McpServerSpec, ObjectKey, Problem, SkillSpec};

/// All declared objects at one instant. An immutable snapshot: cheap to clone, and to derive a changed copy from.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The declared servers.
    pub servers: OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    /// The declared skills.
    pub skills: OrdMap<ObjectKey, Arc<DeclaredObject<SkillSpec>>>,
    /// The contents of the skills. A skill without an entry has not been read yet, or never had a valid declaration.
    pub skill_contents: OrdMap<ObjectKey, SkillContent>,
    /// The state of the source itself.
    pub source: Arc<SourceState>,
    /// The declarations in force at the end of the previous run, if the source recorded them. Differences to them are
    /// changes that were made while evenkeel was not running.
    pub previous_run: Option<Arc<Self>>,
    /// The request annotations that were set through the status API and are in no file.
    pub requested_work: RequestedWork,
    /// The commits that removed objects, by the uids of those objects, as far as they are known.
    pub removal_commits: OrdMap<Arc<str>, Arc<Commit>>,
    /// The sequence number, which grows with each snapshot from a directory. A result derived from this number or a
    /// later one includes everything in this snapshot, so callers can wait for it.
    pub sequence: u64,
}

/// The content of a skill, or the problem that prevented reading it. Unchanged content keeps its `Arc`.
pub type SkillContent = Result<Arc<Bundle>, Problem>;
