//! Tests that imports have one direction, between the modules of the crate and within each.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic and block"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules of the crate, lowest first: a module imports only modules before it.
const MODULE_ORDER: [&str; 18] = [
    "text",
    "resource",
    "net",
    "telemetry",
    "state_dir",
    "plan",
    "source",
    "wire",
    "oauth",
    "upstream",
    "catalog",
    "fleet",
    "skills",
    "gateway",
    "report",
    "admin",
    "daemon",
    "cli",
];

/// The modules without clock, runtime and I/O, which compute over plain data. Attributes and doc comments do not
/// count.
const PURE_MODULES: [&str; 4] = ["resource", "plan", "fleet::state_machine", "fleet::refresh_schedule"];
/// The type of an instant, which is data in the pure modules that get the time passed in.
const INSTANT: &str = "tokio::time::Instant";
const MODULES_WITH_INSTANTS: &str = "fleet::";
const IMPURE_PATHS: [&str; 11] = [
    "tokio::",
    "tokio_util::",
    "std::fs",
    "std::net::Tcp",
    "std::process",
    "std::env",
    "std::time::Instant",
    "Instant::now",
    "Timestamp::now",
    "SystemTime",
    "std::thread",
];

/// The path of a module from the crate root.
type ModulePath = Vec<String>;

/// The imports of all files.
struct CrateImports {
    /// The file of each module, and its text without comments, strings and tests.
    files: BTreeMap<ModulePath, (String, String)>,
    /// The re-exports of each module: name and original path.
    exports: BTreeMap<ModulePath, BTreeMap<String, ModulePath>>,
}

/// One path that a file imports or uses.
struct Import {
    exported: bool,
    path: ModulePath,
}

impl CrateImports {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let module: ModulePath = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
                let module = match module.split_last().unwrap() {
                    (last, parent) if ["mod", "lib"].contains(&&**last) => parent.to_vec(),
                    (last, []) if last == "main" => continue,
                    _ => module,
                };
                // Test modules may import higher modules.
                if module.iter().any(|part| ["fuzz", "tests", "testing"].contains(&&**part)) {
                    continue;
                }
                files.insert(module, (name, code_only(&fs::read_to_string(&path).unwrap())));
            }
        }
        let mut all = Self { files, exports: BTreeMap::new() };
        let modules: Vec<_> = all.files.keys().cloned().collect();
        for module in modules {
            let exported = all.imports(&module).into_iter().filter(|import| import.exported);
            let exported =
                exported.map(|import| (import.path.last().unwrap().clone(), import.path)).collect();
            all.exports.insert(module, exported);
        }
        all
    }

    /// Returns the paths within the crate that a file uses, from the crate root.
    fn imports(&self, module: &ModulePath) -> Vec<Import> {
        let (_, text) = &self.files[module];
        let mut imports = Vec::new();
        let mut other_code = String::new();
        for statement in text.split_inclusive(';') {
            let at = statement.rfind("use ").filter(|at| {
                let before = statement[..*at].rsplit('\n').next().unwrap().trim();
                before.is_empty() || before.starts_with("pub")
            });
            let Some(at) = at else {
                other_code.push_str(statement);
                continue;
            };
            other_code.push_str(&statement[..at]);
            let exported = statement[..at].rsplit('\n').next().unwrap().contains("pub");
            let mut leaves = Vec::new();
            expand_use_tree(statement[at + 4..].trim_end_matches(';'), &[], &mut leaves);
            imports.extend(
                leaves
                    .into_iter()
                    .filter_map(|leaf| Some(Import { exported, path: self.resolve_path(module, &leaf)? })),
            );
        }
        let other_code = other_code.replace("pub(in crate", "pub(in_crate");
        let paths = other_code.split(|char: char| !(char.is_alphanumeric() || "_:".contains(char)));
        for path_text in paths.filter(|path_text| path_text.contains("::")) {
            let path: Vec<_> = path_text.split("::").map(str::to_owned).collect();
            imports.extend(self.resolve_path(module, &path).map(|path| Import { exported: false, path }));
        }
        imports
    }

    /// Returns a path from the crate root; `None` if it is outside of the crate.
    fn resolve_path(&self, module: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let (mut base, mut path) = (module.clone(), path);
        match path.first()?.as_str() {
            "crate" => return Some(path[1..].to_vec()),
            "self" => path = &path[1..],
            "super" => {
                while path.first().is_some_and(|part| part == "super") {
                    base.pop();
                    path = &path[1..];
                }
            }
            first => {
                let child: ModulePath = base.iter().cloned().chain([first.to_owned()]).collect();
                if !self.files.contains_key(&child) {
                    return None;
                }
            }
        }
        base.extend(path.iter().cloned());
        Some(base)
    }

    /// Returns the module that defines the item at a path, following re-exports.
    fn defining_module(&self, path: &[String]) -> ModulePath {
        let mut path = path.to_vec();
        for _ in 0..10 {
            let module_length =
                (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length])).unwrap_or(0);
            let (module, item) = path.split_at(module_length);
            let from = item.first().and_then(|item| self.exports.get(module)?.get(item));
            match from {
                Some(from) if from.as_slice() != &path[..=module_length] => {
                    path = from.iter().chain(&item[1..]).cloned().collect();
                }
                _ => return module.to_vec(),
            }
        }
        path
    }

    /// Returns which module uses which other module.
    fn uses(&self) -> Vec<(ModulePath, ModulePath)> {
        let mut uses = Vec::new();
        for module in self.files.keys() {
            for import in self.imports(module).into_iter().filter(|import| !import.exported) {
                let home = self.defining_module(&import.path);
                if home != *module {
                    uses.push((module.clone(), home));
                }
            }
        }
        uses
    }
}

/// Returns the text of a file without comments, strings and the tests at its end.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_tests = |next: &&str| next.trim_start().starts_with("mod ") && next.ends_with('{');
        if line.trim() == "#[cfg(test)]" && lines.peek().is_some_and(is_tests) {
            break;
        }
        let line = line.find("//").map_or(line, |at| &line[..at]);
        let mut quoted = false;
        code.extend(line.chars().filter(|char| {
            quoted ^= *char == '"';
            !quoted
        }));
        code.push('\n');
    }
    code
}

/// Appends the paths of a `use` tree to `leaves`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand_use_tree(text: &str, before: &[String], leaves: &mut Vec<ModulePath>) {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, char) in text.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let (head, inner) =
            part.split_once('{').map_or((part, None), |(head, inner)| (head, inner.rsplit_once('}')));
        let head = head.split(" as ").next().unwrap();
        let names = head.split("::").map(str::trim).filter(|name| !name.is_empty() && *name != "self");
        let path: Vec<_> = before.iter().cloned().chain(names.map(str::to_owned)).collect();
        let path = if before.is_empty() && head.trim_start().starts_with("self") {
            std::iter::once("self".to_owned()).chain(path).collect()
        } else {
            path
        };
        match inner {
            Some((inner, _)) => expand_use_tree(inner, &path, leaves),
            None => leaves.push(path),
        }
    }
}

fn src_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

#[test]
fn modules_import_only_lower_modules() {
    let all = CrateImports::read(src_dir());
    let position = |name: &str| {
        MODULE_ORDER
            .iter()
            .position(|module| *module == name)
            .unwrap_or_else(|| panic!("{name} is missing in ORDER"))
    };
    let mut violations = BTreeSet::new();
    for (from, to) in all.uses() {
        let (Some(lower), Some(higher)) = (to.first(), from.first()) else { continue };
        if position(lower) > position(higher) {
            violations.insert(format!("src/{} imports {}", all.files[&from].0, to.join("::")));
        }
    }
    assert!(violations.is_empty(), "imports go from higher to lower modules:\n{violations:#?}");
}

#[test]
fn modules_have_no_import_cycles() {
    let all = CrateImports::read(src_dir());
    let uses = all.uses();
    let parents: BTreeSet<&[String]> =
        all.files.keys().filter_map(|module| Some(module.split_last()?.1)).collect();
    let mut cycles = Vec::new();
    for parent in parents {
        // A child stands for all modules in it; the empty name for the parent's own file.
        let unit = |module: &ModulePath| {
            module.starts_with(parent).then(|| module.get(parent.len()).cloned().unwrap_or_default())
        };
        let mut edges: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (from, to) in &uses {
            let (Some(one), Some(other)) = (unit(from), unit(to)) else { continue };
            if one != other {
                let edge = format!("src/{} imports {}", all.files[from].0, to.join("::"));
                edges.entry(one).or_default().insert(other, edge);
            }
        }
        // A module without remaining imports is not part of a cycle. Remove such modules until none is left.
        loop {
            let before = edges.values().map(BTreeMap::len).sum::<usize>();
            let alive: BTreeSet<_> = edges.keys().cloned().collect();
            for to in edges.values_mut() {
                to.retain(|to, _| alive.contains(to));
            }
            edges.retain(|_, to| !to.is_empty());
            if edges.values().map(BTreeMap::len).sum::<usize>() == before {
                break;
            }
        }
        cycles.extend(edges.into_values().flat_map(BTreeMap::into_values));
    }
    assert!(cycles.is_empty(), "these imports form a cycle, or lead to one:\n{cycles:#?}");
}

#[test]
fn pure_modules_use_no_clock_and_no_io() {
    let all = CrateImports::read(src_dir());
    let mut violations = Vec::new();
    for (module, (file, text)) in &all.files {
        let path = module.join("::");
        let is_pure = |pure: &&str| path == *pure || path.starts_with(&format!("{pure}::"));
        if PURE_MODULES.iter().any(is_pure) {
            let text = if path.starts_with(MODULES_WITH_INSTANTS) {
                text.replace(INSTANT, "")
            } else {
                text.clone()
            };
            let found = IMPURE_PATHS.into_iter().filter(|path| text.contains(path));
            violations.extend(found.map(|path| format!("src/{file} uses {path}")));
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn import_parser_finds_every_path() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod a;\npub mod b;\n");
    write(
        "a/mod.rs",
        "mod one;\n#[cfg(test)]\nmod testing;\nmod two;\npub use one::{One, Other as Third};\n",
    );
    write(
        "a/one.rs",
        "use super::two::Two;\nuse crate::b::{\n    self,\n    B as C,\n};\npub struct One(b::D);\n",
    );
    write(
        "a/two.rs",
        "// use crate::b::X;\nfn f() { let _ = crate::a::One; }\n#[cfg(test)]\nmod tests {\n    use crate::b::Y;\n}\n",
    );
    write("b.rs", "const TEXT: &str = \"use crate::a::One;\";\n");
    let all = CrateImports::read(folder.path());
    let uses: BTreeSet<_> = all
        .uses()
        .into_iter()
        .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
        .collect();
    let expected = ["a::one -> a::two", "a::one -> b", "a::two -> a::one"];
    assert_eq!(uses.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}
