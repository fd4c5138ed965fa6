use std::env::var_os;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::source::Environment;

/// The directory of declarations: what was given, else the one in people's configuration.
pub(super) fn declarations(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    below_config(given, "evenkeel", "name the directory")
}

/// The directory of secrets, likewise.
pub(super) fn secrets(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    below_config(given, "evenkeel-secrets", "say --secrets-dir")
}

/// Where state directories live.
pub(super) fn state_home() -> Result<PathBuf, Failure> {
    crate::state::state_home(var_os("XDG_STATE_HOME"), var_os("HOME"))
        .ok_or_else(|| Failure::Usage("neither XDG_STATE_HOME nor HOME is set; set one".into()))
}

/// Evenkeel's own environment, for references to variables; what is not UTF-8 cannot be referred to.
pub(super) fn environment() -> Environment {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// Where the state directories of those are that read a cluster. A pod has no home but a directory for temporary
/// files.
pub(super) fn state_home_of_clusters() -> Result<PathBuf, Failure> {
    let home = if var_os("XDG_STATE_HOME").is_none() && var_os("KUBERNETES_SERVICE_HOST").is_some() {
        std::env::temp_dir().join("evenkeel")
    } else {
        state_home()?
    };
    Ok(home.join("clusters"))
}

/// What is in a folder; nothing if there is none.
pub(super) fn folders(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error: &io::Error| Failure::Failed(format!("{}: {error}", folder.display()));
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths.collect::<io::Result<_>>().map_err(|error| unreadable(&error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(&error)),
    }
}

fn below_config(given: Option<PathBuf>, name: &str, how: &str) -> Result<PathBuf, Failure> {
    let config = || Some(config_home(var_os("XDG_CONFIG_HOME"), var_os("HOME"))?.join(name));
    let found = given.or_else(config).ok_or_else(|| Failure::Usage(format!("HOME is not set; {how}")))?;
    // Absolute, with its links unresolved: a link that is flipped is still the same directory.
    std::path::absolute(found).map_err(Failure::failed)
}

/// Where people keep their configuration: `$XDG_CONFIG_HOME`, else `~/.config`; `None` without either
/// variable.
fn config_home(xdg_config_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    crate::state::xdg_home(xdg_config_home, home, ".config")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_xdg() {
        for (xdg, home, expected) in [
            (Some("/x"), Some("/h"), Some("/x")),
            (None, Some("/h"), Some("/h/.config")),
            (Some("relative"), Some("/h"), Some("/h/.config")),
            (Some(""), None, None),
        ] {
            let found = config_home(xdg.map(OsString::from), home.map(OsString::from));
            assert_eq!(found, expected.map(PathBuf::from), "{xdg:?} {home:?}");
        }
    }
}
