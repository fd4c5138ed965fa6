//! The real git, whatever the machine's own configuration says.

use std::path::Path;
use std::process::Command;

/// Runs git in a folder, as somebody. What it prints.
pub fn git(folder: &Path, who: &str, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            &format!("user.name={who}"),
            "-c",
            &format!("user.email={}@example.com", who.to_lowercase()),
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
