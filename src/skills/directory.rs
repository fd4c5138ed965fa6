//! One directory of skills on the disk, in the layout that agents read. Blocks.
//!
//! A skill that evenkeel wrote is a folder with a [`MARK_FILE`] that names the owning instance. It is first written to
//! a hidden staging folder in the same directory, then renamed into place, so that an agent reads either the old or the
//! new skill, complete. The next pass removes whatever an interrupted pass left in the staging folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File as DiskFile, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::resource::bundle::Bundle;
use crate::resource::{Digest, Problem, Reason};

/// The file that names the owner of a skill folder.
pub(super) const MARK_FILE: &str = ".evenkeel.json";
/// The most bytes of a mark file that are read.
const MAX_MARK_BYTES: u64 = 4 << 10;

/// The content of the mark file.
#[derive(Debug, Serialize, Deserialize)]
struct SkillMark {
    /// The evenkeel instance that wrote the folder, and that alone may change it.
    owner: String,
    /// The digest of the skill as it was written.
    digest: Digest,
    /// An explanation for users.
    note: String,
}

/// The desired content of a directory.
#[derive(Clone, Debug, Default)]
pub(super) struct DesiredSkills {
    /// The skills, by name.
    pub skills: BTreeMap<Arc<str>, Arc<Bundle>>,
    /// Names that are left unchanged, whether they exist or not.
    pub untouched: BTreeSet<Arc<str>>,
}

/// One skill directory, and the skills that were written to it.
#[derive(Debug)]
pub(super) struct SkillDirectory {
    path: PathBuf,
    owner: String,
    /// The digests of the skills that the last pass wrote or verified.
    written: BTreeMap<Arc<str>, Digest>,
}

/// The existing entry under a name.
enum ExistingEntry {
    Absent,
    Owned(Digest),
    /// An entry that this instance does not own, and a description of it.
    Foreign(&'static str),
}

impl SkillDirectory {
    /// Creates the state for the directory `path`, which need not exist yet. `owner` identifies the evenkeel instance:
    /// letters and digits.
    pub fn new(path: PathBuf, owner: String) -> Self {
        Self { path, owner, written: BTreeMap::new() }
    }

    /// Applies the desired content. A `full` pass trusts no earlier result and checks every skill on the disk.
    ///
    /// Returns problems by skill name.
    ///
    /// # Errors
    ///
    /// A problem that affects all skills.
    pub fn apply(
        &mut self,
        desired: &DesiredSkills,
        full: bool,
    ) -> Result<BTreeMap<Arc<str>, Problem>, Problem> {
        if full {
            self.written.clear();
        }
        let directory = self.path.display().to_string();
        let failed = |error: &io::Error| {
            Problem::new(Reason::WriteFailed, format!("{directory} cannot be written: {error}; retrying"))
        };
        let mut problems = BTreeMap::new();
        if desired.skills.is_empty() && !self.path.exists() {
            return Ok(problems);
        }
        fs::create_dir_all(&self.path).map_err(|error| failed(&error))?;
        let staging = self.path.join(format!(".evenkeel-{}", self.owner));
        remove_entry(&staging).map_err(|error| failed(&error))?;
        let pruned = self.prune(desired, full, &staging);
        for (name, bundle) in &desired.skills {
            if self.written.get(name) == Some(&bundle.digest()) {
                continue;
            }
            match self.write_skill(name, bundle, &staging) {
                Ok(None) => {
                    self.written.insert(name.clone(), bundle.digest());
                }
                Ok(Some(what)) => {
                    let message = format!(
                        "{} is {what} and is left unchanged; rename it or the skill",
                        self.path.join(&**name).display()
                    );
                    problems.insert(name.clone(), Problem::new(Reason::Shadowed, message));
                }
                Err(error) => {
                    self.written.remove(name);
                    problems.insert(name.clone(), failed(&error));
                }
            }
        }
        remove_entry(&staging).map_err(|error| failed(&error))?;
        pruned.map_err(|error| failed(&error))?;
        Ok(problems)
    }

    /// Removes skills that this instance wrote and that are no longer desired.
    fn prune(&mut self, desired: &DesiredSkills, full: bool, staging: &Path) -> io::Result<()> {
        let is_undesired =
            |name: &str| !desired.skills.contains_key(name) && !desired.untouched.contains(name);
        let names: Vec<String> = if full {
            let entries = fs::read_dir(&self.path)?.filter_map(Result::ok);
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        } else {
            self.written.keys().map(ToString::to_string).collect()
        };
        for name in names.iter().filter(|name| is_undesired(name)) {
            if let ExistingEntry::Owned(_) = self.inspect(name)? {
                create_staging(staging)?;
                fs::rename(self.path.join(name), staging.join(format!("{name}.old")))?;
                remove_entry(staging)?;
                tracing::info!(skill = name, "skill removed from {}", self.path.display());
            }
            self.written.remove(name.as_str());
        }
        Ok(())
    }

    /// Writes a skill. Returns a description of the existing entry, and changes nothing, if this instance does not own
    /// it.
    fn write_skill(&self, name: &str, bundle: &Bundle, staging: &Path) -> io::Result<Option<&'static str>> {
        let target = self.path.join(name);
        let existing = self.inspect(name)?;
        match existing {
            ExistingEntry::Foreign(what) => return Ok(Some(what)),
            ExistingEntry::Owned(digest) if digest == bundle.digest() && is_intact(&target, bundle) => {
                return Ok(None);
            }
            ExistingEntry::Owned(_) | ExistingEntry::Absent => {}
        }
        create_staging(staging)?;
        let new = staging.join(name);
        remove_entry(&new)?;
        self.write_files(&new, bundle)?;
        if matches!(existing, ExistingEntry::Absent) {
            match renameat_with(CWD, &new, CWD, &target, RenameFlags::NOREPLACE) {
                // Another process created the entry meanwhile.
                Err(Errno::EXIST | Errno::NOTEMPTY) => return Ok(Some(FOREIGN_FOLDER)),
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(&new, &target)?,
                moved => moved?,
            }
        } else {
            match renameat_with(CWD, &new, CWD, &target, RenameFlags::EXCHANGE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    let old = staging.join(format!("{name}.old"));
                    remove_entry(&old)?;
                    fs::rename(&target, &old)?;
                    fs::rename(&new, &target)?;
                    remove_entry(&old)?;
                }
                swapped => {
                    swapped?;
                    remove_entry(&new)?;
                }
            }
        }
        tracing::info!(skill = name, "skill written to {}", self.path.display());
        Ok(None)
    }

    fn write_files(&self, folder: &Path, bundle: &Bundle) -> io::Result<()> {
        DirBuilder::new().create(folder)?;
        for (path, file) in bundle.files() {
            let path = folder.join(&**path);
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).create(parent)?;
            }
            let mode = if file.executable { 0o755 } else { 0o644 };
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?.write_all(&file.bytes)?;
        }
        let mark = SkillMark {
            owner: self.owner.clone(),
            digest: bundle.digest(),
            note: "Written by evenkeel, which changes and removes this folder. Delete this file to keep it."
                .into(),
        };
        let mark = serde_json::to_vec_pretty(&mark)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(folder.join(MARK_FILE))?
            .write_all(&mark)
    }

    /// Inspects the entry under a name without following links.
    fn inspect(&self, name: &str) -> io::Result<ExistingEntry> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = match openat(CWD, self.path.join(name), flags | OFlags::DIRECTORY, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(ExistingEntry::Absent),
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(ExistingEntry::Foreign("a file or a link")),
            Err(error) => return Err(error.into()),
        };
        let mark = match openat(folder, MARK_FILE, flags | OFlags::NONBLOCK, Mode::empty()) {
            Ok(mark) => mark,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(ExistingEntry::Foreign(FOREIGN_FOLDER)),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        DiskFile::from(mark).take(MAX_MARK_BYTES).read_to_end(&mut bytes)?;
        Ok(match serde_json::from_slice::<SkillMark>(&bytes) {
            Ok(mark) if mark.owner == self.owner => ExistingEntry::Owned(mark.digest),
            Ok(_) => ExistingEntry::Foreign("a folder of another evenkeel instance"),
            Err(_) => ExistingEntry::Foreign(FOREIGN_FOLDER),
        })
    }
}

const FOREIGN_FOLDER: &str = "a folder that evenkeel did not write";

/// Returns true if a skill folder still has exactly the files that were written.
fn is_intact(folder: &Path, bundle: &Bundle) -> bool {
    let mut names = BTreeSet::new();
    list_files(folder, "", &mut names).is_ok()
        && names.len() == bundle.files().len() + 1
        && bundle.files().iter().all(|(path, file)| {
            let opened = openat(
                CWD,
                folder.join(&**path),
                OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
            );
            let mut bytes = Vec::new();
            let limit = u64::try_from(file.bytes.len()).unwrap_or(u64::MAX).saturating_add(1);
            opened.is_ok_and(|opened| DiskFile::from(opened).take(limit).read_to_end(&mut bytes).is_ok())
                && *bytes == *file.bytes
        })
}

/// Collects the paths of all entries that are not directories.
fn list_files(folder: &Path, below: &str, names: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            list_files(folder, &path, names)?;
        } else {
            names.insert(path);
        }
    }
    Ok(())
}

/// Creates the hidden staging folder.
fn create_staging(staging: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(staging) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(staging) => Ok(()),
        created => created,
    }
}

/// Removes the entry at a path, if there is one, without following links.
fn remove_entry(path: &Path) -> io::Result<()> {
    let removed = if is_directory(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests;
