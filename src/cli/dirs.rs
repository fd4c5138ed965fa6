use std::env::var_os;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::CommandError;
use crate::source::Environment;

/// Returns the directory of declarations: the given one, else `evenkeel` in the user's configuration directory.
pub(super) fn declarations_dir(given: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    in_config_home(given, "evenkeel", "give the directory as an argument")
}

/// Returns the directory of secrets: the given one, else `evenkeel-secrets` in the user's configuration directory.
pub(super) fn secrets_dir(given: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    in_config_home(given, "evenkeel-secrets", "pass --secrets-dir")
}

/// Returns the parent of the state directories.
pub(super) fn state_home() -> Result<PathBuf, CommandError> {
    crate::state_dir::state_home(var_os("XDG_STATE_HOME"), var_os("HOME"))
        .ok_or_else(|| CommandError::Usage("neither XDG_STATE_HOME nor HOME is set; set one".into()))
}

/// Returns evenkeel's own environment, for references to variables. Variables that are not UTF-8 are left out.
pub(super) fn environment() -> Environment {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// Returns the parent of the state directories of instances that read a cluster.
///
/// A pod has no home directory; there it is in the directory for temporary files.
pub(super) fn clusters_state_home() -> Result<PathBuf, CommandError> {
    let home = if var_os("XDG_STATE_HOME").is_none() && var_os("KUBERNETES_SERVICE_HOST").is_some() {
        std::env::temp_dir().join("evenkeel")
    } else {
        state_home()?
    };
    Ok(home.join("clusters"))
}

/// Returns the paths in a directory; none if the directory does not exist.
pub(super) fn dir_entries(dir: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let unreadable = |error: &io::Error| CommandError::Failed(format!("{}: {error}", dir.display()));
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths.collect::<io::Result<_>>().map_err(|error| unreadable(&error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(&error)),
    }
}

fn in_config_home(given: Option<PathBuf>, name: &str, hint: &str) -> Result<PathBuf, CommandError> {
    let home = || crate::state_dir::xdg_base_dir(var_os("XDG_CONFIG_HOME"), var_os("HOME"), ".config");
    let config = || Some(home()?.join(name));
    let found =
        given.or_else(config).ok_or_else(|| CommandError::Usage(format!("HOME is not set; {hint}")))?;
    normalize(&found)
}

/// Returns the absolute path without `.`, `..` and a trailing slash, so that every spelling of a path gives one
/// result.
///
/// Symbolic links stay unresolved, since a link whose target is switched is still the same directory. `..` after a
/// link is the parent of its target.
pub(super) fn normalize(given: &Path) -> Result<PathBuf, CommandError> {
    let mut path = PathBuf::new();
    for part in std::path::absolute(given).map_err(CommandError::failed)?.components() {
        if part == Component::ParentDir {
            if path.is_symlink() {
                path = path.canonicalize().unwrap_or(path);
            }
            path.pop();
        } else {
            path.push(part);
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalize_gives_one_path_per_directory() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/sub")).unwrap();
        std::os::unix::fs::symlink("real/sub", root.join("link")).unwrap();
        for (given, expected) in [
            ("real", "real"),
            ("real/", "real"),
            (".//real/.", "real"),
            ("real/sub/..", "real"),
            ("link", "link"),
            ("link/", "link"),
            ("link/..", "real"),
            ("link/../sub", "real/sub"),
            ("none/../real", "real"),
            ("real/../../../../../../../../../../../..", "/"),
        ] {
            assert_eq!(normalize(&root.join(given)).unwrap(), root.join(expected), "{given}");
        }
        assert!(normalize(Path::new("x")).unwrap().is_absolute());
    }
}
