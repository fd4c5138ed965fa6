use std::fmt;
use std::sync::Arc;

use crate::resource::Digest;

/// The file that makes a folder a skill.
pub const SKILL_FILE: &str = "SKILL.md";

/// How large a skill may be.
#[derive(Clone, Copy, Debug)]
pub struct SkillLimits;

impl SkillLimits {
    /// Files.
    pub const MAX_FILES: usize = 512;
    /// Bytes of one file.
    pub const MAX_FILE_BYTES: usize = 4 << 20;
    /// Bytes of all files together.
    pub const MAX_TOTAL_BYTES: usize = 16 << 20;
    /// Folders on the way to a file.
    pub const MAX_DEPTH: usize = 8;
}

/// One file of a skill.
#[derive(Clone, PartialEq, Eq)]
pub struct SkillFile {
    /// What is in it, text or not.
    pub bytes: Arc<[u8]>,
    /// Whether agents may run it. Evenkeel never does.
    pub executable: bool,
    /// Of its bytes.
    pub digest: Digest,
}

impl SkillFile {
    /// A file from its content.
    pub fn new(bytes: impl Into<Arc<[u8]>>, executable: bool) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(&bytes), bytes, executable }
    }
}

/// Tells whether a file belongs to a skill: what begins with a dot is others', such as `.git`.
pub fn is_part_of_skill(name: &str) -> bool {
    !name.starts_with('.')
}

impl fmt::Debug for SkillFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes)", self.bytes.len())
    }
}
