//! What the path of a file tells: whether it may hold declarations, and of which form. Pure.
//!
//! YAML, agents' own files, and the SKILL.md of a folder in one that is called `skills`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::excerpt::printable;
use crate::resource::bundle::SKILL_FILE;

/// The files that agents have their servers in.
const AGENT_FILES: [&str; 2] = [".mcp.json", "mcp.json"];
/// A folder of packages holds thousands of files that are others'.
const PACKAGES_FOLDER: &str = "node_modules";
/// Each folder in one of this name, wherever it is, is a skill if it holds a SKILL.md.
const SKILLS_FOLDER: &str = "skills";

/// Whether a file of this name is looked at.
pub fn is_declaration_name(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    let yaml = extension.is_some_and(|extension| extension == "yaml" || extension == "yml");
    yaml && !is_skipped(name) || name == AGENT_FILES[0] || name == AGENT_FILES[1]
}

/// Whether this is the SKILL.md of a folder that is declared by where it is.
pub fn is_skill_file(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::parent);
    path.file_name().is_some_and(|name| name == SKILL_FILE)
        && folder.and_then(Path::file_name).is_some_and(|name| name == SKILLS_FOLDER)
}

/// Whether a file is one of those that agents have their servers in.
pub fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Whether a file of this path is looked at.
pub fn is_declaration_path(path: &Path) -> bool {
    path.file_name().is_some_and(is_declaration_name) || is_skill_file(path)
}

/// Whether a walk would meet a file of this path, if it is not in the folder of a skill.
pub fn is_visited(path: &Path) -> bool {
    is_declaration_path(path) && !path.iter().any(is_skipped)
}

/// Whether what is so named is passed over.
pub fn is_skipped(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'.') && name != AGENT_FILES[0] || name == PACKAGES_FOLDER
}

/// A path for a message.
pub fn display_path(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// The folder `path` of `folder`, without `.` and `..`; `None` if that is above the root.
pub fn join_within_root(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in folder.components().chain(Path::new(path).components()) {
        match part {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            Component::ParentDir if found.pop() => {}
            _ => return None,
        }
    }
    Some(found)
}
