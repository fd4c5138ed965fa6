//! The real git, independent of the machine's git configuration.

use std::path::Path;
use std::process::Command;

/// Runs git in a folder, as an author with this name, and returns its trimmed stdout. Fails the test if git fails.
pub fn git(folder: &Path, author: &str, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            &format!("user.name={author}"),
            "-c",
            &format!("user.email={}@example.com", author.to_lowercase()),
        ])
        .args(["-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"])
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
