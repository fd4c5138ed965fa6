//! Finds where objects are declared, for the commands that edit files. Blocks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tree::{FileId, FoundFile, IgnoreRules, TreeRoot, TreeVisitor, walk};
use crate::resource::ObjectKey;
use crate::source::parse::{ParsedFile, is_json, parse, parse_list, split_documents};

/// The location of a document that declares an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLocation {
    /// The kind of the object, as in `kind:`.
    pub kind: &'static str,
    /// The key of the object.
    pub key: ObjectKey,
    /// The file, relative to the root.
    pub path: PathBuf,
    /// The line at which the content of the document begins, from 1.
    pub line: u32,
    /// The range of lines of the document, from 1, excluding the end; `None` if the file is not YAML or the object is
    /// in a list.
    pub lines: Option<(usize, usize)>,
    /// True if the file contains nothing else.
    pub only_in_file: bool,
}

/// Returns the location of every object that the files of a directory declare, in the order of the walk.
///
/// Errors: the directory, or its file of ignore rules, cannot be read.
pub fn find_objects(root: &Path) -> io::Result<Vec<ObjectLocation>> {
    let root = TreeRoot::open(root)?;
    let (rules, _) = IgnoreRules::read(&root)?;
    let mut finder = ObjectFinder::default();
    walk(&root, &rules, &mut finder);
    Ok(finder.0)
}

#[derive(Default)]
struct ObjectFinder(Vec<ObjectLocation>);

impl TreeVisitor for ObjectFinder {
    fn visit_folder(&mut self, _: &Path, _: FileId) {}

    fn visit_file(&mut self, file: &FoundFile<'_>) {
        let Ok((_, bytes)) = file.read() else { return };
        let path = Arc::new(file.path.clone());
        let Ok(text) = std::str::from_utf8(&bytes) else { return };
        if is_json(&path) {
            self.add_objects(&parse(&path, &bytes), file.path, 0, None, false);
            return;
        }
        let documents = split_documents(text.strip_prefix('\u{feff}').unwrap_or(text));
        for document in &documents {
            let first_line = usize::try_from(document.first_line).unwrap_or(1);
            let is_list = parse_list(document).is_some();
            let lines = (first_line, first_line + document.text.lines().count());
            let line_offset = document.first_line - 1;
            self.add_objects(
                &parse(&path, document.text.as_bytes()),
                file.path,
                line_offset,
                Some(lines).filter(|_| !is_list),
                documents.len() == 1 && !is_list,
            );
        }
    }

    fn unreadable_file(&mut self, _: &Path, _: &str) {}

    fn unreadable_folder(&mut self, _: &Path, _: &str) {}
}

impl ObjectFinder {
    fn add_objects(
        &mut self,
        parsed: &ParsedFile,
        path: &Path,
        line_offset: u32,
        lines: Option<(usize, usize)>,
        only_in_file: bool,
    ) {
        let servers = parsed.servers.iter().map(|server| ("McpServer", &server.key, server.line));
        let skills = parsed.skills.iter().map(|skill| ("Skill", &skill.key, skill.line));
        self.0.extend(servers.chain(skills).map(|(kind, key, line)| ObjectLocation {
            kind,
            key: key.clone(),
            path: path.to_owned(),
            line: line_offset + line,
            lines,
            only_in_file,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_with_the_lines_of_their_documents() {
        let root = tempfile::tempdir().unwrap();
        let server = |name: &str| {
            format!(
                "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\n\
                 spec: {{ stdio: {{ command: x }} }}\n"
            )
        };
        let two = format!("# first\n{}---\n# second\n{}", server("a"), server("b"));
        std::fs::write(root.path().join("two.yaml"), &two).unwrap();
        std::fs::write(root.path().join("one.yaml"), server("c")).unwrap();
        let mut objects = find_objects(root.path()).unwrap();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let locations: Vec<_> = objects
            .iter()
            .map(|location| {
                (
                    &*location.key.name,
                    location.path.to_str().unwrap(),
                    location.line,
                    location.lines,
                    location.only_in_file,
                )
            })
            .collect();
        assert_eq!(
            locations,
            [
                ("a", "two.yaml", 2, Some((1, 6)), false),
                ("b", "two.yaml", 8, Some((6, 12)), false),
                ("c", "one.yaml", 1, Some((1, 5)), true),
            ]
        );
    }
}
