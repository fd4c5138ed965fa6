//! The files of one skill's folder. Blocks.
//!
//! Promises never to read outside the folder: files are opened by name in their folders, and a link only if it
//! leads to a file of the same skill, as in volumes that Kubernetes mounts. A file that has not changed is not
//! read again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use crate::resource::bundle::{SkillError, SkillFile, SkillLimits, is_part_of_skill};
use crate::source::directory::tree::{FileId, FileStamp, OPEN_FLAGS, TreeRoot, content, file_id, why};

/// Told of every folder that is read, by its real path.
pub type FolderVisitor<'a> = &'a mut dyn FnMut(&Path, FileId);

/// More names than these in one folder are not looked at: most are passed over then.
const MAX_FOLDER_ENTRIES: usize = 10_000;

/// The files of a folder, as they were read.
#[derive(Clone, Default)]
pub struct SkillFolder(BTreeMap<Arc<str>, (Option<FileStamp>, SkillFile)>);

impl SkillFolder {
    /// Whether both hold the same.
    pub fn has_same_files(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((name, (_, file)), (other, (_, content)))| name == other && file == content)
    }

    /// By their paths in the folder.
    pub fn files(&self) -> BTreeMap<Arc<str>, SkillFile> {
        self.0.iter().map(|(name, (_, file))| (name.clone(), file.clone())).collect()
    }
}

/// Reads the folder `path` of the tree, as far as it differs from `last`.
pub fn folder(
    root: &TreeRoot,
    path: &Path,
    last: Option<&SkillFolder>,
    clock: Timestamp,
    meet: FolderVisitor<'_>,
) -> Result<SkillFolder, SkillError> {
    let given = root.path.join(path);
    let folder = TreeRoot::open(&given)
        .map_err(|error| SkillError::for_file("", format!("cannot be read: {error}")))?;
    if !folder.path.starts_with(&root.path) {
        return Err(SkillError::for_file("", "is a link that leaves the directory, and is not followed"));
    }
    let mut reader = FolderReader {
        root: &folder,
        last,
        wall_clock: clock,
        visit: meet,
        files: SkillFolder::default(),
        total_bytes: 0,
    };
    let fd = folder
        .try_clone_fd()
        .map_err(|error| SkillError::for_file("", format!("cannot be read: {error}")))?;
    reader.read_folder(fd.as_fd(), "", 0)?;
    Ok(reader.files)
}

struct FolderReader<'a> {
    root: &'a TreeRoot,
    last: Option<&'a SkillFolder>,
    wall_clock: Timestamp,
    visit: FolderVisitor<'a>,
    files: SkillFolder,
    total_bytes: usize,
}

impl FolderReader<'_> {
    fn read_folder(&mut self, fd: BorrowedFd<'_>, path: &str, depth: usize) -> Result<(), SkillError> {
        let failed =
            |error: rustix::io::Errno| SkillError::for_file(path, format!("cannot be read: {error}"));
        if depth > SkillLimits::MAX_DEPTH {
            return Err(SkillError::for_file(path, "is nested too deeply"));
        }
        (self.visit)(&self.root.path.join(path), file_id(&fstat(fd).map_err(failed)?));
        for (count, entry) in Dir::read_from(fd).map_err(failed)?.enumerate() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if count > MAX_FOLDER_ENTRIES {
                return Err(SkillError::for_file(path, "holds too many files"));
            }
            let Ok(name) = name.to_str() else {
                return Err(SkillError::for_file(path, "holds a file whose name is not UTF-8"));
            };
            if !is_part_of_skill(name) {
                continue;
            }
            let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            self.read_entry(fd, &below, OsStr::from_bytes(name.as_bytes()), depth)?;
        }
        Ok(())
    }

    fn read_entry(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &str,
        name: &OsStr,
        depth: usize,
    ) -> Result<(), SkillError> {
        // What goes while it is read is met as it is at the next look.
        let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let opened =
                    openat(fd, name, OPEN_FLAGS | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                let opened =
                    opened.map_err(|error| SkillError::for_file(path, format!("cannot be read: {error}")))?;
                self.read_folder(opened.as_fd(), path, depth + 1)
            }
            FileType::RegularFile => self.read_file(fd, path, name, &stat),
            FileType::Symlink => {
                let (fd, stat) = self.resolve_link(path)?;
                let name = fd.1;
                self.read_file(fd.0.as_fd(), path, OsStr::from_bytes(name.as_bytes()), &stat)
            }
            _ => Err(SkillError::for_file(path, "is not a regular file")),
        }
    }

    /// What a link leads to, if that is a file of this skill.
    fn resolve_link(&self, path: &str) -> Result<((OwnedFd, String), Stat), SkillError> {
        let elsewhere = || {
            SkillError::for_file(path, "is a link that leads to no file of this skill, and is not followed")
        };
        let real = std::fs::canonicalize(self.root.path.join(path)).map_err(|_| elsewhere())?;
        let below = real.strip_prefix(&self.root.path).map_err(|_| elsewhere())?;
        match self.root.locate(below) {
            Ok(Some((fd, name, stat))) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(((fd, name.to_string_lossy().into_owned()), stat))
            }
            _ => Err(elsewhere()),
        }
    }

    fn read_file(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &str,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<(), SkillError> {
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        self.total_bytes = self.total_bytes.saturating_add(size);
        if self.files.0.len() >= SkillLimits::MAX_FILES || self.total_bytes > SkillLimits::MAX_TOTAL_BYTES {
            let (files, total) = (SkillLimits::MAX_FILES, SkillLimits::MAX_TOTAL_BYTES >> 20);
            return Err(SkillError::for_file("", format!("holds more than {files} files or {total} MiB")));
        }
        let executable = stat.st_mode & 0o100 != 0;
        let known = self.last.and_then(|last| last.0.get(path));
        let read = match known {
            Some((Some(stamp), file)) if *stamp == FileStamp::of(stat) => (Some(*stamp), file.clone()),
            _ => {
                let limit = u64::try_from(SkillLimits::MAX_FILE_BYTES).unwrap_or(u64::MAX);
                let read = openat(fd, name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(Into::into)
                    .and_then(|file| content(file, limit));
                let (stamp, bytes) = read.map_err(|error| SkillError::for_file(path, why(&error)))?;
                let stamp = Some(stamp).filter(|stamp| stamp.is_settled(self.wall_clock));
                match known {
                    // The same bytes, not equal ones: two looks are compared by them.
                    Some((_, file)) if *file.bytes == *bytes && file.executable == executable => {
                        (stamp, file.clone())
                    }
                    _ => (stamp, SkillFile::new(bytes, executable)),
                }
            }
        };
        self.files.0.insert(path.into(), read);
        Ok(())
    }
}
