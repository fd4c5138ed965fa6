use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::resource::bundle::{SkillError, SkillFile};
use crate::source::directory::tree::FileStamp;

/// The number of left out files that are remembered for the message.
const MAX_LEFT_OUT: usize = 20;

/// The files of a skill's folder, as they were read.
#[derive(Clone, Default)]
pub struct SkillFolder {
    files: BTreeMap<Arc<str>, (Option<FileStamp>, SkillFile)>,
    left_out: Vec<SkillError>,
    linked_paths: BTreeSet<PathBuf>,
}

impl SkillFolder {
    /// True if both contain the same files, and leave out the same.
    pub fn has_same_content(&self, other: &Self) -> bool {
        self.left_out == other.left_out
            && self.files.len() == other.files.len()
            && self
                .files
                .iter()
                .zip(&other.files)
                .all(|((name, (_, file)), (other, (_, other_file)))| name == other && file == other_file)
    }

    /// Returns the files by their paths in the folder.
    pub fn files(&self) -> BTreeMap<Arc<str>, SkillFile> {
        self.files.iter().map(|(name, (_, file))| (name.clone(), file.clone())).collect()
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns a file and its stamp, if later writes must change that.
    pub fn get(&self, path: &str) -> Option<&(Option<FileStamp>, SkillFile)> {
        self.files.get(path)
    }

    /// Returns what of the folder is not part of the skill, and why.
    pub fn left_out(&self) -> &[SkillError] {
        &self.left_out
    }

    /// Returns the real paths outside the folder to which links in it lead.
    pub fn linked_paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.linked_paths.iter()
    }

    /// Adds a file.
    pub fn insert(&mut self, path: &str, stamp: Option<FileStamp>, file: SkillFile) {
        self.files.insert(path.into(), (stamp, file));
    }

    /// Leaves out a file or folder; `reason` completes a sentence that begins with it.
    pub fn leave_out(&mut self, path: &str, reason: impl Into<String>) {
        if self.left_out.len() < MAX_LEFT_OUT {
            self.left_out.push(SkillError::for_file(path, reason));
        }
    }

    /// Adds a path outside the folder to which a link leads.
    pub fn add_linked_path(&mut self, real_path: &Path) {
        self.linked_paths.insert(real_path.to_owned());
    }
}
