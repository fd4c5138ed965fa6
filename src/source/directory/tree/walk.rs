//! Walks the files of the tree that may contain declarations, as determined by their paths. In the folder of a skill
//! only its SKILL.md is visited.
//!
//! Promises never to read outside the root: every folder and file is opened by name in its folder, and a link is
//! followed only if its target is below the root. Never waits for a file: only regular files are opened.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::ignore_rules::IgnoreRules;
use super::read::{FileId, FileStamp, OPEN_FLAGS, file_id, read_open_file};
use super::root::{OPEN_FOLDER_FLAGS, TreeRoot};
use crate::resource::bundle::SKILL_FILE;
use crate::source::parse::{
    is_declaration_name, is_declaration_path, is_skill_file, is_skills_folder, is_skipped,
};

/// The size above which a file is not read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// The depth below which folders are not entered.
const MAX_DEPTH: usize = 32;
/// The number of entries after which the walk of a tree stops.
const MAX_ENTRIES: usize = 500_000;
const MAX_FILES: usize = 100_000;

/// Receives the results of a walk; `path` is always relative to the root.
pub trait TreeVisitor {
    /// Visits a folder that is about to be read; `real_path` has no links.
    fn visit_folder(&mut self, real_path: &Path, id: FileId);
    /// Visits a file that may contain declarations.
    fn visit_file(&mut self, file: &FoundFile<'_>);
    /// Reports a file that cannot be read, with the reason.
    fn unreadable_file(&mut self, path: &Path, reason: &str);
    /// Reports a folder that could not be read completely, with the reason.
    fn unreadable_folder(&mut self, path: &Path, reason: &str);
}

/// A regular file of the tree.
pub struct FoundFile<'a> {
    pub path: &'a PathBuf,
    pub real_path: &'a Path,
    pub stamp: FileStamp,
    folder: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl FoundFile<'_> {
    /// True if it was visited through a link.
    pub fn is_linked(&self) -> bool {
        !self.real_path.ends_with(self.path)
    }

    /// Reads its content, with the stamp at that time.
    pub fn read(&self) -> io::Result<(FileStamp, Vec<u8>)> {
        let file = openat(self.folder, self.name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
        read_open_file(file, MAX_FILE_BYTES)
    }
}

/// Visits the tree without what the rules ignore. The targets of links are visited last, in the order of the names of the links.
pub fn walk(root: &TreeRoot, rules: &IgnoreRules, visitor: &mut impl TreeVisitor) {
    let mut walk = Walk {
        root,
        rules,
        visitor,
        links: BTreeMap::new(),
        visited_through_links: None,
        entry_count: 0,
        file_count: 0,
    };
    walk.visit_folder(root.as_fd(), &mut PathBuf::new(), &mut root.path.clone(), 0);
    walk.visited_through_links = Some(HashSet::new());
    while let Some((path, link)) = walk.links.pop_first() {
        if !walk.is_over_limit() {
            walk.follow_link(path, &link);
        }
    }
    if walk.is_over_limit() {
        let reason =
            format!("contains more than {MAX_FILES} files or {MAX_ENTRIES} entries; the rest is not read");
        walk.visitor.unreadable_folder(Path::new(""), &reason);
    }
}

struct Walk<'a, V> {
    root: &'a TreeRoot,
    rules: &'a IgnoreRules,
    visitor: &'a mut V,
    links: BTreeMap<PathBuf, PendingLink>,
    /// The files and folders that were visited through links, so that each is visited once.
    visited_through_links: Option<HashSet<FileId>>,
    entry_count: usize,
    file_count: usize,
}

struct PendingLink {
    real_path: PathBuf,
    depth: usize,
}

impl<V: TreeVisitor> Walk<'_, V> {
    fn is_over_limit(&self) -> bool {
        self.entry_count > MAX_ENTRIES || self.file_count > MAX_FILES
    }

    fn is_first_visit(&mut self, id: FileId) -> bool {
        self.visited_through_links.as_mut().is_none_or(|linked| linked.insert(id))
    }

    /// Visits a folder. `path` and `real_path` have their original values on return.
    fn visit_folder(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        real_path: &mut PathBuf,
        depth: usize,
    ) {
        if let Err(error) = self.visit_entries(fd, path, real_path, depth) {
            self.visitor.unreadable_folder(path, &format!("cannot be read: {error}"));
        }
    }

    fn visit_entries(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        real_path: &mut PathBuf,
        depth: usize,
    ) -> rustix::io::Result<()> {
        let id = file_id(&fstat(fd)?);
        if !self.is_first_visit(id) {
            return Ok(());
        }
        self.visitor.visit_folder(real_path, id);
        if let Some(kind) = skill_file_type(fd, path) {
            self.visit_child(fd, path, real_path, OsStr::new(SKILL_FILE), kind, depth);
            return Ok(());
        }
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            self.entry_count += 1;
            if self.is_over_limit() {
                break;
            }
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let kind = entry.file_type();
            if name.eq_ignore_ascii_case(SKILL_FILE) && is_skill_file(&path.join(SKILL_FILE)) {
                let reason = format!("must be called {SKILL_FILE} to declare a skill");
                self.visitor.unreadable_file(&path.join(name), &reason);
            }
            if is_skipped(name) || kind == FileType::RegularFile && !is_declaration_name(name) {
                continue;
            }
            self.visit_child(fd, path, real_path, name, kind, depth);
        }
        Ok(())
    }

    fn visit_child(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        real_path: &mut PathBuf,
        name: &OsStr,
        kind: FileType,
        depth: usize,
    ) {
        path.push(name);
        real_path.push(name);
        self.visit_entry(fd, path, real_path, name, kind, depth);
        path.pop();
        real_path.pop();
    }

    fn visit_entry(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &mut PathBuf,
        real_path: &mut PathBuf,
        name: &OsStr,
        mut kind: FileType,
        depth: usize,
    ) {
        if kind == FileType::Unknown {
            match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                Err(_) => return,
            }
        }
        if self.rules.ignores(path, kind == FileType::Directory) {
            return;
        }
        match kind {
            FileType::Directory if depth == MAX_DEPTH => {
                self.visitor.unreadable_folder(path, "is nested too deeply; it is not read");
            }
            FileType::Directory => match openat(folder, name, OPEN_FOLDER_FLAGS, Mode::empty()) {
                Ok(fd) => self.visit_folder(fd.as_fd(), path, real_path, depth + 1),
                // It was deleted or replaced after it was listed; the next scan reads the new state.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => self.visitor.unreadable_folder(path, &format!("cannot be read: {error}")),
            },
            FileType::Symlink => {
                self.links.insert(path.clone(), PendingLink { real_path: real_path.clone(), depth });
            }
            FileType::RegularFile if is_declaration_path(path) => {
                self.visit_file(folder, path, real_path, name);
            }
            _ if is_declaration_path(path) => self.visitor.unreadable_file(path, "is not a regular file"),
            _ => {}
        }
    }

    fn visit_file(&mut self, folder: BorrowedFd<'_>, path: &mut PathBuf, real_path: &Path, name: &OsStr) {
        self.file_count += 1;
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // What a SKILL.md declares depends on its path.
            Ok(stat) if is_skill_file(path) || self.is_first_visit(file_id(&stat)) => {
                self.visitor.visit_file(&FoundFile {
                    path,
                    real_path,
                    stamp: FileStamp::of(&stat),
                    folder,
                    name,
                });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => self.visitor.unreadable_file(path, &format!("cannot be read: {error}")),
        }
    }

    /// Follows a link, if its target is below the root and is not visited anyway: if it is in a hidden folder, as in
    /// volumes that Kubernetes mounts, or has a name that is not that of a declaration.
    fn follow_link(&mut self, mut path: PathBuf, link: &PendingLink) {
        let is_declaration = is_declaration_path(&path);
        let is_in_skills = is_skill_file(&path.join(SKILL_FILE));
        let report = |visitor: &mut V, path: &Path, reason: &str| {
            if is_declaration {
                visitor.unreadable_file(path, reason);
            } else if is_in_skills {
                visitor.unreadable_folder(path, reason);
            }
        };
        let target = match std::fs::canonicalize(&link.real_path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return report(self.visitor, &path, "is a link whose target does not exist");
            }
            Err(error) => {
                return report(self.visitor, &path, &format!("is a link that cannot be followed: {error}"));
            }
        };
        let Ok(relative_path) = target.strip_prefix(&self.root.path) else {
            let reason = "is a link to a target outside the directory; it is not followed";
            if is_declaration {
                self.visitor.unreadable_file(&path, reason);
            } else if target.is_dir() {
                self.visitor.unreadable_folder(&path, reason);
            }
            return;
        };
        let is_hidden = relative_path.iter().any(is_skipped);
        let (folder, name, stat) = match self.root.locate(relative_path) {
            Ok(Some(found)) => found,
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            Err(error) => return report(self.visitor, &path, &format!("cannot be read: {error}")),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if link.depth < MAX_DEPTH => {
                match openat(&folder, name, OPEN_FOLDER_FLAGS, Mode::empty()) {
                    Ok(fd) => self.follow_folder_link(fd.as_fd(), path, relative_path, is_hidden, link.depth),
                    Err(error) => self.visitor.unreadable_folder(&path, &format!("cannot be read: {error}")),
                }
            }
            FileType::Directory => {}
            FileType::RegularFile if is_declaration => {
                let is_visited = if is_skill_file(&path) {
                    is_same_skill(&path, relative_path)
                } else {
                    is_declaration_path(relative_path)
                };
                if is_hidden || !is_visited {
                    self.visit_file(folder.as_fd(), &mut path, &target, name);
                }
            }
            _ if is_declaration => self.visitor.unreadable_file(&path, "is not a regular file"),
            _ => {}
        }
    }

    /// Visits the target of a link to a folder: all of it if it is hidden, and otherwise the skills that it has only
    /// because of the link.
    fn follow_folder_link(
        &mut self,
        fd: BorrowedFd<'_>,
        mut path: PathBuf,
        target: &Path,
        is_hidden: bool,
        depth: usize,
    ) {
        let mut real_path = self.root.path.join(target);
        let skill_file = path.join(SKILL_FILE);
        if is_skill_file(&skill_file)
            && let Some(kind) = skill_file_type(fd, &path)
        {
            if is_hidden || !is_same_skill(&skill_file, &target.join(SKILL_FILE)) {
                self.visit_child(fd, &mut path, &mut real_path, OsStr::new(SKILL_FILE), kind, depth + 1);
            }
        } else if is_hidden {
            self.visit_folder(fd, &mut path, &mut real_path, depth + 1);
        } else if is_skills_folder(&path)
            && !is_skills_folder(target)
            && let Err(error) = self.visit_linked_skills(fd, &path, &real_path, depth)
        {
            self.visitor.unreadable_folder(&path, &format!("cannot be read: {error}"));
        }
    }

    /// Visits the skills of a folder that is called `skills` only by a link. Nothing else in it depends on its name.
    fn visit_linked_skills(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &Path,
        real_path: &Path,
        depth: usize,
    ) -> rustix::io::Result<()> {
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            self.entry_count += 1;
            if self.is_over_limit() {
                break;
            }
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let (mut path, mut real_path) = (path.join(name), real_path.join(name));
            if is_skipped(name) || self.rules.ignores(&path, true) {
                continue;
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    self.links.insert(path, PendingLink { real_path, depth: depth + 1 });
                }
                FileType::Directory => {
                    let folder = openat(fd, name, OPEN_FOLDER_FLAGS, Mode::empty());
                    if let Ok(folder) = folder
                        && let Some(kind) = skill_file_type(folder.as_fd(), &path)
                    {
                        let name = OsStr::new(SKILL_FILE);
                        self.visit_child(folder.as_fd(), &mut path, &mut real_path, name, kind, depth + 1);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// True if both files declare a skill of the same name.
fn is_same_skill(path: &Path, other: &Path) -> bool {
    let folder_name = |path: &Path| path.parent().and_then(Path::file_name).map(ToOwned::to_owned);
    is_skill_file(path) && is_skill_file(other) && folder_name(path) == folder_name(other)
}

/// Returns the type of the SKILL.md in the folder of a skill; `None` for any other folder. The root is never the folder
/// of a skill.
fn skill_file_type(fd: BorrowedFd<'_>, path: &Path) -> Option<FileType> {
    let stat = statat(fd, SKILL_FILE, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    path.file_name().map(|_| FileType::from_raw_mode(stat.st_mode))
}
