//! What tests need from registries, installed or built once under `target/` and shared by all test programs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the commands that fill the directory `target/NAME`, unless that was done before. Parallel tests, also of
/// other programs, wait for each other. `announcement` is said before the work begins.
pub fn install_once(name: &str, announcement: &str, commands: impl FnOnce(&Path) -> Vec<Command>) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).expect("a test lives in target/PROFILE/deps");
    let home = target.join(name);
    let done = home.join("installed");
    std::fs::create_dir_all(&home).unwrap();
    let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !done.exists() {
        announce(announcement);
        for mut command in commands(&home) {
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
        }
        File::create(done).unwrap();
    }
    home
}

/// A program that may be on PATH.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A program that must be on PATH. Tests that need it are ignored where it is not, by `build.rs` beside this.
pub fn require_on_path(program: &str, wanted: &str) -> PathBuf {
    find_on_path(program).unwrap_or_else(|| panic!("{wanted} needs {program}, which is not on PATH"))
}

/// Not by the macro: the test harness would keep that to itself.
fn announce(message: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "\n*** {message} ***\n").unwrap();
}
