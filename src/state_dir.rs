//! The state directory: files that must survive a restart or that other commands read.
//!
//! Each source directory has one, outside the watched tree and readable by its owner only. Promises that a file in it
//! is complete or absent whenever the process dies, except for appended data, and that a second instance on the same
//! directory cannot start. Never contains a resolved secret of a declaration. All methods block, so call them only at startup or on
//! blocking threads.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use tempfile::Builder;

use crate::resource::Digest;

/// The name of the lock file.
const LOCK_FILE: &str = "lock";
/// The prefix of the names of files that are not completely written yet.
const TEMPORARY_PREFIX: &str = ".tmp";
/// The name of the file that contains the path of the source directory.
const SOURCE_FILE: &str = "source";

/// Returns the parent of all state directories: `$XDG_STATE_HOME/evenkeel`, or else `~/.local/state/evenkeel`; `None`
/// if neither variable is set.
pub fn state_home(xdg_state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    Some(xdg_base_dir(xdg_state_home, home, ".local/state")?.join("evenkeel"))
}

/// Returns the directory from a variable of the XDG Base Directory specification, or else `below` the home directory;
/// `None` if neither variable is set. The specification says that relative values are ignored.
pub(crate) fn xdg_base_dir(xdg: Option<OsString>, home: Option<OsString>, below: &str) -> Option<PathBuf> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let home = || Some(absolute(home?)?.join(below));
    xdg.and_then(absolute).or_else(home)
}

/// The state directory of one source directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    source: PathBuf,
}

/// The lock of a source directory, held by its only instance. Dropping it or ending the process releases the lock.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct StateLock(#[expect(dead_code, reason = "the open file holds the lock")] File);

/// The reason for which the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another instance holds the lock.
    #[error(
        "an evenkeel instance is already running on {}, as process {}; stop it, or use it",
        directory.as_ref().map_or_else(
            || "this directory".to_owned(),
            |other| format!("this directory, given as {}", other.display())
        ),
        pid.as_deref().unwrap_or("unknown")
    )]
    Locked {
        /// The process id of the other instance, if it has already written it.
        pid: Option<String>,
        /// The path under which the other instance uses the directory, if it differs from the given path.
        directory: Option<PathBuf>,
    },
    /// A file operation failed.
    #[error("state directory {}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        #[source]
        error: io::Error,
    },
}

impl StateDir {
    /// Opens the state directory of `source` below `home`, and creates it if necessary.
    ///
    /// `source` is the absolute form of the given path. Symbolic links are not resolved, because a link that is
    /// switched to another checkout is still the same source.
    pub fn open(home: &Path, source: &Path) -> Result<Self, StateError> {
        let path = Self::path_for(home, source);
        let io_error = |error| StateError::Io { path: path.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io_error)?;
        let mode = fs::metadata(&path).map_err(io_error)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(io_error)?;
        }
        Ok(Self { path, source: source.to_owned() })
    }

    /// Returns the path of the state directory of `source`, even if it does not exist.
    pub fn path_for(home: &Path, source: &Path) -> PathBuf {
        home.join(directory_name(source))
    }

    /// Returns the path of the directory, for sockets and for files that other programs read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Acquires the lock without waiting, and removes incomplete files that a killed instance left behind.
    ///
    /// Fails if another instance holds it, including an instance that uses the same source directory under another
    /// path.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let lock = self.try_lock(None)?;
        remove_temporary_files(&self.path, true);
        self.write(SOURCE_FILE, self.source.as_os_str().as_bytes())?;
        for other in self.others_of_same_source() {
            drop(other.try_lock(Some(&other.source))?);
        }
        Ok(lock)
    }

    /// Returns the other state directories of the same source directory.
    fn others_of_same_source(&self) -> impl Iterator<Item = Self> + use<'_> {
        let file_id = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let own_id = file_id(&self.source);
        let entries =
            self.path.parent().filter(|_| own_id.is_some()).and_then(|home| fs::read_dir(home).ok());
        entries.into_iter().flatten().filter_map(move |entry| {
            let other = Self { path: entry.ok()?.path(), source: PathBuf::new() };
            let source = PathBuf::from(OsString::from_vec(other.read(SOURCE_FILE).ok()??));
            (other.path != self.path && file_id(&source) == own_id).then_some(Self { source, ..other })
        })
    }

    fn try_lock(&self, given_as: Option<&Path>) -> Result<StateLock, StateError> {
        let path = self.path.join(LOCK_FILE);
        let io_error = |error| StateError::Io { path: path.clone(), error };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(io_error)?;
                writeln!(file, "{}", std::process::id()).map_err(io_error)?;
                Ok(StateLock(file))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The lock is held even if its pid cannot be read.
                let _ = file.take(32).read_to_string(&mut text);
                let pid = Some(text.trim().to_owned()).filter(|pid| !pid.is_empty());
                Err(StateError::Locked { pid, directory: given_as.map(Path::to_owned) })
            }
            Err(TryLockError::Error(error)) => Err(io_error(error)),
        }
    }

    /// Returns the 32-byte key called `name`. The first call generates it; later calls and runs return the same key.
    pub fn key(&self, name: &str) -> Result<[u8; 32], StateError> {
        let io_error = |error| StateError::Io { path: self.path.join(name), error };
        if let Some(bytes) = self.read(name)? {
            return bytes.try_into().map_err(|_| {
                io_error(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "not a 32-byte key; delete this file and start evenkeel again",
                ))
            });
        }
        let mut key = [0; 32];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| io_error(io::Error::other("the system random number generator failed")))?;
        self.write_atomically(name, &key, true)?;
        Ok(key)
    }

    /// Returns the content of a file; `None` if it does not exist.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::Io { path, error }),
        }
    }

    /// Replaces a file (mode 0600) atomically. `name` may contain one folder, which is created.
    ///
    /// A crash of the process leaves the old or the new content. A power failure may lose the last writes.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.write_atomically(name, bytes, false)
    }

    /// Appends to a file (mode 0600), which is created if it does not exist. A crash may truncate the appended data.
    pub fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let appended = open().and_then(|mut file| file.write_all(bytes));
        appended.map_err(|error| StateError::Io { path: path.clone(), error })
    }

    /// Removes a file. Succeeds if it does not exist.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io { path, error }),
            _ => Ok(()),
        }
    }

    /// Returns the sorted names (`folder/file`) of the files in a folder; empty if the folder does not exist.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let path = self.path.join(folder);
        let io_error = |error| StateError::Io { path: path.clone(), error };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error)?.file_name();
            if let Some(name) = name.to_str().filter(|name| !name.starts_with(TEMPORARY_PREFIX)) {
                names.push(format!("{folder}/{name}"));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn write_atomically(&self, name: &str, bytes: &[u8], durable: bool) -> Result<(), StateError> {
        let path = self.path.join(name);
        let folder = path.parent().unwrap_or(&self.path);
        // The temporary file is hidden, has mode 0600 and is deleted if it does not replace the target.
        let create_temporary = || Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder);
        let write = || -> io::Result<()> {
            let mut file = match create_temporary() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                    create_temporary()?
                }
                other => other?,
            };
            file.write_all(bytes)?;
            if durable {
                file.as_file().sync_all()?;
            }
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|error| StateError::Io { path: path.clone(), error })
    }
}

/// Removes incomplete files from a folder and, if `below` is true, from its direct subfolders. Errors are ignored.
fn remove_temporary_files(folder: &Path, recursive: bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && recursive {
            remove_temporary_files(&entry.path(), false);
        } else if kind.is_file() && entry.file_name().as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Returns the last component of the path, for readability, and a digest of the whole path, for uniqueness.
fn directory_name(source: &Path) -> String {
    let readable: String = source
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() || matches!(char, '-' | '_') { char } else { '-' })
        .take(32)
        .collect();
    let digest = Digest::of(source.as_os_str().as_bytes()).hex_prefix(10);
    if readable.is_empty() { format!("root-{digest}") } else { format!("{readable}-{digest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_state_dir(home: &tempfile::TempDir) -> StateDir {
        StateDir::open(home.path(), Path::new("/srv/mcp/my team")).unwrap()
    }

    #[test]
    fn state_home_follows_xdg() {
        for (xdg, home, expected) in [
            (Some("/x"), Some("/h"), Some("/x/evenkeel")),
            (None, Some("/h"), Some("/h/.local/state/evenkeel")),
            (Some("relative"), Some("/h"), Some("/h/.local/state/evenkeel")),
            (Some(""), None, None),
            (None, None, None),
        ] {
            let state_home = state_home(xdg.map(OsString::from), home.map(OsString::from));
            assert_eq!(state_home, expected.map(PathBuf::from), "{xdg:?} {home:?}");
        }
    }

    #[test]
    fn directory_name_is_unique_per_source_path() {
        let name = |path: &str| directory_name(Path::new(path));
        assert!(name("/srv/mcp/my team").starts_with("my-team-"));
        assert_ne!(name("/a/fleet"), name("/b/fleet"));
        assert!(name("/").starts_with("root-"));
        assert!(name(&format!("/{}", "x".repeat(300))).len() < 64);
    }

    #[test]
    fn state_files_are_readable_by_the_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        state.write("declarations/a", b"x").unwrap();
        state.key("digests").unwrap();
        let _lock = state.lock().unwrap();
        let mode = |name: &str| {
            let path = state.path().join(name);
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(""), 0o700);
        for (name, expected) in
            [("declarations", 0o700), ("declarations/a", 0o600), ("digests", 0o600), ("lock", 0o600)]
        {
            assert_eq!(mode(name), expected, "{name}");
        }

        fs::set_permissions(state.path(), Permissions::from_mode(0o755)).unwrap();
        open_state_dir(&home);
        assert_eq!(mode(""), 0o700, "permissions for others are removed");
    }

    #[test]
    fn second_lock_fails_with_the_pid_of_the_holder() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        let lock = state.lock().unwrap();
        let error = state.lock().unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        let _lock = state.lock().unwrap();
    }

    #[test]
    fn lock_fails_for_another_path_to_the_same_source() {
        let home = tempfile::tempdir().unwrap();
        let [fleet, link, other] = ["fleet", "link", "other"].map(|name| home.path().join(name));
        fs::create_dir(&fleet).unwrap();
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&fleet, &link).unwrap();
        let open = |source: &Path| StateDir::open(&home.path().join("state"), source).unwrap();
        let lock = open(&fleet).lock().unwrap();
        let error = open(&link).lock().unwrap_err().to_string();
        let expected = format!("given as {}, as process {}", fleet.display(), std::process::id());
        assert!(error.contains(&expected), "{error}");
        let _other = open(&other).lock().unwrap();
        drop(lock);
        let lock = open(&link).lock().unwrap();
        open(&fleet).lock().unwrap_err();
        // After the link is switched, the two paths are different directories.
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let _fleet = open(&fleet).lock().unwrap();
        drop(lock);
        open(&link).lock().unwrap_err();
    }

    #[test]
    fn key_is_generated_once() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        let key = state.key("digests").unwrap();
        assert_eq!(state.key("digests").unwrap(), key);
        assert_ne!(state.key("sessions").unwrap(), key);
        state.write("digests", b"short").unwrap();
        let error = state.key("digests").unwrap_err().to_string();
        assert!(error.contains("not a 32-byte key"), "{error}");
    }

    #[test]
    fn files_are_replaced_listed_and_removed() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        assert_eq!(state.list("declarations").unwrap(), Vec::<String>::new());
        assert_eq!(state.read("declarations/a").unwrap(), None);
        state.write("declarations/b", b"1").unwrap();
        state.write("declarations/a", b"1").unwrap();
        state.write("declarations/a", b"2").unwrap();
        assert_eq!(state.read("declarations/a").unwrap().unwrap(), b"2");
        state.append("log", b"1").unwrap();
        state.append("log", b"2").unwrap();
        assert_eq!(state.read("log").unwrap().unwrap(), b"12");
        assert_eq!(state.list("declarations").unwrap(), ["declarations/a", "declarations/b"]);
        state.remove("declarations/a").unwrap();
        state.remove("declarations/a").unwrap();
        assert_eq!(state.list("declarations").unwrap(), ["declarations/b"]);
    }

    #[test]
    fn leftover_temporary_files_are_removed_on_lock() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        state.write("declarations/a", b"1").unwrap();
        state.write(".hidden", b"1").unwrap();
        let leftovers = ["", "declarations", "catalogs"].map(|folder| {
            let folder = state.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            let file = Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder).unwrap();
            file.keep().unwrap().1
        });
        let lock = state.lock().unwrap();
        assert!(leftovers.iter().all(|file| !file.exists()), "{leftovers:?}");
        for kept in ["declarations/a", ".hidden", SOURCE_FILE] {
            assert!(state.read(kept).unwrap().is_some(), "{kept}");
        }
        // A failed attempt to lock does not remove files of the holder.
        let written = Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(state.path()).unwrap();
        state.lock().unwrap_err();
        assert!(written.path().exists());
        drop(lock);
    }

    #[test]
    fn failed_write_leaves_no_temporary_file() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        state.write("declarations/a", b"1").unwrap();
        fs::create_dir(state.path().join("declarations/b")).unwrap();
        state.write("declarations/b", b"1").unwrap_err();
        let names = || {
            let entries = fs::read_dir(state.path().join("declarations")).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "b"]);
        fs::remove_dir(state.path().join("declarations/b")).unwrap();
        let incomplete =
            Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(state.path().join("declarations")).unwrap();
        assert_eq!(state.list("declarations").unwrap(), ["declarations/a"]);
        drop(incomplete);
        // A symbolic link is replaced, and its target stays unchanged.
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, state.path().join("link")).unwrap();
        state.write("link", b"ours").unwrap();
        assert_eq!(state.read("link").unwrap().unwrap(), b"ours");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"theirs");
    }
}
