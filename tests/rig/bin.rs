//! The test rig as a program: `rig [--http ADDRESS] SCRIPT.json`. For tests only; see `tests/rig/mod.rs`.

use std::path::PathBuf;

#[path = "mod.rs"]
mod rig;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("--linger") => rig::run_grandchild(args.next().map(PathBuf::from)).await,
        Some("--run-away") => {
            // Fails only for a process group leader, which this process is not.
            let _ = rustix::process::setsid();
            rig::run_grandchild(args.next().map(PathBuf::from)).await;
        }
        Some("--http") => {
            let address = args.next().and_then(|address| address.parse().ok());
            let script = args.next().map(PathBuf::from);
            match (address, script) {
                (Some(address), Some(script)) => rig::run(&script, Some(address)).await,
                _ => usage(),
            }
        }
        Some(script) => rig::run(&PathBuf::from(script), None).await,
        None => usage(),
    }
}

#[expect(clippy::print_stderr, reason = "usage is printed to stderr")]
fn usage() {
    eprintln!("usage: rig [--http ADDRESS] SCRIPT.json");
}
