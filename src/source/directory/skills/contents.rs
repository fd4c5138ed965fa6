//! Reads the contents of the skills: the text of a declaration, or the files of a folder. Blocks.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;

use super::folder::{FolderVisitor, SkillFolder, read_skill_folder};
use crate::resource::bundle::{Bundle, SkillError};
use crate::resource::{DeclaredObject, ObjectKey, Problem, Reason, SkillContent, SkillSpec};
use crate::source::directory::tree::TreeRoot;
use crate::source::parse::{display_path, join_within_root};

type SkillObjects = OrdMap<ObjectKey, Arc<DeclaredObject<SkillSpec>>>;

/// The contents of all skills, and the data that they were built from.
#[derive(Default)]
pub struct SkillContents {
    /// The contents as the source publishes them.
    pub contents: OrdMap<ObjectKey, SkillContent>,
    skills: SkillObjects,
    folders: OrdMap<ObjectKey, DeclaredFolder>,
}

/// The folder of a skill, relative to the root, and its files as they were applied.
#[derive(Clone)]
struct DeclaredFolder {
    path: PathBuf,
    files: Option<SkillFolder>,
}

/// Compares only the paths, so that a change of the folder is recognized by its path.
impl PartialEq for DeclaredFolder {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl SkillContents {
    /// Updates the set of skills and reads their folders. Returns the real paths of the folders. A changed folder is
    /// applied only if `settled`; a new skill is applied at once.
    pub fn update(
        &mut self,
        root: &Path,
        skills: &SkillObjects,
        settled: bool,
        wall_clock: Timestamp,
        visit: FolderVisitor<'_>,
    ) -> HashSet<PathBuf> {
        let earlier = std::mem::replace(&mut self.skills, skills.clone());
        for change in earlier.diff(skills) {
            match change {
                DiffItem::Remove(key, _) => self.remove(key),
                DiffItem::Add(key, skill) | DiffItem::Update { new: (key, skill), .. } => {
                    self.set_declaration(key, skill);
                }
            }
        }
        if self.folders.is_empty() {
            return HashSet::new();
        }
        // If the root cannot be opened, the folders are read in the next scan.
        let Ok(root) = TreeRoot::open(root) else { return HashSet::new() };
        for (key, folder) in self.folders.clone() {
            if folder.files.is_some() && !settled {
                // Visited, so that its folders stay watched.
                let _ = read_skill_folder(&root, &folder.path, folder.files.as_ref(), wall_clock, visit);
                continue;
            }
            let read = read_skill_folder(&root, &folder.path, folder.files.as_ref(), wall_clock, visit);
            self.set_files(&key, folder, read);
        }
        let real_path = |folder: &DeclaredFolder| {
            let path = root.path.join(&folder.path);
            path.canonicalize().unwrap_or(path)
        };
        self.folders.values().map(real_path).collect()
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.contents.remove(key);
        self.folders.remove(key);
    }

    fn set_declaration(&mut self, key: &ObjectKey, skill: &DeclaredObject<SkillSpec>) {
        let Some(spec) = &skill.spec else { return self.remove(key) };
        let Some(path) = &spec.path else {
            self.folders.remove(key);
            let text = spec.inline.as_deref().unwrap_or_default();
            let content = Bundle::from_text(&key.name, text);
            return self.set_content(key, content.map_err(|error| skill_problem("spec.inline, ", &error)));
        };
        let parent = skill.meta.file().and_then(|file| file.parent());
        if let Some(path) = parent.and_then(|parent| join_within_root(parent, path)) {
            let folder = DeclaredFolder { path, files: None };
            if self.folders.get(key) != Some(&folder) {
                self.folders.insert(key.clone(), folder);
            }
        } else {
            self.folders.remove(key);
            let message = format!("spec.path: {path:?} is outside the directory of declarations");
            self.set_content(key, Err(Problem::new(Reason::InvalidSpec, message)));
        }
    }

    fn set_files(&mut self, key: &ObjectKey, folder: DeclaredFolder, read: Result<SkillFolder, SkillError>) {
        let to_problem =
            |error: &SkillError| skill_problem(&format!("{}/", display_path(&folder.path)), error);
        match read {
            Ok(files) if folder.files.as_ref().is_some_and(|applied| applied.has_same_files(&files)) => {
                // The newer stamps prove more.
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..folder });
            }
            Ok(files) => {
                let content = Bundle::new(&key.name, files.files()).map_err(|error| to_problem(&error));
                self.set_content(key, content);
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..folder });
            }
            Err(error) => {
                self.set_content(key, Err(to_problem(&error)));
                self.folders.insert(key.clone(), DeclaredFolder { files: None, ..folder });
            }
        }
    }

    fn set_content(&mut self, key: &ObjectKey, content: Result<Bundle, Problem>) {
        let unchanged = match (self.contents.get(key), &content) {
            (Some(Ok(before)), Ok(after)) => **before == *after,
            (Some(Err(before)), Err(after)) => before == after,
            _ => false,
        };
        if !unchanged {
            self.contents.insert(key.clone(), content.map(Arc::new));
        }
    }
}

/// Returns the problem of a skill error with its location.
fn skill_problem(location: &str, error: &SkillError) -> Problem {
    // The error concerns the folder itself.
    let location = if error.file.is_empty() {
        format!("{}: ", location.trim_end_matches(['/', ' ', ',']))
    } else {
        location.to_owned()
    };
    Problem::new(Reason::InvalidSpec, format!("{location}{error}"))
}
