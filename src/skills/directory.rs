//! One directory of skills on the disk, as agents look for them. Blocks.
//!
//! A skill of ours is a folder with a [`MARK`] that names this evenkeel. It is written beside, in a hidden
//! folder of ours, and takes its place by a rename, so that an agent sees it whole, old or new. What that
//! hidden folder still holds after an interruption is taken away by the next pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File as Disk, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::resource::bundle::Bundle;
use crate::resource::{Digest, Problem, Reason};

/// The file that says whose a folder is.
pub(super) const MARK_FILE: &str = ".evenkeel.json";
/// The most that is read of one.
const MAX_MARK_BYTES: u64 = 4 << 10;

/// What the mark says.
#[derive(Debug, Serialize, Deserialize)]
struct SkillMark {
    /// The evenkeel that wrote the folder, and alone may change it.
    owner: String,
    /// Of the skill as it was written.
    digest: Digest,
    /// For people.
    note: String,
}

/// What is to be in a directory.
#[derive(Clone, Debug, Default)]
pub(super) struct DesiredSkills {
    /// The skills, by name.
    pub skills: BTreeMap<Arc<str>, Arc<Bundle>>,
    /// Names that are left as they are, there or not.
    pub untouched: BTreeSet<Arc<str>>,
}

/// One directory, and what is known to be in it.
#[derive(Debug)]
pub(super) struct SkillDirectory {
    path: PathBuf,
    owner: String,
    /// What the last pass left there.
    written: BTreeMap<Arc<str>, Digest>,
}

/// What is under a name.
enum ExistingEntry {
    Absent,
    Owned(Digest),
    /// Somebody else's, and what it is.
    Foreign(&'static str),
}

impl SkillDirectory {
    /// The directory `path`, which need not be there yet, for the evenkeel `owner`: letters and digits.
    pub fn new(path: PathBuf, owner: String) -> Self {
        Self { path, owner, written: BTreeMap::new() }
    }

    /// Makes the directory hold what is wanted; `whole` if nothing is taken for known, and all is looked at.
    ///
    /// Gives what went wrong, by skill; an error is about all of them.
    pub fn apply(
        &mut self,
        wanted: &DesiredSkills,
        whole: bool,
    ) -> Result<BTreeMap<Arc<str>, Problem>, Problem> {
        if whole {
            self.written.clear();
        }
        let shown = self.path.display().to_string();
        let failed = |error: &io::Error| {
            Problem::new(
                Reason::WriteFailed,
                format!("{shown} cannot be written: {error}; it is tried again"),
            )
        };
        let mut troubles = BTreeMap::new();
        if wanted.skills.is_empty() && !self.path.exists() {
            return Ok(troubles);
        }
        fs::create_dir_all(&self.path).map_err(|error| failed(&error))?;
        let staging = self.path.join(format!(".evenkeel-{}", self.owner));
        remove_entry(&staging).map_err(|error| failed(&error))?;
        let gone = self.prune(wanted, whole, &staging);
        for (name, bundle) in &wanted.skills {
            if self.written.get(name) == Some(&bundle.digest()) {
                continue;
            }
            match self.write_skill(name, bundle, &staging) {
                Ok(None) => {
                    self.written.insert(name.clone(), bundle.digest());
                }
                Ok(Some(what)) => {
                    let message = format!(
                        "{} is {what}, and is left alone; rename it or the skill",
                        self.path.join(&**name).display()
                    );
                    troubles.insert(name.clone(), Problem::new(Reason::Shadowed, message));
                }
                Err(error) => {
                    self.written.remove(name);
                    troubles.insert(name.clone(), failed(&error));
                }
            }
        }
        remove_entry(&staging).map_err(|error| failed(&error))?;
        gone.map_err(|error| failed(&error))?;
        Ok(troubles)
    }

    /// Takes away what is ours and no longer wanted.
    fn prune(&mut self, wanted: &DesiredSkills, whole: bool, staging: &Path) -> io::Result<()> {
        let unwanted = |name: &str| !wanted.skills.contains_key(name) && !wanted.untouched.contains(name);
        let names: Vec<String> = if whole {
            let entries = fs::read_dir(&self.path)?.filter_map(Result::ok);
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        } else {
            self.written.keys().map(ToString::to_string).collect()
        };
        for name in names.iter().filter(|name| unwanted(name)) {
            if let ExistingEntry::Owned(_) = self.inspect(name)? {
                create_staging(staging)?;
                fs::rename(self.path.join(name), staging.join(format!("{name}.old")))?;
                remove_entry(staging)?;
                tracing::info!(skill = name, "taken out of {}", self.path.display());
            }
            self.written.remove(name.as_str());
        }
        Ok(())
    }

    /// Puts a skill in its place; gives what is there if that is somebody else's.
    fn write_skill(&self, name: &str, bundle: &Bundle, staging: &Path) -> io::Result<Option<&'static str>> {
        let place = self.path.join(name);
        let found = self.inspect(name)?;
        match found {
            ExistingEntry::Foreign(what) => return Ok(Some(what)),
            ExistingEntry::Owned(digest) if digest == bundle.digest() && is_intact(&place, bundle) => {
                return Ok(None);
            }
            ExistingEntry::Owned(_) | ExistingEntry::Absent => {}
        }
        create_staging(staging)?;
        let new = staging.join(name);
        remove_entry(&new)?;
        self.write_files(&new, bundle)?;
        if matches!(found, ExistingEntry::Absent) {
            match renameat_with(CWD, &new, CWD, &place, RenameFlags::NOREPLACE) {
                // Somebody was faster.
                Err(Errno::EXIST | Errno::NOTEMPTY) => return Ok(Some(FOREIGN_FOLDER)),
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(&new, &place)?,
                moved => moved?,
            }
        } else {
            match renameat_with(CWD, &new, CWD, &place, RenameFlags::EXCHANGE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    let old = staging.join(format!("{name}.old"));
                    remove_entry(&old)?;
                    fs::rename(&place, &old)?;
                    fs::rename(&new, &place)?;
                    remove_entry(&old)?;
                }
                swapped => {
                    swapped?;
                    remove_entry(&new)?;
                }
            }
        }
        tracing::info!(skill = name, "written to {}", self.path.display());
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

    /// What is under a name, without following a link.
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
        Disk::from(mark).take(MAX_MARK_BYTES).read_to_end(&mut bytes)?;
        Ok(match serde_json::from_slice::<SkillMark>(&bytes) {
            Ok(mark) if mark.owner == self.owner => ExistingEntry::Owned(mark.digest),
            Ok(_) => ExistingEntry::Foreign("written by another evenkeel"),
            Err(_) => ExistingEntry::Foreign(FOREIGN_FOLDER),
        })
    }
}

const FOREIGN_FOLDER: &str = "there and was not written by evenkeel";

/// Whether a folder of ours still holds what was written: nothing more, less or else.
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
            let most = u64::try_from(file.bytes.len()).unwrap_or(u64::MAX).saturating_add(1);
            opened.is_ok_and(|opened| Disk::from(opened).take(most).read_to_end(&mut bytes).is_ok())
                && *bytes == *file.bytes
        })
}

/// The paths of all that is no folder.
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

/// The hidden folder of ours.
fn create_staging(staging: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(staging) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(staging) => Ok(()),
        created => created,
    }
}

/// Takes away whatever is there, and follows no link.
fn remove_entry(path: &Path) -> io::Result<()> {
    let removed = if is_directory(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests;
