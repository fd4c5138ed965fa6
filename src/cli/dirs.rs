use std::env::var_os;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::CommandError;
use crate::source::Environment;

/// The directory of declarations: what was given, else the one in people's configuration.
pub(super) fn declarations_dir(given: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    in_config_home(given, "evenkeel", "name the directory")
}

/// The directory of secrets, likewise.
pub(super) fn secrets_dir(given: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    in_config_home(given, "evenkeel-secrets", "say --secrets-dir")
}

/// Where state directories live.
pub(super) fn state_home() -> Result<PathBuf, CommandError> {
    crate::state_dir::state_home(var_os("XDG_STATE_HOME"), var_os("HOME"))
        .ok_or_else(|| CommandError::Usage("neither XDG_STATE_HOME nor HOME is set; set one".into()))
}

/// Evenkeel's own environment, for references to variables; what is not UTF-8 cannot be referred to.
pub(super) fn environment() -> Environment {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// Where the state directories of those are that read a cluster. A pod has no home but a directory for temporary
/// files.
pub(super) fn clusters_state_home() -> Result<PathBuf, CommandError> {
    let home = if var_os("XDG_STATE_HOME").is_none() && var_os("KUBERNETES_SERVICE_HOST").is_some() {
        std::env::temp_dir().join("evenkeel")
    } else {
        state_home()?
    };
    Ok(home.join("clusters"))
}

/// What is in a folder; nothing if there is none.
pub(super) fn dir_entries(folder: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let unreadable = |error: &io::Error| CommandError::Failed(format!("{}: {error}", folder.display()));
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths.collect::<io::Result<_>>().map_err(|error| unreadable(&error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(&error)),
    }
}

fn in_config_home(given: Option<PathBuf>, name: &str, how: &str) -> Result<PathBuf, CommandError> {
    let home = || crate::state_dir::xdg_base_dir(var_os("XDG_CONFIG_HOME"), var_os("HOME"), ".config");
    let config = || Some(home()?.join(name));
    let found =
        given.or_else(config).ok_or_else(|| CommandError::Usage(format!("HOME is not set; {how}")))?;
    normalize(&found)
}

/// One spelling for all that a path may be given as: absolute, and without `.`, `..` and a slash at the end. Links stay
/// unresolved, since one that is flipped is still the same directory; but `..` leaves what a link leads to, not the link.
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
