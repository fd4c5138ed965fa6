//! Files that are no declarations and change what is declared: those of `envFile`, and `.evenkeelignore`.

use secrecy::ExposeSecret;

use super::*;
use crate::resource::Transport;

/// Returns the variables of the server `a`, or its problem.
fn variables_of_a(fixture: &ScanFixture) -> String {
    let server = fixture.scanner.desired.servers.values().find(|server| &*server.meta.key.name == "a");
    match server.unwrap().endpoint.as_ref().unwrap() {
        Err(problem) => problem.reason.to_string(),
        Ok(endpoint) => {
            let Transport::Stdio(stdio) = &endpoint.transport else { panic!("{endpoint:?}") };
            let pair =
                |(name, value): &(String, secrecy::SecretString)| format!("{name}={}", value.expose_secret());
            stdio.env.iter().map(pair).collect::<Vec<_>>().join(" ")
        }
    }
}

#[test]
fn changes_of_an_env_file_change_the_connection_of_its_server_only() {
    let mut fixture = ScanFixture::new(&[
        ("b.yaml", &server("b", "x")),
        (
            ".mcp.json",
            r#"{ "mcpServers": { "a": { "command": "x", "envFile": "conf/.env", "env": { "A": "own" } } } }"#,
        ),
    ]);
    fixture.scan_until_settled();
    assert_eq!(variables_of_a(&fixture), "EnvFileNotFound");
    assert_eq!(fixture.scanner.desired.source.problems, []);
    let unrelated = |fixture: &ScanFixture| {
        Arc::clone(
            fixture.scanner.desired.servers.values().find(|server| &*server.meta.key.name == "b").unwrap(),
        )
    };
    let before = unrelated(&fixture);
    for (text, expected) in [("A=file\nB=1\n", "A=own B=1"), ("B=22\n", "A=own B=22"), ("", "A=own")] {
        fixture.write("conf/.env", text);
        fixture.scan_until_settled();
        assert_eq!(variables_of_a(&fixture), expected);
    }
    fixture.remove("conf/.env");
    fixture.scan_until_settled();
    assert_eq!(variables_of_a(&fixture), "EnvFileNotFound");
    assert!(Arc::ptr_eq(&before, &unrelated(&fixture)));
    fixture.write(".mcp.json", r#"{ "mcpServers": { "a": { "command": "x" } } }"#);
    fixture.scan_until_settled();
    assert_eq!(variables_of_a(&fixture), "");
    fixture.scan_until_settled();
    assert!(fixture.scanner.env_files.is_empty());
}

#[test]
fn ignored_files_declare_nothing() {
    let mut fixture = ScanFixture::new(&[
        ("a.yaml", &server("a", "x")),
        ("charts/b.yaml", &server("b", "x")),
        ("charts/broken.yaml", "apiVersion: evenkeel.dev/v1alpha1\nkind: [\n"),
        (".evenkeelignore", "charts/\n"),
    ]);
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert_eq!(fixture.scanner.desired.source.problems, []);
    fixture.write(".evenkeelignore", "charts/broken.yaml\n[z-a]\n");
    assert_eq!(fixture.scan_until_settled(), ["a/1 x", "b/1 x"]);
    let problems: Vec<_> =
        fixture.scanner.desired.source.problems.iter().map(|problem| problem.location().unwrap()).collect();
    assert_eq!(problems, [".evenkeelignore:2"]);
    fixture.write(".evenkeelignore", "b.yaml\n");
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    // Rules that cannot be read do not declare what they may ignore.
    fixture.write(".evenkeelignore", &"#".repeat(1 << 17));
    assert_eq!(fixture.scan_until_settled(), ["a/1 x"]);
    assert!(fixture.scanner.desired.source.problems[0].problem.message.contains("larger than 64 KiB"));
}
