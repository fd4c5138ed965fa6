//! The state directory: what must outlive a run, or be found by other commands.
//!
//! There is one per source directory, outside the watched tree, readable by its owner alone. Promises that a
//! file in it is whole or absent, whenever the process dies, but for what is appended, and that a second daemon on the same directory
//! is refused. Never holds a resolved secret. Its methods block: they are for the start and for blocking
//! threads.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use tempfile::Builder;

use crate::resource::Digest;

const LOCK_FILE: &str = "lock";
/// How the names of files begin that are not written to their ends yet.
const TEMPORARY_PREFIX: &str = ".tmp";
/// Which source directory the state is of.
const SOURCE_FILE: &str = "source";

/// Where state directories live: `$XDG_STATE_HOME/evenkeel`, else `~/.local/state/evenkeel`; `None` without
/// either variable.
pub fn state_home(xdg_state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    Some(xdg_base_dir(xdg_state_home, home, ".local/state")?.join("evenkeel"))
}

/// The directory that a variable of the XDG specification names, else one below the home directory; `None`
/// without either. The specification has relative values ignored.
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

/// Held by the one daemon of a source directory; the lock ends with it, or with the process.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub struct StateLock(#[expect(dead_code, reason = "an open file is a held lock")] File);

/// Why the state directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error(
        "evenkeel already runs on {}, as process {}; stop it, or use it",
        directory.as_ref().map_or_else(|| "this directory".to_owned(), |other| format!("this directory under the name {}", other.display())),
        pid.as_deref().unwrap_or("unknown")
    )]
    Locked {
        /// The process id of the other, if it has written it yet.
        pid: Option<String>,
        /// The path under which the other has the directory, if that is another.
        directory: Option<PathBuf>,
    },
    /// The file system refused.
    #[error("state directory {}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        error: io::Error,
    },
}

impl StateDir {
    /// Opens, and if need be creates, the state directory of `source` below `home`.
    ///
    /// `source` is the path as given, made absolute: its links are not resolved, because a link that is
    /// flipped to another checkout is still the same source.
    pub fn open(home: &Path, source: &Path) -> Result<Self, StateError> {
        let path = Self::path_for(home, source);
        let refused = |error| StateError::Io { path: path.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(refused)?;
        let mode = fs::metadata(&path).map_err(refused)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(refused)?;
        }
        Ok(Self { path, source: source.to_owned() })
    }

    /// Where the state directory of `source` is, whether or not there is one.
    pub fn path_for(home: &Path, source: &Path) -> PathBuf {
        home.join(directory_name(source))
    }

    /// The directory itself, for sockets and for files that others read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock of the daemon, without waiting. It is refused too while a daemon has the same source directory
    /// by another path. What a daemon left half written when it was killed is removed.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let lock = self.try_lock(None)?;
        remove_temporary_files(&self.path, true);
        self.write(SOURCE_FILE, self.source.as_os_str().as_bytes())?;
        for other in self.others_of_same_source() {
            drop(other.try_lock(Some(&other.source))?);
        }
        Ok(lock)
    }

    /// The other states of the same source directory.
    fn others_of_same_source(&self) -> impl Iterator<Item = Self> + use<'_> {
        let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let own = id(&self.source);
        let entries = self.path.parent().filter(|_| own.is_some()).and_then(|home| fs::read_dir(home).ok());
        entries.into_iter().flatten().filter_map(move |entry| {
            let other = Self { path: entry.ok()?.path(), source: PathBuf::new() };
            let source = PathBuf::from(OsString::from_vec(other.read(SOURCE_FILE).ok()??));
            (other.path != self.path && id(&source) == own).then_some(Self { source, ..other })
        })
    }

    fn try_lock(&self, name: Option<&Path>) -> Result<StateLock, StateError> {
        let path = self.path.join(LOCK_FILE);
        let refused = |error| StateError::Io { path: path.clone(), error };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(refused)?;
                writeln!(file, "{}", std::process::id()).map_err(refused)?;
                Ok(StateLock(file))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // A lock without a readable pid is a lock all the same.
                let _ = file.take(32).read_to_string(&mut text);
                let pid = Some(text.trim().to_owned()).filter(|pid| !pid.is_empty());
                Err(StateError::Locked { pid, directory: name.map(Path::to_owned) })
            }
            Err(TryLockError::Error(error)) => Err(refused(error)),
        }
    }

    /// The 32 random bytes called `name`, drawn at the first call and the same ever after.
    pub fn key(&self, name: &str) -> Result<[u8; 32], StateError> {
        let refused = |error| StateError::Io { path: self.path.join(name), error };
        if let Some(bytes) = self.read(name)? {
            return bytes.try_into().map_err(|_| {
                refused(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "is not a key of 32 bytes; delete it and start again",
                ))
            });
        }
        let mut key = [0; 32];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| refused(io::Error::other("the system gives no random bytes")))?;
        self.write_atomically(name, &key, true)?;
        Ok(key)
    }

    /// The content of a file; `None` if there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::Io { path, error }),
        }
    }

    /// Replaces a file (mode 0600) in one step. `name` may have one folder before it, which is created.
    ///
    /// A crash of the process leaves the old or the new content; a loss of power may lose the last writes.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.write_atomically(name, bytes, false)
    }

    /// Appends to a file (mode 0600), which is made if there is none. A crash may cut short what is appended.
    pub fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let appended = open().and_then(|mut file| file.write_all(bytes));
        appended.map_err(|error| StateError::Io { path: path.clone(), error })
    }

    /// Removes a file; one that is not there is as good as removed.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io { path, error }),
            _ => Ok(()),
        }
    }

    /// The names (`folder/file`) of the files in a folder, sorted; none if there is no such folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let path = self.path.join(folder);
        let refused = |error| StateError::Io { path: path.clone(), error };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(refused(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(refused)?.file_name();
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
        // Hidden, of mode 0600, and gone again if it does not take its place.
        let beside = || Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder);
        let write = || -> io::Result<()> {
            let mut file = match beside() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                    beside()?
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

/// Removes the files of a folder, and those of the folders in it, that were not written to their ends. One that cannot be
/// removed disturbs nobody.
fn remove_temporary_files(folder: &Path, below: bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && below {
            remove_temporary_files(&entry.path(), false);
        } else if kind.is_file() && entry.file_name().as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The last part of the path, for people, and a digest of the whole, which makes it unique.
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
            let found = state_home(xdg.map(OsString::from), home.map(OsString::from));
            assert_eq!(found, expected.map(PathBuf::from), "{xdg:?} {home:?}");
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
        assert_eq!(mode(""), 0o700, "a directory that others could read is closed");
    }

    #[test]
    fn second_lock_fails_with_the_pid_of_the_holder() {
        let home = tempfile::tempdir().unwrap();
        let state = open_state_dir(&home);
        let lock = state.lock().unwrap();
        let refused = state.lock().unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
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
        let refused = open(&link).lock().unwrap_err().to_string();
        let name = format!("under the name {}, as process {}", fleet.display(), std::process::id());
        assert!(refused.contains(&name), "{refused}");
        let _other = open(&other).lock().unwrap();
        drop(lock);
        let lock = open(&link).lock().unwrap();
        open(&fleet).lock().unwrap_err();
        // A link that is flipped: each has another directory then.
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
        let damaged = state.key("digests").unwrap_err().to_string();
        assert!(damaged.contains("not a key of 32 bytes"), "{damaged}");
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
        let left = ["", "declarations", "catalogs"].map(|folder| {
            let folder = state.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            let file = Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder).unwrap();
            file.keep().unwrap().1
        });
        let lock = state.lock().unwrap();
        assert!(left.iter().all(|file| !file.exists()), "{left:?}");
        for kept in ["declarations/a", ".hidden", SOURCE_FILE] {
            assert!(state.read(kept).unwrap().is_some(), "{kept}");
        }
        // Whoever has no lock removes nothing of who has it.
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
        let cut_short =
            Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(state.path().join("declarations")).unwrap();
        assert_eq!(state.list("declarations").unwrap(), ["declarations/a"]);
        drop(cut_short);
        // A link is replaced, and what it leads to stays as it is.
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, state.path().join("link")).unwrap();
        state.write("link", b"ours").unwrap();
        assert_eq!(state.read("link").unwrap().unwrap(), b"ours");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"theirs");
    }
}
