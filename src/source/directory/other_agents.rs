//! Finds files in which agents declare their servers and which are not read, because of their names. Blocks.

use std::path::{Path, PathBuf};

use memchr::memmem;

use super::tree::{MAX_FILE_BYTES, TreeRoot};

/// The files, relative to the folder of a project.
const FILES: [&str; 17] = [
    ".amazonq/mcp.json",
    ".codex/config.toml",
    ".copilot/mcp-config.json",
    ".cursor/mcp.json",
    ".gemini/settings.json",
    ".kimi-code/mcp.json",
    ".kimi/mcp.json",
    ".kiro/settings/mcp.json",
    ".qwen/settings.json",
    ".roo/mcp.json",
    ".vscode/mcp.json",
    ".windsurf/mcp_config.json",
    "claude_desktop_config.json",
    "cline_mcp_settings.json",
    "mcp_config.json",
    "opencode.json",
    "opencode.jsonc",
];
/// The files that are read, to which a link may lead.
const READ_FILES: [&str; 2] = [".mcp.json", "mcp.json"];

/// Returns the files in a folder of the tree that declare servers for other agents, relative to the root, each with what
/// to do.
pub(super) fn find_other_agent_files(
    root: &TreeRoot,
    folder: &Path,
) -> impl Iterator<Item = (PathBuf, &'static str)> {
    FILES.iter().filter_map(move |name| {
        let path = folder.join(name);
        let (_, bytes) = root.read_file(&path, MAX_FILE_BYTES).ok()?;
        let mentions = |word: &str| memmem::find(&bytes, word.as_bytes()).is_some();
        let has_same_format = mentions("\"mcpServers\"") || mentions("\"servers\"");
        if !has_same_format && !mentions("mcp_servers") && !mentions("\"mcp\"") {
            return None;
        }
        let real_path = |path: &Path| root.path.join(path).canonicalize().ok();
        let is_linked = READ_FILES.iter().any(|read| real_path(&folder.join(read)) == real_path(&path));
        let advice = if has_same_format {
            "this file of an agent is not read; copy its entries into a .mcp.json, or make .mcp.json a link to it"
        } else {
            "this file of an agent is not read; declare its servers in YAML, or in a .mcp.json"
        };
        (!is_linked).then_some((path, advice))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_that_declare_servers_are_found_unless_a_link_leads_to_them() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            (".cursor/mcp.json", "{ \"mcpServers\": {} }"),
            (".vscode/mcp.json", "{ \"servers\": {} }"),
            (".gemini/settings.json", "{ \"theme\": \"x\" }"),
            ("opencode.json", "{ \"mcp\": {} }"),
            (".codex/config.toml", "[mcp_servers.a]"),
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink(".cursor/mcp.json", folder.path().join(".mcp.json")).unwrap();
        let root = TreeRoot::open(folder.path()).unwrap();
        let found: Vec<_> = find_other_agent_files(&root, Path::new(""))
            .map(|(path, advice)| format!("{} {}", path.display(), advice.contains("a link to it")))
            .collect();
        assert_eq!(found, [".codex/config.toml false", ".vscode/mcp.json true", "opencode.json false"]);
    }
}
