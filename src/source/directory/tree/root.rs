//! Opens what is below the root of a tree. Blocks.
//!
//! Promises never to open anything outside the root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::read::{FileId, FileStamp, OPEN_FLAGS, file_id, read_open_file};

/// The flags with which a folder is opened; a link is not followed.
pub const OPEN_FOLDER_FLAGS: OFlags = OPEN_FLAGS.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);

/// The resolved root. It stays the same directory if links to it are replaced.
pub struct TreeRoot {
    /// The path without links.
    pub path: PathBuf,
    id: FileId,
    fd: OwnedFd,
}

impl TreeRoot {
    /// Resolves and opens the root.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let fd = openat(CWD, &path, OPEN_FOLDER_FLAGS, Mode::empty())?;
        let id = file_id(&fstat(&fd)?);
        Ok(Self { path, id, fd })
    }

    /// Returns the descriptor of the folder.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a folder below the root, or the root itself, without following a link.
    pub fn open_folder(&self, relative_path: &Path) -> rustix::io::Result<OwnedFd> {
        let mut folder = self.fd.try_clone().map_err(|_| Errno::MFILE)?;
        for component in relative_path {
            folder = openat(&folder, component, OPEN_FOLDER_FLAGS, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Reads a file of at most `limit` bytes. A link is followed if its target is below the root.
    ///
    /// Errors: those of the system; `InvalidInput` if the target is outside the root or is not a regular file;
    /// `FileTooLarge`.
    pub fn read_file(&self, relative_path: &Path, limit: u64) -> io::Result<(FileStamp, Vec<u8>)> {
        let target = std::fs::canonicalize(self.path.join(relative_path))?;
        let Ok(relative_target) = target.strip_prefix(&self.path) else {
            let message = "is a link to a target outside the directory; it is not followed";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let Some((folder, name, _)) = self.locate(relative_target)? else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
        };
        read_open_file(openat(folder, name, OPEN_FLAGS | OFlags::NOFOLLOW, Mode::empty())?, limit)
    }

    /// True if this is the same folder at the same path.
    pub fn is_same(&self, other: &Self) -> bool {
        self.path == other.path && self.id == other.id
    }

    /// Resolves a path below the root without following a link: returns the folder of the target, the name of the
    /// target in it, and its metadata. Returns `None` for the root itself.
    pub fn locate<'p>(
        &self,
        relative_path: &'p Path,
    ) -> rustix::io::Result<Option<(OwnedFd, &'p OsStr, rustix::fs::Stat)>> {
        let Some(name) = relative_path.file_name() else {
            return Ok(None);
        };
        let folder = self.open_folder(relative_path.parent().unwrap_or(Path::new("")))?;
        let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some((folder, name, stat)))
    }
}
