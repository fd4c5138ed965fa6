//! Reads files that other programs may have created: only regular files, and without ever waiting for one.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};

/// The attributes that show whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The device and inode, which identify a directory or file as long as it exists.
pub type FileId = (u64, u64);

impl FileStamp {
    #[allow(clippy::useless_conversion, reason = "the types differ by platform")]
    pub fn of(stat: &Stat) -> Self {
        let (device, inode) = file_id(stat);
        Self {
            device,
            inode,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime.into(), i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            changed: (stat.st_ctime.into(), i64::try_from(stat.st_ctime_nsec).unwrap_or_default()),
        }
    }

    /// True if any later write must change the stamp. Clocks of file systems are coarse: a file may be written twice
    /// within one tick, so a stamp proves nothing until its last change is at least a second old.
    pub fn is_settled(&self, now: jiff::Timestamp) -> bool {
        self.changed.0 < now.as_second() - 1
    }
}

/// Returns the identity of a file from its metadata.
#[allow(clippy::useless_conversion, reason = "the types differ by platform")]
pub fn file_id(stat: &Stat) -> FileId {
    (u64::try_from(stat.st_dev).unwrap_or_default(), stat.st_ino.into())
}

/// Reads a file of at most `limit` bytes. Links are followed.
///
/// Errors: those of the system; `InvalidInput` if it is not a regular file; `FileTooLarge`.
pub fn read_file(path: &Path, limit: u64) -> io::Result<(FileStamp, Vec<u8>)> {
    let file = openat(CWD, path, OPEN_FLAGS, Mode::empty())?;
    read_open_file(file, limit)
}

/// The flags with which a file of unknown type is opened: opening must not wait for a writer, nor make a terminal the
/// controlling one.
pub const OPEN_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Reads an open file; see [`read_file`].
pub fn read_open_file(file: OwnedFd, limit: u64) -> io::Result<(FileStamp, Vec<u8>)> {
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(file).take(limit + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        let limit_text =
            if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{} KiB", limit >> 10) };
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {limit_text}")));
    }
    Ok((FileStamp::of(&stat), bytes))
}

/// Returns the reason a file cannot be read, as the end of a sentence that begins with the file.
pub fn read_failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge => error.to_string(),
        _ => format!("cannot be read: {error}"),
    }
}
