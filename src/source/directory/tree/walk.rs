//! The files of the tree that may hold declarations, as their paths tell. In the folder of a skill nothing but its
//! SKILL.md declares anything.
//!
//! Promises never to read outside the root: every folder and file is opened by name in its folder, and a link
//! only if its target lies below the root. Never waits for a file: what is not a regular one is not opened.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::read::{FileId, FileStamp, OPEN_FLAGS, content, file_id};
use crate::resource::bundle::SKILL_FILE;
use crate::source::parse::{is_declaration_name, is_declaration_path, is_skipped};

/// Larger files are not read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Deeper folders are not entered.
const MAX_DEPTH: usize = 32;
/// A larger tree is not read to its end.
const MAX_ENTRIES: usize = 500_000;
const MAX_FILES: usize = 100_000;

/// Told what a walk meets; `path` is always relative to the root.
pub trait TreeVisitor {
    /// A folder that is about to be read, by its real path.
    fn visit_folder(&mut self, real: &Path, id: FileId);
    /// A file that may hold declarations.
    fn visit_file(&mut self, file: &FoundFile<'_>);
    /// A file that cannot be read, and why.
    fn unreadable_file(&mut self, path: &Path, why: &str);
    /// A folder of which not all could be seen, and why.
    fn unreadable_folder(&mut self, path: &Path, why: &str);
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
    /// Its content, with the stamp it had then.
    pub fn read(&self) -> io::Result<(FileStamp, Vec<u8>)> {
        let file = openat(self.folder, self.name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
        content(file, MAX_FILE_BYTES)
    }
}

/// The resolved root: links to it may flip, this stays what it is.
pub struct TreeRoot {
    /// Without links.
    pub path: PathBuf,
    id: FileId,
    fd: OwnedFd,
}

impl TreeRoot {
    /// Resolves and opens the root.
    pub fn open(given: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(given)?;
        let fd = openat(CWD, &path, OPEN_FOLDER_FLAGS, Mode::empty())?;
        let id = file_id(&fstat(&fd)?);
        Ok(Self { path, id, fd })
    }

    /// The folder itself, once more.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Whether this is the same folder by the same path.
    pub fn is_same(&self, other: &Self) -> bool {
        self.path == other.path && self.id == other.id
    }

    /// Goes down from the root without following a link: the folder of the target, its name there, and what
    /// it is. `None` for the root itself.
    pub fn locate<'p>(
        &self,
        below: &'p Path,
    ) -> rustix::io::Result<Option<(OwnedFd, &'p OsStr, rustix::fs::Stat)>> {
        let Some(name) = below.file_name() else {
            return Ok(None);
        };
        let mut folder = self.fd.try_clone().map_err(|_| Errno::MFILE)?;
        for part in below.parent().into_iter().flatten() {
            folder = openat(&folder, part, OPEN_FOLDER_FLAGS, Mode::empty())?;
        }
        let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some((folder, name, stat)))
    }
}

/// Visits the tree, and last of all what is reached by links, in the order of their names.
pub fn walk(root: &TreeRoot, visitor: &mut impl TreeVisitor) {
    let mut walk = Walk {
        root,
        visitor,
        links: BTreeMap::new(),
        visited_through_links: None,
        entry_count: 0,
        file_count: 0,
    };
    walk.visit_folder(root.fd.as_fd(), &mut PathBuf::new(), &mut root.path.clone(), 0);
    walk.visited_through_links = Some(HashSet::new());
    while let Some((path, link)) = walk.links.pop_first() {
        if !walk.is_over_limit() {
            walk.follow_link(path, &link);
        }
    }
    if walk.is_over_limit() {
        let why = format!("holds more than {MAX_FILES} files or {MAX_ENTRIES} entries; the rest is not read");
        walk.visitor.unreadable_folder(Path::new(""), &why);
    }
}

const OPEN_FOLDER_FLAGS: OFlags = OPEN_FLAGS.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

struct Walk<'a, V> {
    root: &'a TreeRoot,
    visitor: &'a mut V,
    links: BTreeMap<PathBuf, PendingLink>,
    /// What was reached by links, so that it is met once.
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

    /// `path` and `real` are given back as they were.
    fn visit_folder(&mut self, fd: BorrowedFd<'_>, path: &mut PathBuf, real: &mut PathBuf, depth: usize) {
        if let Err(error) = self.visit_entries(fd, path, real, depth) {
            self.visitor.unreadable_folder(path, &format!("cannot be read: {error}"));
        }
    }

    fn visit_entries(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        real: &mut PathBuf,
        depth: usize,
    ) -> rustix::io::Result<()> {
        let id = file_id(&fstat(fd)?);
        if !self.is_first_visit(id) {
            return Ok(());
        }
        self.visitor.visit_folder(real, id);
        if let Some(kind) = skill_file_type(fd, path) {
            self.visit_child(fd, path, real, OsStr::new(SKILL_FILE), kind, depth);
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
            if is_skipped(name) || kind == FileType::RegularFile && !is_declaration_name(name) {
                continue;
            }
            self.visit_child(fd, path, real, name, kind, depth);
        }
        Ok(())
    }

    fn visit_child(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        real: &mut PathBuf,
        name: &OsStr,
        kind: FileType,
        depth: usize,
    ) {
        path.push(name);
        real.push(name);
        self.visit_entry(fd, path, real, name, kind, depth);
        path.pop();
        real.pop();
    }

    fn visit_entry(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &mut PathBuf,
        real: &mut PathBuf,
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
        match kind {
            FileType::Directory if depth == MAX_DEPTH => {
                self.visitor.unreadable_folder(path, "is nested too deeply and is not read");
            }
            FileType::Directory => match openat(folder, name, OPEN_FOLDER_FLAGS, Mode::empty()) {
                Ok(fd) => self.visit_folder(fd.as_fd(), path, real, depth + 1),
                // It went, or became something else, since it was listed: the next look sees what.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => self.visitor.unreadable_folder(path, &format!("cannot be read: {error}")),
            },
            FileType::Symlink => {
                self.links.insert(path.clone(), PendingLink { real_path: real.clone(), depth });
            }
            FileType::RegularFile if is_declaration_path(path) => self.visit_file(folder, path, real, name),
            _ if is_declaration_path(path) => self.visitor.unreadable_file(path, "is not a regular file"),
            _ => {}
        }
    }

    fn visit_file(&mut self, folder: BorrowedFd<'_>, path: &mut PathBuf, real: &Path, name: &OsStr) {
        self.file_count += 1;
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.is_first_visit(file_id(&stat)) => {
                self.visitor.visit_file(&FoundFile {
                    path,
                    real_path: real,
                    stamp: FileStamp::of(&stat),
                    folder,
                    name,
                });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => self.visitor.unreadable_file(path, &format!("cannot be read: {error}")),
        }
    }

    /// A link counts only if its target is below the root and is not met anyway: behind a hidden name, as in
    /// volumes that Kubernetes mounts, or under a name that is not a declaration's.
    fn follow_link(&mut self, mut path: PathBuf, link: &PendingLink) {
        let declaration = is_declaration_path(&path);
        let refuse = |visitor: &mut V, path: &Path, why: &str| {
            if declaration {
                visitor.unreadable_file(path, why);
            }
        };
        let target = match std::fs::canonicalize(&link.real_path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return refuse(self.visitor, &path, "is a link to something that does not exist");
            }
            Err(error) => {
                return refuse(self.visitor, &path, &format!("is a link that cannot be followed: {error}"));
            }
        };
        let Ok(below) = target.strip_prefix(&self.root.path) else {
            let why = "is a link that leaves the directory, and is not followed";
            if !declaration && target.is_dir() {
                self.visitor.unreadable_folder(&path, why);
            }
            return refuse(self.visitor, &path, why);
        };
        let hidden = below.iter().any(is_skipped);
        let (folder, name, stat) = match self.root.locate(below) {
            Ok(Some(found)) => found,
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            Err(error) => return refuse(self.visitor, &path, &format!("cannot be read: {error}")),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if hidden && link.depth < MAX_DEPTH => {
                match openat(&folder, name, OPEN_FOLDER_FLAGS, Mode::empty()) {
                    Ok(fd) => self.visit_folder(fd.as_fd(), &mut path, &mut target.clone(), link.depth + 1),
                    Err(error) => self.visitor.unreadable_folder(&path, &format!("cannot be read: {error}")),
                }
            }
            FileType::Directory => {}
            FileType::RegularFile if declaration => {
                if hidden || !is_declaration_path(below) {
                    self.visit_file(folder.as_fd(), &mut path, &target, name);
                }
            }
            _ => refuse(self.visitor, &path, "is not a regular file"),
        }
    }
}

/// What SKILL.md is in the folder of a skill; `None` in any other. The root is none, whatever it holds.
fn skill_file_type(fd: BorrowedFd<'_>, path: &Path) -> Option<FileType> {
    let stat = statat(fd, SKILL_FILE, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    path.file_name().map(|_| FileType::from_raw_mode(stat.st_mode))
}
