//! Installs programs that tests need from registries, or builds them, once under `target/` for all test programs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the commands that fill the directory `target/NAME`, unless that was done before. Parallel tests, also in other
/// test programs, wait for each other. `announcement` is printed before the commands run.
pub fn install_once(name: &str, announcement: &str, commands: impl FnOnce(&Path) -> Vec<Command>) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).expect("the test is in target/PROFILE/deps");
    let home = target.join(name);
    let done = home.join("installed");
    std::fs::create_dir_all(&home).unwrap();
    let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !done.exists() {
        announce(announcement);
        for mut command in commands(&home) {
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
        }
        File::create(done).unwrap();
    }
    home
}

/// Returns the path of a program, if it is on PATH.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Returns the path of a program. Fails the test if it is not on PATH; `build.rs` in this directory makes Cargo ignore
/// such tests otherwise. `user` names what needs the program.
pub fn require_on_path(program: &str, user: &str) -> PathBuf {
    find_on_path(program).unwrap_or_else(|| panic!("{user} needs {program}, which is not on PATH"))
}

/// Prints to stderr without `eprintln!`, whose output the test harness captures.
fn announce(message: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "\n*** {message} ***\n").unwrap();
}
