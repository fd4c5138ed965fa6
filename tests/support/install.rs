//! What tests need from registries, installed or built once under `target/` and shared by all test programs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the commands that fill the directory `target/NAME`, unless that was done before. Parallel tests, also of
/// other programs, wait for each other. `announcement` is said before the work begins.
pub fn once(name: &str, announcement: &str, commands: impl FnOnce(&Path) -> Vec<Command>) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).expect("a test lives in target/PROFILE/deps");
    let home = target.join(name);
    let done = home.join("installed");
    std::fs::create_dir_all(&home).unwrap();
    let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !done.exists() {
        say(announcement);
        for mut command in commands(&home) {
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
        }
        File::create(done).unwrap();
    }
    home
}

/// The program on PATH. Without it the test is skipped and says so, or fails if `EVENKEEL_REQUIRE_PEERS` is set.
pub fn present(program: &str, wanted: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
    });
    if found.is_none() {
        let message = format!("SKIPPED: {wanted} needs {program}, which is not on PATH");
        assert!(std::env::var_os("EVENKEEL_REQUIRE_PEERS").is_none(), "{message}");
        say(&message);
    }
    found
}

/// Not by the macro: the test harness would keep that to itself.
fn say(message: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "\n*** {message} ***\n").unwrap();
}
