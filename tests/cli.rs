//! Tests the command line: output, streams and exit codes.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may block and fail")]

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

fn run_evenkeel(args: &[&str]) -> Output {
    run_evenkeel_with_env(&[], args)
}

fn run_evenkeel_with_env(variables: &[(&str, &str)], args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(args)
        .env_clear()
        .env("HOME", home.path())
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn crds_prints_the_generated_files() {
    let output = run_evenkeel(&["crds"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let documents: Vec<_> = ["mcpservers.yaml", "skills.yaml"]
        .iter()
        .map(|file| std::fs::read_to_string(folder.join(file)).unwrap())
        .collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), documents.join("---\n"));
}

#[test]
fn closed_stdout_is_not_an_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .arg("crds")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn usage_errors_exit_with_2() {
    for (args, expected) in [
        (&["nonsense"][..], "unrecognized subcommand"),
        (&["run", "--listen", "here"], "invalid socket address"),
        (&["run", "--listen", "0.0.0.0:0"], "--insecure"),
        (&["run", "--admin", "[::]:0"], "--insecure"),
        (&["run", "--log", "a=b=c"], "--log"),
    ] {
        let output = run_evenkeel(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn invalid_kubernetes_names_are_usage_errors() {
    for (flag, variable, given, expected) in [
        // An empty name would select every namespace.
        ("--namespace", "EVENKEEL_NAMESPACE", "", "invalid namespace \"\""),
        ("--namespace", "EVENKEEL_NAMESPACE", "a,", "invalid namespace \"\""),
        ("--namespace", "EVENKEEL_NAMESPACE", "Bad_NS", "invalid namespace"),
        ("--namespace", "EVENKEEL_NAMESPACE", "a/b", "invalid namespace"),
        ("--lease-namespace", "EVENKEEL_LEASE_NAMESPACE", "", "invalid namespace"),
        ("--lease-namespace", "POD_NAMESPACE", "a/b", "invalid namespace"),
        ("--lease", "EVENKEEL_LEASE", "", "invalid object name"),
        ("--lease", "EVENKEEL_LEASE", "A_b", "invalid object name"),
        ("--session-key-secret", "EVENKEEL_SESSION_KEY_SECRET", "x/y/z", "invalid Secret key"),
        ("--session-key-secret", "EVENKEEL_SESSION_KEY_SECRET", "X", "invalid object name"),
        ("--session-key-secret", "EVENKEEL_SESSION_KEY_SECRET", "", "invalid object name"),
    ] {
        let flag = format!("{flag}={given}");
        for output in [
            run_evenkeel(&["run", "--kubernetes", &flag]),
            run_evenkeel_with_env(&[(variable, given)], &["run", "--kubernetes"]),
        ] {
            assert_eq!(output.status.code(), Some(2), "{flag}: {}", stderr(&output));
            assert!(stderr(&output).contains(expected), "{flag}: {}", stderr(&output));
        }
    }
}

#[test]
#[cfg(not(feature = "otlp"))]
fn build_without_otlp_names_the_feature() {
    let output = run_evenkeel(&["run", "--otlp-endpoint", "http://localhost:4318"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--features otlp"), "{}", stderr(&output));
}

#[test]
fn port_in_use_exits_with_1_and_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().to_str().unwrap();
    for (flag, other) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let output = run_evenkeel(&["run", directory, flag, &address, other, "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{flag}: {}", stderr(&output));
        let stderr_text = stderr(&output);
        assert!(stderr_text.contains(&address) && stderr_text.contains(flag), "{flag}: {stderr_text}");
    }
}
