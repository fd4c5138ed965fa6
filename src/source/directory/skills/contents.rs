//! Reads the contents of the skills: the text of a declaration, or the files of a folder. Blocks.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;

use super::folder::SkillFolder;
use super::read::{FolderVisitor, read_skill_folder};
use crate::resource::bundle::{Bundle, SKILL_FILE, SkillError, SkillFile, SkillLocation};
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
        let mut real_paths = HashSet::new();
        for (key, folder) in self.folders.clone() {
            let read = read_skill_folder(&root, &folder.path, folder.files.as_ref(), wall_clock, visit);
            real_paths.extend(watched_paths(&root, &folder.path));
            real_paths.extend(read.iter().flat_map(SkillFolder::linked_paths).cloned());
            // A change that is not settled was read for its watches only.
            if folder.files.is_none() || settled {
                self.set_files(&key, folder, read);
            }
        }
        real_paths
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
            let files = BTreeMap::from([(SKILL_FILE.into(), SkillFile::new(text.as_bytes(), false))]);
            let location = SkillLocation::Text("spec.inline".to_owned());
            return self.set_content(key, Bundle::from_source(&key.name, &location, files, &[]));
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
        let location = SkillLocation::Folder(display_path(&folder.path));
        match read {
            Ok(files) if folder.files.as_ref().is_some_and(|applied| applied.has_same_content(&files)) => {
                // The newer stamps prove more.
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..folder });
            }
            Ok(files) => {
                let content = Bundle::from_source(&key.name, &location, files.files(), files.left_out());
                self.set_content(key, content);
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..folder });
            }
            Err(error) => {
                self.set_content(key, Err(location.problem(&error)));
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

/// Returns the real paths at which a change concerns the folder of a skill: that of the folder, and that of a link to it.
fn watched_paths(root: &TreeRoot, folder: &Path) -> impl Iterator<Item = PathBuf> {
    let path = root.path.join(folder);
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    let link = parent.zip(path.file_name()).map(|(parent, name)| parent.join(name));
    [path.canonicalize().unwrap_or(path)].into_iter().chain(link)
}
