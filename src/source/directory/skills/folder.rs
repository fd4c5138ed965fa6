//! Reads the files of the folder of one skill. Blocks.
//!
//! Promises never to read outside the folder: files are opened by name in their folders, and a link is followed only if
//! its target is a file of the same skill, as in volumes that Kubernetes mounts. An unchanged file is not read again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use crate::resource::bundle::{SkillError, SkillFile, SkillLimits, is_part_of_skill};
use crate::source::directory::tree::{
    FileId, FileStamp, OPEN_FLAGS, TreeRoot, file_id, read_failure, read_open_file,
};

/// A callback for every folder that is read, with its real path.
pub type FolderVisitor<'a> = &'a mut dyn FnMut(&Path, FileId);

/// The number of entries of a folder above which it is not read; most of such entries would be skipped.
const MAX_FOLDER_ENTRIES: usize = 10_000;

/// The files of a folder, as they were read.
#[derive(Clone, Default)]
pub struct SkillFolder(BTreeMap<Arc<str>, (Option<FileStamp>, SkillFile)>);

impl SkillFolder {
    /// True if both contain the same files.
    pub fn has_same_files(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((name, (_, file)), (other, (_, other_file)))| name == other && file == other_file)
    }

    /// Returns the files by their paths in the folder.
    pub fn files(&self) -> BTreeMap<Arc<str>, SkillFile> {
        self.0.iter().map(|(name, (_, file))| (name.clone(), file.clone())).collect()
    }
}

/// Reads the folder `path` of the tree. Files that are unchanged since `last` are not read again.
pub fn read_skill_folder(
    root: &TreeRoot,
    path: &Path,
    last: Option<&SkillFolder>,
    wall_clock: Timestamp,
    visit: FolderVisitor<'_>,
) -> Result<SkillFolder, SkillError> {
    let requested_path = root.path.join(path);
    let folder = TreeRoot::open(&requested_path)
        .map_err(|error| SkillError::for_file("", format!("cannot be read: {error}")))?;
    if !folder.path.starts_with(&root.path) {
        return Err(SkillError::for_file(
            "",
            "is a link to a target outside the directory; it is not followed",
        ));
    }
    let mut reader = FolderReader {
        root: &folder,
        last,
        wall_clock,
        visit,
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
        let to_error =
            |error: rustix::io::Errno| SkillError::for_file(path, format!("cannot be read: {error}"));
        if depth > SkillLimits::MAX_DEPTH {
            return Err(SkillError::for_file(path, "is nested too deeply"));
        }
        (self.visit)(&self.root.path.join(path), file_id(&fstat(fd).map_err(to_error)?));
        for (count, entry) in Dir::read_from(fd).map_err(to_error)?.enumerate() {
            let entry = entry.map_err(to_error)?;
            let name = entry.file_name();
            if count > MAX_FOLDER_ENTRIES {
                return Err(SkillError::for_file(path, "contains too many files"));
            }
            let Ok(name) = name.to_str() else {
                return Err(SkillError::for_file(path, "contains a file whose name is not valid UTF-8"));
            };
            if !is_part_of_skill(name) {
                continue;
            }
            let entry_path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            self.read_entry(fd, &entry_path, OsStr::from_bytes(name.as_bytes()), depth)?;
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
        // A file that is deleted during the scan is handled by the next scan.
        let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let folder =
                    openat(fd, name, OPEN_FLAGS | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                let folder =
                    folder.map_err(|error| SkillError::for_file(path, format!("cannot be read: {error}")))?;
                self.read_folder(folder.as_fd(), path, depth + 1)
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

    /// Resolves a link, if its target is a file of this skill.
    fn resolve_link(&self, path: &str) -> Result<((OwnedFd, String), Stat), SkillError> {
        let outside = || {
            SkillError::for_file(
                path,
                "is a link to a target that is not a file of this skill; it is not followed",
            )
        };
        let real_path = std::fs::canonicalize(self.root.path.join(path)).map_err(|_| outside())?;
        let relative_path = real_path.strip_prefix(&self.root.path).map_err(|_| outside())?;
        match self.root.locate(relative_path) {
            Ok(Some((fd, name, stat))) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(((fd, name.to_string_lossy().into_owned()), stat))
            }
            _ => Err(outside()),
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
            return Err(SkillError::for_file("", format!("contains more than {files} files or {total} MiB")));
        }
        let executable = stat.st_mode & 0o100 != 0;
        let cached = self.last.and_then(|last| last.0.get(path));
        let read = match cached {
            Some((Some(stamp), file)) if *stamp == FileStamp::of(stat) => (Some(*stamp), file.clone()),
            _ => {
                let limit = u64::try_from(SkillLimits::MAX_FILE_BYTES).unwrap_or(u64::MAX);
                let read = openat(fd, name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(Into::into)
                    .and_then(|file| read_open_file(file, limit));
                let (stamp, bytes) =
                    read.map_err(|error| SkillError::for_file(path, read_failure(&error)))?;
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
        self.files.0.insert(path.into(), read);
        Ok(())
    }
}
