use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Puts a new file in place in one step; an error of the kind `AlreadyExists` if there is one of that name.
pub(super) fn create(path: &Path, text: &str) -> io::Result<()> {
    let temporary = write_beside(path, text, None)?;
    let placed = renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE);
    clean(&temporary, placed.map_err(io::Error::from))
}

/// Puts another text in the place of a file in one step; its mode stays.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Through a link to the file that it leads to.
    let path = fs::canonicalize(path)?;
    let mode = fs::metadata(&path)?.permissions();
    let temporary = write_beside(&path, text, Some(mode))?;
    let placed = fs::rename(&temporary, &path);
    clean(&temporary, placed)
}

/// The whole text of a file.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A hidden file, which evenkeel does not look at.
fn write_beside(path: &Path, text: &str, mode: Option<Permissions>) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
    let written = (|| {
        file.write_all(text.as_bytes())?;
        if let Some(mode) = mode {
            file.set_permissions(mode)?;
        }
        file.sync_all()
    })();
    clean(&temporary, written).map(|()| temporary)
}

fn clean(temporary: &Path, result: io::Result<()>) -> io::Result<()> {
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_never_written_over_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        create(&path, "one").unwrap();
        assert_eq!(create(&path, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap(), "one");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        replace(&path, "three").unwrap();
        assert_eq!(read(&path).unwrap(), "three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
