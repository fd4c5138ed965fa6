//! Classifies files by their paths: whether a file may contain declarations, and in which format. Pure.
//!
//! These are YAML files, the server files of agents, and the SKILL.md of a folder whose parent folder is called
//! `skills`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use memchr::memmem;

use super::excerpt::printable;
use crate::resource::GROUP;
use crate::resource::bundle::SKILL_FILE;

/// The files in which agents declare their servers.
const AGENT_FILES: [&str; 2] = [".mcp.json", "mcp.json"];
/// The folder of npm packages, which holds thousands of files of others.
const PACKAGES_FOLDER: &str = "node_modules";
/// The name of a folder of skills: each folder in it that contains a SKILL.md is a skill.
const SKILLS_FOLDER: &str = "skills";

/// True if a file of this name is read.
pub fn is_declaration_name(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    let is_yaml = extension.is_some_and(|extension| extension == "yaml" || extension == "yml");
    is_yaml && !is_skipped(name) || name == AGENT_FILES[0] || name == AGENT_FILES[1]
}

/// True if this is the SKILL.md of a folder that is a skill by its location.
pub fn is_skill_file(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::parent);
    path.file_name().is_some_and(|name| name == SKILL_FILE) && folder.is_some_and(is_skills_folder)
}

/// True if each folder in this one that contains a SKILL.md is a skill.
pub fn is_skills_folder(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == SKILLS_FOLDER)
}

/// True if the file is in the JSON format of agents.
pub fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// True if a file of this path is read.
pub fn is_declaration_path(path: &Path) -> bool {
    path.file_name().is_some_and(is_declaration_name) || is_skill_file(path)
}

/// True if a walk would visit a file of this path, provided that the file is not in the folder of a skill.
pub fn is_visited(path: &Path) -> bool {
    is_declaration_path(path) && !path.iter().any(is_skipped)
}

/// True if a file or folder of this name is skipped.
pub fn is_skipped(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'.') && name != AGENT_FILES[0] || name == PACKAGES_FOLDER
}

/// True if a file that cannot be read as declarations may have been meant to hold some: it contains a word that occurs
/// in them.
pub fn mentions_declarations(bytes: &[u8]) -> bool {
    [GROUP, "McpServer", "mcpServers"].iter().any(|marker| memmem::find(bytes, marker.as_bytes()).is_some())
}

/// Returns the path for a message.
pub fn display_path(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// Joins `path` to `folder` and removes `.` and `..`; returns `None` if the result is above the root.
pub fn join_within_root(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut joined = PathBuf::new();
    for component in folder.components().chain(Path::new(path).components()) {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::CurDir => {}
            Component::ParentDir if joined.pop() => {}
            _ => return None,
        }
    }
    Some(joined)
}
