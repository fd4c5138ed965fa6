use std::fmt;
use std::sync::Arc;

use crate::resource::Digest;

/// The name of the file that marks a folder as a skill.
pub const SKILL_FILE: &str = "SKILL.md";

/// The size limits of a skill.
#[derive(Clone, Copy, Debug)]
pub struct SkillLimits;

impl SkillLimits {
    /// The maximum number of files.
    pub const MAX_FILES: usize = 512;
    /// The maximum size of one file, in bytes.
    pub const MAX_FILE_BYTES: usize = 4 << 20;
    /// The maximum size of all files together, in bytes.
    pub const MAX_TOTAL_BYTES: usize = 16 << 20;
    /// The maximum number of folders in the path of a file.
    pub const MAX_DEPTH: usize = 8;
}

/// One file of a skill.
#[derive(Clone, PartialEq, Eq)]
pub struct SkillFile {
    /// The content, text or binary.
    pub bytes: Arc<[u8]>,
    /// True if agents may execute the file. Evenkeel never executes it.
    pub executable: bool,
    /// The digest of `bytes`.
    pub digest: Digest,
}

impl SkillFile {
    /// Creates a file from its content.
    pub fn new(bytes: impl Into<Arc<[u8]>>, executable: bool) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(&bytes), bytes, executable }
    }
}

/// Returns true if a file or folder of this name is part of a skill. Names that start with a dot, such as `.git`, are
/// not.
pub fn is_part_of_skill(name: &str) -> bool {
    !name.starts_with('.')
}

/// Returns true if a file of a skill may have this name.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && is_part_of_skill(name) && !name.contains(char::is_control)
}

impl fmt::Debug for SkillFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes)", self.bytes.len())
    }
}
