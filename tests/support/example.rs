//! Finds programs that tests start, built as examples.

use std::path::{Path, PathBuf};

/// Finds the example of this name beside the test that is running. Refuses one that is older than the files in its source
/// directories.
pub fn example(name: &str, sources: &[&str]) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.ancestors().nth(2).unwrap().join("examples").join(name);
    let changed = |path: &Path| path.metadata().and_then(|found| found.modified());
    let files = sources
        .iter()
        .flat_map(|source| Path::new(env!("CARGO_MANIFEST_DIR")).join(source).read_dir().unwrap())
        .map(|entry| entry.unwrap().path());
    let newest = files.map(|file| changed(&file).unwrap()).max().unwrap();
    match changed(&program) {
        Ok(built) if built >= newest => program,
        _ => panic!("{name} is missing or older than its source: run `cargo build --example {name}` first"),
    }
}
