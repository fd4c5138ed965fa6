use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Creates a file atomically.
///
/// # Errors
///
/// Returns an error of kind `AlreadyExists` if a file of that name exists.
pub(super) fn create(path: &Path, text: &str) -> io::Result<()> {
    write_temporary(path, text, None)?.persist_noclobber(path)?;
    Ok(())
}

/// Replaces the text of a file atomically and keeps its mode.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Replace the target of a symbolic link, not the link.
    let path = fs::canonicalize(path)?;
    let mode = fs::metadata(&path)?.permissions();
    write_temporary(&path, text, Some(mode))?.persist(&path)?;
    Ok(())
}

/// Reads the whole text of a file.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a hidden file in the directory of `path`. Evenkeel ignores it, and it is deleted unless it is persisted.
fn write_temporary(path: &Path, text: &str, mode: Option<Permissions>) -> io::Result<NamedTempFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let dir = path.parent().unwrap_or(Path::new("/"));
    // The mode of a new file, which the umask restricts further.
    let default_mode = Permissions::from_mode(0o644);
    let mut file = Builder::new().prefix(&format!(".{name}.")).permissions(default_mode).tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    if let Some(mode) = mode {
        file.as_file().set_permissions(mode)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_never_overwrites_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        create(&path, "one").unwrap();
        assert_eq!(create(&path, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap(), "one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let other = dir.path().join("usual");
        fs::write(&other, "").unwrap();
        assert_eq!(mode(&path), mode(&other) & 0o644, "the mode is that of any new file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        replace(&path, "three").unwrap();
        assert_eq!(read(&path).unwrap(), "three");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
