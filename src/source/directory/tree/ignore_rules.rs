//! The rules of `.evenkeelignore`, the file that names what is not read below the root. Blocks while it reads.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::root::TreeRoot;
use crate::resource::{Origin, Problem, Reason, SourceProblem};

/// The file of the rules, in the root. Its syntax is that of `.gitignore`.
pub const IGNORE_FILE: &str = ".evenkeelignore";
/// The size limit of the file.
const MAX_IGNORE_FILE_BYTES: u64 = 64 << 10;

/// The rules that decide which files and folders of a tree are not read.
#[derive(Clone, Debug)]
pub struct IgnoreRules(Gitignore);

impl Default for IgnoreRules {
    /// No rules: nothing is ignored.
    fn default() -> Self {
        Self(Gitignore::empty())
    }
}

impl IgnoreRules {
    /// Reads the rules of a tree. Returns the lines that are not valid, which have no effect.
    ///
    /// Errors: there is a file of rules that cannot be read.
    pub fn read(root: &TreeRoot) -> io::Result<(Self, Vec<SourceProblem>)> {
        let text = match root.read_file(Path::new(IGNORE_FILE), MAX_IGNORE_FILE_BYTES) {
            Ok((_, bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let path = Arc::new(PathBuf::from(IGNORE_FILE));
        let (rules, invalid) = Self::parse(text.lines());
        let to_problem = |(line, message): (u32, String)| {
            let origin = Origin::File { path: Arc::clone(&path), line };
            SourceProblem::new(Some(origin), Problem::new(Reason::ParseError, message))
        };
        Ok((rules, invalid.into_iter().map(to_problem).collect()))
    }

    /// Parses rules, one on each line. Returns the number of each invalid line, from 1, and what is wrong with it.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> (Self, Vec<(u32, String)>) {
        let mut builder = GitignoreBuilder::new("");
        let mut invalid = Vec::new();
        for (number, line) in (1..).zip(lines) {
            let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line };
            if let Err(error) = builder.add_line(None, line) {
                invalid.push((number, format!("this pattern has no effect: {error}")));
            }
        }
        (builder.build().map_or_else(|_| Self::default(), Self), invalid)
    }

    /// True if a file or folder is not read. `path` is relative to the root; of what is in an ignored folder, only the
    /// folder itself has to be asked about.
    pub fn ignores(&self, path: &Path, is_folder: bool) -> bool {
        self.0.matched(path, is_folder).is_ignore()
    }

    /// True if a file, or a folder that contains it, is not read. `path` is relative to the root and has no `..` in it.
    pub fn ignores_within(&self, path: &Path) -> bool {
        self.0.matched_path_or_any_parents(path, false).is_ignore()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_gitignore() {
        let lines = [
            "\u{feff}# charts",
            "charts/",
            "*.tmp.yaml",
            "/top.yaml",
            "!keep.tmp.yaml",
            "docs/**/x.yaml",
            "[z-a]",
        ];
        let (rules, invalid) = IgnoreRules::parse(lines);
        assert_eq!(invalid.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [7], "{invalid:?}");
        for (path, expected) in [
            ("charts/a/b.yaml", true),
            ("team/charts/b.yaml", true),
            ("charts", false),
            ("a.tmp.yaml", true),
            ("team/a.tmp.yaml", true),
            ("keep.tmp.yaml", false),
            ("top.yaml", true),
            ("team/top.yaml", false),
            ("docs/a/b/x.yaml", true),
            ("a.yaml", false),
        ] {
            assert_eq!(rules.ignores_within(Path::new(path)), expected, "{path}");
        }
        assert!(rules.ignores(Path::new("charts"), true));
        assert!(!IgnoreRules::default().ignores_within(Path::new("a.yaml")));
    }
}
