use std::ffi::OsString;
use std::path::PathBuf;

/// Where people keep their configuration: `$XDG_CONFIG_HOME`, else `~/.config`; `None` without either
/// variable.
pub(super) fn config_home(xdg_config_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
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
