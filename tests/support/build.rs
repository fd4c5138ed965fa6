//! Sets the cfg `without_NAME` for each program that tests need and this machine lacks. Those tests are ignored. With
//! `EVENKEEL_REQUIRE_PEERS` the cfgs for programs are not set, and such tests fail.

#![allow(clippy::print_stdout, reason = "Cargo reads the output of a build script")]

use std::env::var_os;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let go = on_path("go");
    let python = on_path("python3");
    let api_server = is_set("KUBEBUILDER_ASSETS") | go;
    let needs = [
        ("go", go),
        ("node", on_path("node") & on_path("npm")),
        ("python", python),
        ("api_server", api_server),
        ("kubectl", is_set("KUBECTL") | on_path("kubectl") | api_server),
        ("promtool", is_set("PROMTOOL") | on_path("promtool") | on_path("apt-get")),
    ];
    let required = is_set("EVENKEEL_REQUIRE_PEERS");
    for (name, found) in needs {
        emit_cfg(name, found || required);
    }
    emit_cfg("reftable", on_path("git") && git_supports_reftable());
    println!("cargo::rerun-if-changed=tests/support/build.rs");
    println!("cargo::rerun-if-env-changed=PATH");
}

/// Declares the cfg `without_NAME`, and sets it unless the program was found.
fn emit_cfg(name: &str, found: bool) {
    println!("cargo::rustc-check-cfg=cfg(without_{name})");
    if !found {
        println!("cargo::rustc-cfg=without_{name}");
    }
}

/// Returns true if an environment variable is set.
fn is_set(variable: &str) -> bool {
    println!("cargo::rerun-if-env-changed={variable}");
    var_os(variable).is_some()
}

/// Returns true if a program is on PATH. The build script runs again when the program changes or is removed.
fn on_path(program: &str) -> bool {
    let found: Option<PathBuf> = var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    });
    if let Some(file) = &found {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    found.is_some()
}

/// Returns true if git supports reftables, which it does since 2.45.
fn git_supports_reftable() -> bool {
    let Ok(output) = Command::new("git").arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim_start_matches("git version ");
    let mut numbers = version.split('.').map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(2), Some(45))
}
