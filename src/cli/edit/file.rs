use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Puts a new file in place in one step; an error of the kind `AlreadyExists` if there is one of that name.
pub(super) fn create(path: &Path, text: &str) -> io::Result<()> {
    write_temporary(path, text, None)?.persist_noclobber(path)?;
    Ok(())
}

/// Puts another text in the place of a file in one step; its mode stays.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Through a link to the file that it leads to.
    let path = fs::canonicalize(path)?;
    let mode = fs::metadata(&path)?.permissions();
    write_temporary(&path, text, Some(mode))?.persist(&path)?;
    Ok(())
}

/// The whole text of a file.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A hidden file, which evenkeel does not look at, and which goes if it does not take its place.
fn write_temporary(path: &Path, text: &str, mode: Option<Permissions>) -> io::Result<NamedTempFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().unwrap_or(Path::new("/"));
    // What the process lets others read, as of any file that it makes.
    let usual = Permissions::from_mode(0o644);
    let mut file = Builder::new().prefix(&format!(".{name}.")).permissions(usual).tempfile_in(folder)?;
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        create(&path, "one").unwrap();
        assert_eq!(create(&path, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap(), "one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let usual = folder.path().join("usual");
        fs::write(&usual, "").unwrap();
        assert_eq!(mode(&path), mode(&usual) & 0o644, "others may read it as far as any new file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        replace(&path, "three").unwrap();
        assert_eq!(read(&path).unwrap(), "three");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
