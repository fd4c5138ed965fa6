//! Finds the programs that tests start and that are built as examples.

use std::path::{Path, PathBuf};

/// Returns the example with this name from the target directory of the running test. Fails the test if the example is
/// older than the files in its source directories.
pub fn example(name: &str, sources: &[&str]) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.ancestors().nth(2).unwrap().join("examples").join(name);
    let modified = |path: &Path| path.metadata().and_then(|found| found.modified());
    let files = sources
        .iter()
        .flat_map(|source| Path::new(env!("CARGO_MANIFEST_DIR")).join(source).read_dir().unwrap())
        .map(|entry| entry.unwrap().path());
    let newest = files.map(|file| modified(&file).unwrap()).max().unwrap();
    match modified(&program) {
        Ok(built) if built >= newest => program,
        _ => panic!("{name} is missing or older than its source: run `cargo build --example {name}` first"),
    }
}
