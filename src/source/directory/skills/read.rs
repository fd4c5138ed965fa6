//! Reads the files of the folder of one skill. Blocks.
//!
//! Promises never to read outside the root of the tree: files are opened by name in their folders, and a link is
//! followed only if its target is in the tree and is neither hidden nor a declaration, which may hold secrets. An
//! unchanged file is not read again. What cannot be part of a skill is left out; it does not affect the rest.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::folder::SkillFolder;
use crate::resource::bundle::{
    SKILL_FILE, SkillError, SkillFile, SkillLimits, is_file_name, is_part_of_skill,
};
use crate::source::directory::tree::{
    FileId, FileStamp, OPEN_FLAGS, TreeRoot, file_id, read_failure, read_open_file,
};
use crate::source::parse::{is_declaration_name, mentions_declarations};

/// A callback for every folder that is read, with its real path.
pub type FolderVisitor<'a> = &'a mut dyn FnMut(&Path, FileId);

/// The number of entries that are read of the folder of one skill.
const MAX_ENTRIES: usize = 10_000;
/// The folders that tools create and that are no part of a skill.
const GENERATED_FOLDERS: [&str; 4] = [".git", ".venv", "__pycache__", "node_modules"];
/// The file that marks a folder as a virtual environment of Python.
const VENV_FILE: &str = "pyvenv.cfg";

/// Reads the folder `path` of the tree. Files that are unchanged since `last` are not read again.
///
/// Fails if the folder or its SKILL.md cannot be read.
pub fn read_skill_folder(
    root: &TreeRoot,
    path: &Path,
    last: Option<&SkillFolder>,
    wall_clock: Timestamp,
    visit: FolderVisitor<'_>,
) -> Result<SkillFolder, SkillError> {
    let unreadable =
        |error: &dyn std::fmt::Display| SkillError::for_file("", format!("cannot be read: {error}"));
    let real_path = std::fs::canonicalize(root.path.join(path)).map_err(|error| unreadable(&error))?;
    let Ok(folder) = real_path.strip_prefix(&root.path) else {
        return Err(SkillError::for_file(
            "",
            "is a link to a target outside the directory; it is not followed",
        ));
    };
    let fd = root.open_folder(folder).map_err(|error| unreadable(&error))?;
    let mut reader = FolderReader {
        root,
        folder: folder.to_owned(),
        last,
        wall_clock,
        visit,
        read: SkillFolder::default(),
        total_bytes: 0,
        entry_count: 0,
        open_folders: Vec::new(),
    };
    reader.read_folder(fd.as_fd(), "", folder, 0)?;
    Ok(reader.read)
}

struct FolderReader<'a> {
    root: &'a TreeRoot,
    /// The real path of the skill's folder, relative to the root.
    folder: PathBuf,
    last: Option<&'a SkillFolder>,
    wall_clock: Timestamp,
    visit: FolderVisitor<'a>,
    read: SkillFolder,
    total_bytes: usize,
    entry_count: usize,
    /// The folders that are being read, each in the one before it.
    open_folders: Vec<FileId>,
}

/// An entry of a folder. Entries are read in their order, so that the limits leave out the same files each time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    rank: EntryRank,
    name: String,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum EntryRank {
    SkillFile,
    File,
    Link,
    Folder,
}

/// An open folder: its path in the skill, and its real path relative to the root.
struct OpenFolder<'a> {
    fd: BorrowedFd<'a>,
    path: &'a str,
    real_path: &'a Path,
    depth: usize,
}

impl FolderReader<'_> {
    /// Reads a folder of the skill; `real_path` is relative to the root.
    fn read_folder(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &str,
        real_path: &Path,
        depth: usize,
    ) -> Result<(), SkillError> {
        let to_error = |error: Errno| SkillError::for_file(path, format!("cannot be read: {error}"));
        let id = file_id(&fstat(fd).map_err(to_error)?);
        if self.open_folders.contains(&id) {
            self.read.leave_out(path, "is a link to a folder that contains it");
            return Ok(());
        }
        if depth > SkillLimits::MAX_DEPTH {
            self.read.leave_out(path, "is nested too deeply");
            return Ok(());
        }
        if depth > 0 && statat(fd, VENV_FILE, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            self.read.leave_out(path, "is a virtual environment of Python");
            return Ok(());
        }
        (self.visit)(&self.root.path.join(real_path), id);
        self.open_folders.push(id);
        let folder = OpenFolder { fd, path, real_path, depth };
        for entry in self.list_entries(&folder).map_err(to_error)? {
            if self.read.len() >= SkillLimits::MAX_FILES {
                let reason = format!("contains more than {} files", SkillLimits::MAX_FILES);
                self.read.leave_out("", reason);
                break;
            }
            self.read_entry(&folder, &entry.name)?;
        }
        self.open_folders.pop();
        Ok(())
    }

    /// Returns the entries that may be part of the skill, in order.
    fn list_entries(&mut self, folder: &OpenFolder<'_>) -> rustix::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(folder.fd)? {
            let entry = entry?;
            self.entry_count += 1;
            if self.entry_count > MAX_ENTRIES {
                self.read.leave_out(folder.path, "contains too many files; the rest of them is not read");
                break;
            }
            let name = String::from_utf8_lossy(entry.file_name().to_bytes());
            let is_folder = entry.file_type() == FileType::Directory;
            if is_folder && GENERATED_FOLDERS.contains(&&*name) {
                self.read.leave_out(&child_path(folder.path, &name), "is a folder that a tool generated");
            } else if entry.file_name().to_str().is_err() || !is_file_name(&name) {
                if is_part_of_skill(&name) {
                    let reason = "has a name that is not valid UTF-8 or contains control characters";
                    self.read.leave_out(&child_path(folder.path, &name), reason);
                }
            } else {
                let rank = match entry.file_type() {
                    _ if folder.path.is_empty() && name == SKILL_FILE => EntryRank::SkillFile,
                    FileType::Directory => EntryRank::Folder,
                    FileType::Symlink => EntryRank::Link,
                    _ => EntryRank::File,
                };
                entries.push(Entry { rank, name: name.into_owned() });
            }
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn read_entry(&mut self, folder: &OpenFolder<'_>, name: &str) -> Result<(), SkillError> {
        let path = child_path(folder.path, name);
        let name = OsStr::new(name);
        // A file that is deleted during the scan is handled by the next scan.
        let Ok(stat) = statat(folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        let real_path = folder.real_path.join(name);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return self.read_target(folder.fd, &path, name, &stat, &real_path, folder.depth);
        }
        let target = match self.resolve_link(&real_path) {
            Ok(target) => target,
            Err(reason) => return self.fail_or_leave_out(&path, &reason),
        };
        let (parent, name, stat) = match self.root.locate(&target) {
            Ok(Some(located)) => located,
            // It was replaced meanwhile; the next scan reads the new state.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(SkillError::for_file(&path, format!("cannot be read: {error}"))),
        };
        if !target.starts_with(&self.folder) {
            self.read.add_linked_path(&self.root.path.join(&target));
            if let (Some(above), Ok(stat)) = (target.parent(), fstat(&parent)) {
                (self.visit)(&self.root.path.join(above), file_id(&stat));
            }
        }
        self.read_target(parent.as_fd(), &path, name, &stat, &target, folder.depth)
    }

    /// Returns the real path of the target of a link, relative to the root, or why the link is not followed.
    fn resolve_link(&self, link: &Path) -> Result<PathBuf, String> {
        let target =
            std::fs::canonicalize(self.root.path.join(link)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => "is a link whose target does not exist".to_owned(),
                _ => format!("is a link that cannot be followed: {error}"),
            })?;
        let Ok(target) = target.strip_prefix(&self.root.path) else {
            return Err("is a link to a target outside the directory; it is not followed".to_owned());
        };
        if self.folder.starts_with(target) {
            return Err("is a link to a folder that contains it".to_owned());
        }
        // Of the way from the skill to the target: the skill itself may be in a hidden folder.
        let way = target.iter().zip(self.folder.iter()).take_while(|(target, skill)| target == skill).count();
        let is_hidden = |name: &OsStr| name.as_bytes().starts_with(b".");
        if !target.starts_with(&self.folder) && target.iter().skip(way).any(is_hidden) {
            return Err("is a link to a hidden file or folder; it is not followed".to_owned());
        }
        Ok(target.to_owned())
    }

    /// Reads a file or folder that is no link.
    fn read_target(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &str,
        name: &OsStr,
        stat: &Stat,
        real_path: &Path,
        depth: usize,
    ) -> Result<(), SkillError> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.read_file(folder, path, name, stat, real_path),
            FileType::Directory if GENERATED_FOLDERS.iter().any(|generated| name == *generated) => {
                self.fail_or_leave_out(path, "is a folder that a tool generated")
            }
            FileType::Directory => {
                let flags = OPEN_FLAGS | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                match openat(folder, name, flags, Mode::empty()) {
                    Ok(folder) => self.read_folder(folder.as_fd(), path, real_path, depth + 1),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(error) => self.fail_with(path, &error.into()),
                }
            }
            _ => self.fail_or_leave_out(path, "is not a regular file"),
        }
    }

    fn read_file(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &str,
        name: &OsStr,
        stat: &Stat,
        real_path: &Path,
    ) -> Result<(), SkillError> {
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        let (max, max_total) = (SkillLimits::MAX_FILE_BYTES, SkillLimits::MAX_TOTAL_BYTES);
        if size > max {
            return self.fail_or_leave_out(path, &format!("is larger than {} MiB", max >> 20));
        }
        let executable = stat.st_mode & 0o100 != 0;
        let cached = self.last.and_then(|last| last.get(path));
        let (stamp, file) = match cached {
            Some((Some(stamp), file)) if *stamp == FileStamp::of(stat) => (Some(*stamp), file.clone()),
            _ => {
                let limit = u64::try_from(max).unwrap_or(u64::MAX);
                let read = openat(folder, name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(Into::into)
                    .and_then(|file| read_open_file(file, limit));
                let (stamp, bytes) = match read {
                    Ok(read) => read,
                    Err(error) => return self.fail_with(path, &error),
                };
                let stamp = Some(stamp).filter(|stamp| stamp.is_settled(self.wall_clock));
                match cached {
                    // Keeps the same bytes rather than equal ones: scans are compared by identity.
                    Some((_, file)) if *file.bytes == *bytes && file.executable == executable => {
                        (stamp, file.clone())
                    }
                    _ => (stamp, SkillFile::new(bytes, executable)),
                }
            }
        };
        let is_outside = !real_path.starts_with(&self.folder);
        if is_outside && is_declaration_name(name) && mentions_declarations(&file.bytes) {
            return self.fail_or_leave_out(path, "is a link to a file of declarations; it is not followed");
        }
        if self.total_bytes + file.bytes.len() > max_total {
            let reason = format!("does not fit into the {} MiB of a skill", max_total >> 20);
            return self.fail_or_leave_out(path, &reason);
        }
        self.total_bytes += file.bytes.len();
        self.read.insert(path, stamp, file);
        Ok(())
    }

    /// Leaves out what cannot be read because of its permissions or size. Another error may pass, and then the skill
    /// stays as it was.
    fn fail_with(&mut self, path: &str, error: &io::Error) -> Result<(), SkillError> {
        use io::ErrorKind::{FileTooLarge, InvalidInput, PermissionDenied};
        let reason = read_failure(error);
        if matches!(error.kind(), FileTooLarge | InvalidInput | PermissionDenied) {
            return self.fail_or_leave_out(path, &reason);
        }
        Err(SkillError::for_file(path, reason))
    }

    /// Leaves out a file or folder, unless it is SKILL.md, without which there is no skill.
    fn fail_or_leave_out(&mut self, path: &str, reason: &str) -> Result<(), SkillError> {
        if path == SKILL_FILE {
            return Err(SkillError::for_file(path, reason));
        }
        self.read.leave_out(path, reason);
        Ok(())
    }
}

/// Returns the path of an entry in the skill.
fn child_path(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}
