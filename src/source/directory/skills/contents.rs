//! What the skills hold: the text in a declaration, or the files of a folder. Blocks.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;

use super::folder::{FolderVisitor, SkillFolder, folder};
use crate::resource::bundle::{Bundle, SkillError};
use crate::resource::{DeclaredObject, ObjectKey, Problem, Reason, SkillContent, SkillSpec};
use crate::source::directory::tree::TreeRoot;
use crate::source::parse::{display_path, join_within_root};

type SkillObjects = OrdMap<ObjectKey, Arc<DeclaredObject<SkillSpec>>>;

/// The contents of all skills, and what they were made of.
#[derive(Default)]
pub struct SkillContents {
    /// As the source gives them.
    pub contents: OrdMap<ObjectKey, SkillContent>,
    skills: SkillObjects,
    folders: OrdMap<ObjectKey, DeclaredFolder>,
}

/// The folder of a skill, relative to the root, and its files as they were taken.
#[derive(Clone)]
struct DeclaredFolder {
    path: PathBuf,
    files: Option<SkillFolder>,
}

/// Not by what was read, so that a folder that is another one is known by its path.
impl PartialEq for DeclaredFolder {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl SkillContents {
    /// Takes up which skills there are, and looks at their folders, of which it gives the real paths. What has
    /// changed in one is taken if `settled`; a skill that is new is taken as it is.
    pub fn update(
        &mut self,
        root: &Path,
        skills: &SkillObjects,
        settled: bool,
        clock: Timestamp,
        meet: FolderVisitor<'_>,
    ) -> HashSet<PathBuf> {
        let before = std::mem::replace(&mut self.skills, skills.clone());
        for change in before.diff(skills) {
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
        // Where the folders are; they are looked for again at the next look if it cannot be told.
        let Ok(root) = TreeRoot::open(root) else { return HashSet::new() };
        for (key, known) in self.folders.clone() {
            if known.files.is_some() && !settled {
                // Seen, so that its folders stay watched.
                let _ = folder(&root, &known.path, known.files.as_ref(), clock, meet);
                continue;
            }
            let now = folder(&root, &known.path, known.files.as_ref(), clock, meet);
            self.set_files(&key, known, now);
        }
        let real = |folder: &DeclaredFolder| {
            let path = root.path.join(&folder.path);
            path.canonicalize().unwrap_or(path)
        };
        self.folders.values().map(real).collect()
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
            return self
                .set_content(key, content.map_err(|mistake| skill_problem("spec.inline, ", &mistake)));
        };
        let parent = skill.meta.file().and_then(|file| file.parent());
        if let Some(path) = parent.and_then(|parent| join_within_root(parent, path)) {
            let folder = DeclaredFolder { path, files: None };
            if self.folders.get(key) != Some(&folder) {
                self.folders.insert(key.clone(), folder);
            }
        } else {
            self.folders.remove(key);
            let message = format!("spec.path: {path:?} leads out of the directory of declarations");
            self.set_content(key, Err(Problem::new(Reason::InvalidSpec, message)));
        }
    }

    fn set_files(&mut self, key: &ObjectKey, known: DeclaredFolder, now: Result<SkillFolder, SkillError>) {
        let place = |mistake: &SkillError| skill_problem(&format!("{}/", display_path(&known.path)), mistake);
        match now {
            Ok(files) if known.files.as_ref().is_some_and(|taken| taken.has_same_files(&files)) => {
                // With newer stamps, so that they prove more.
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..known });
            }
            Ok(files) => {
                let content = Bundle::new(&key.name, files.files()).map_err(|mistake| place(&mistake));
                self.set_content(key, content);
                self.folders.insert(key.clone(), DeclaredFolder { files: Some(files), ..known });
            }
            Err(mistake) => {
                self.set_content(key, Err(place(&mistake)));
                self.folders.insert(key.clone(), DeclaredFolder { files: None, ..known });
            }
        }
    }

    fn set_content(&mut self, key: &ObjectKey, content: Result<Bundle, Problem>) {
        let same = match (self.contents.get(key), &content) {
            (Some(Ok(before)), Ok(after)) => **before == *after,
            (Some(Err(before)), Err(after)) => before == after,
            _ => false,
        };
        if !same {
            self.contents.insert(key.clone(), content.map(Arc::new));
        }
    }
}

/// A mistake of a skill, with its place.
fn skill_problem(place: &str, mistake: &SkillError) -> Problem {
    // Of the folder itself.
    let place = if mistake.file.is_empty() {
        format!("{}: ", place.trim_end_matches(['/', ' ', ',']))
    } else {
        place.to_owned()
    };
    Problem::new(Reason::InvalidSpec, format!("{place}{mistake}"))
}
