//! Type names: one name means one thing in the whole crate.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test may panic and block")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names that every module may use for its own purpose, as Rust's standard library does.
const SHARED_NAMES: [&str; 3] = ["Args", "Error", "Options"];

#[test]
fn type_names_are_unique_in_the_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut definitions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in rust_files(&root) {
        let text = std::fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(&root).unwrap().display().to_string();
        for name in visible_types(&text) {
            definitions.entry(name.to_owned()).or_default().push(place.clone());
        }
    }
    assert!(definitions.len() > 200, "only {} types were found in {}", definitions.len(), root.display());
    let repeated: Vec<_> = definitions
        .iter()
        .filter(|(name, files)| files.len() > 1 && !SHARED_NAMES.contains(&name.as_str()))
        .map(|(name, files)| format!("{name}: {}", files.join(", ")))
        .collect();
    assert!(repeated.is_empty(), "types with the same name:\n{}", repeated.join("\n"));
}

/// The types that other modules can name: those with any `pub`. Test modules are at the end of a file and left out.
fn visible_types(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub")?;
        let rest = match rest.strip_prefix('(') {
            Some(scope) => scope.split_once(") ")?.1,
            None => rest.trim_start(),
        };
        let (kind, rest) = rest.split_once(' ')?;
        let name = rest.split(|char: char| !char.is_alphanumeric() && char != '_').next()?;
        ["struct", "enum", "trait", "type", "union"].contains(&kind).then_some(name)
    })
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn tests_named_in_guarantees_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let files = ["src", "tests"].map(|folder| rust_files(&root.join(folder)));
    let code: String =
        files.into_iter().flatten().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    // The name of a test is a long word in snake case.
    let words = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() >= 2);
    let names: Vec<_> =
        words.filter(|word| !word.contains(|other: char| !other.is_alphanumeric() && other != '_')).collect();
    assert!(names.len() > 30, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/guarantees.md names tests that do not exist: {missing:?}");
}
