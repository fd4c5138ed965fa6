//! The directories of skills as resources: the children of each (SEP-2640, `resources/directory/read`). Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The media type of a directory.
const DIRECTORY_MEDIA_TYPE: &str = "inode/directory";

/// Returns the resource of a directory.
pub(super) fn directory_item(uri: &str, name: &str) -> Value {
    json!({ "uri": uri, "name": name, "mimeType": DIRECTORY_MEDIA_TYPE })
}

/// Returns the direct children of a directory, ordered by URI; `None` if there is no such directory.
///
/// `files` are the URI, the path and the resource of each file of a skill, whose root directory is `root`.
pub(super) fn directory_children<'a>(
    root: &str,
    directory: &str,
    files: impl Iterator<Item = (String, &'a str, Value)>,
) -> Option<Vec<Value>> {
    let is_within = directory.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !is_within {
        return None;
    }
    let mut children = BTreeMap::new();
    for (uri, path, file) in files {
        let Some(rest) = uri.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        let Some((folder, deeper)) = rest.split_once('/') else {
            children.insert(uri, file);
            continue;
        };
        let child = format!("{directory}/{folder}");
        // The path is not encoded, and has the same slashes as the end of the URI.
        let depth = path.matches('/').count().saturating_sub(deeper.matches('/').count() + 1);
        let item = directory_item(&child, path.split('/').nth(depth).unwrap_or(folder));
        children.insert(child, item);
    }
    (!children.is_empty()).then(|| children.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_the_files_and_folders_of_one_level() {
        let files = [
            ("skill://t/s/SKILL.md", "SKILL.md"),
            ("skill://t/s/a%20b/c/1.md", "a b/c/1.md"),
            ("skill://t/s/a%20b/c/2.md", "a b/c/2.md"),
            ("skill://t/s/a%20b/x.md", "a b/x.md"),
            ("skill://t/s/z/SKILL.md", "z/SKILL.md"),
        ];
        let children = |directory: &str| {
            let files = files.iter().map(|(uri, path)| ((*uri).to_owned(), *path, json!({ "uri": uri })));
            let children = directory_children("skill://t/s", directory, files)?;
            let text = |child: &Value| match child["mimeType"].as_str() {
                Some(_) => format!("{}={}/", child["uri"].as_str().unwrap(), child["name"].as_str().unwrap()),
                None => child["uri"].as_str().unwrap().to_owned(),
            };
            Some(children.iter().map(text).collect::<Vec<_>>())
        };
        for (directory, expected) in [
            (
                "skill://t/s",
                Some(&["skill://t/s/SKILL.md", "skill://t/s/a%20b=a b/", "skill://t/s/z=z/"][..]),
            ),
            ("skill://t/s/a%20b", Some(&["skill://t/s/a%20b/c=c/", "skill://t/s/a%20b/x.md"])),
            ("skill://t/s/a%20b/c", Some(&["skill://t/s/a%20b/c/1.md", "skill://t/s/a%20b/c/2.md"])),
            ("skill://t/s/", None),
            ("skill://t/s/SKILL.md", None),
            ("skill://t/s/a b", None),
            ("skill://t/s/a", None),
            ("skill://t", None),
            ("skill:/", None),
            ("", None),
        ] {
            let expected = expected.map(|uris| uris.iter().map(ToString::to_string).collect());
            assert_eq!(children(directory), expected, "{directory}");
        }
    }
}
