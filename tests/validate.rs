//! Tests `evenkeel validate` with its output formats for people and CI.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may block and fail")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const VALID_SERVER: &str = "\
apiVersion: evenkeel.dev/v1alpha1
kind: McpServer
metadata: { name: github }
spec:
  stdio:
    command: npx
    env:
      - { name: TOKEN, valueFrom: { secretKeyRef: { name: github, key: token } } }
      - { name: PROXY, valueFrom: { env: PROXY } }
";

const INVALID_SERVERS: &str = "\
# two mistakes
apiVersion: evenkeel.dev/v1alpha1
kind: McpServer
metadata: { name: web }
spec:
  http:
    url: ftp://hunter2
  health: { failures: 99 }
---
apiVersion: evenkeel.dev/v1alpha1
kind: McpServer
metadata: { name: typo }
spec:
  stdio: { command: npx, argz: [hunter2] }
";

const SKILL_WITH_UNKNOWN_SERVER: &str = "\
apiVersion: evenkeel.dev/v1alpha1
kind: Skill
metadata: { name: notes }
spec: { inline: \"---\\nname: notes\\ndescription: x\\n---\", serverRefs: [{ name: githb }] }
";

fn temp_dir_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Runs `evenkeel validate` in `folder`, and returns the exit code, stdout and stderr.
fn run_validate(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .arg("validate")
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn valid_declarations_pass_wherever_they_are_checked() {
    let folder = temp_dir_with(&[
        ("fleet/a.yaml", VALID_SERVER),
        ("fleet/other.yaml", "apiVersion: v1\nkind: ConfigMap\n"),
    ]);
    let (code, out, err) = run_validate(folder.path(), &["fleet"], &[("PROXY", "p")]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "fleet: note: references to secrets were not checked; set --secrets-dir to check them\n\
         1 server and 0 skills in 2 files: 1 note; 1 document of other programs passed over\n"
    );
    // The variable may be set where evenkeel runs, so this is not an error.
    let (code, out, _) = run_validate(folder.path(), &["fleet/a.yaml"], &[]);
    assert_eq!(code, 0);
    assert!(out.contains("fleet/a.yaml:1: note: McpServer default/github: variable PROXY: "), "{out}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is written");
}

#[test]
fn printed_lists_validate_and_unknown_documents_are_noted() {
    let item = |name: &str, env: &str| {
        format!(
            "- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n  metadata: {{ name: {name}, uid: x }}\n  spec:\n    stdio:\n      command: npx\n      env: [{env}]\n  status: {{}}\n"
        )
    };
    let list = |items: &[String]| format!("apiVersion: v1\nitems:\n{}kind: List\n", items.concat());
    let redacted = "{ name: TOKEN, value: <redacted> }";
    let folder = temp_dir_with(&[
        ("good/all.yaml", &list(&[item("a", ""), item("b", "")])),
        ("bad/all.yaml", &list(&[item("a", ""), item("b", redacted)])),
        ("other/b.yaml", "kind: McpServer\nmetadata: { name: a }\n"),
    ]);
    let (code, out, _) = run_validate(folder.path(), &["good"], &[]);
    assert_eq!((code, out.as_str()), (0, "2 servers and 0 skills in 1 file: no findings\n"));
    let (code, out, _) = run_validate(folder.path(), &["bad"], &[]);
    let expected =
        "bad/all.yaml:17:28: error: McpServer default/b: spec.stdio.env[0].value: the value of TOKEN is";
    assert!(code == 1 && out.starts_with(expected), "{out}");
    let (code, out, _) = run_validate(folder.path(), &["other"], &[]);
    assert_eq!(
        (code, out.as_str()),
        (
            1,
            "other/b.yaml:1:1: error: apiVersion is missing; write apiVersion: evenkeel.dev/v1alpha1\n     \
             1 | kind: McpServer\n       | ^\n     2 | metadata: …\n\
             0 servers and 0 skills in 1 file: 1 error\n"
        )
    );
}

#[test]
fn secret_references_are_checked_in_secrets_dir() {
    let folder =
        temp_dir_with(&[("a.yaml", VALID_SERVER), ("secrets/github/token", "hunter2"), ("empty/x/y", "")]);
    let env = [("PROXY", "p")];
    let (code, out, _) = run_validate(folder.path(), &["a.yaml", "--secrets-dir", "secrets"], &env);
    assert_eq!((code, out.as_str()), (0, "1 server and 0 skills in 1 file: no findings\n"));
    let (code, out, err) = run_validate(folder.path(), &["a.yaml", "--secrets-dir", "empty"], &env);
    assert_eq!((code, err.as_str()), (1, "error: the declarations are not valid\n"));
    assert!(
        out.contains("a.yaml:1: error: McpServer default/github: variable TOKEN: secret \"github\""),
        "{out}"
    );
}

#[test]
fn mistakes_are_reported_with_positions_and_without_values() {
    let folder = temp_dir_with(&[
        ("fleet/a.yaml", VALID_SERVER),
        ("fleet/b.yaml", INVALID_SERVERS),
        ("fleet/c.yaml", SKILL_WITH_UNKNOWN_SERVER),
        ("fleet/d/a.yaml", VALID_SERVER),
    ]);
    let (code, out, _) = run_validate(folder.path(), &["./fleet/"], &[("PROXY", "p")]);
    assert_eq!(code, 1);
    for expected in [
        "fleet/b.yaml:7:5: error: McpServer default/web: spec.http.url: url must start with http:// or https://\n     6 |   http:\n     7 |     url: …\n       |     ^\n",
        "fleet/b.yaml:8:13: error: McpServer default/web: spec.health.failures: failures must be from 1 to 20\n",
        "fleet/b.yaml:14:26: error: McpServer default/typo: unknown field \"spec.stdio.argz\"; did you mean \"args\"?\n",
        "fleet/c.yaml:1: error: Skill default/notes: server \"githb\" is not declared; did you mean \"github\"?\n",
        "fleet/d/a.yaml:1: error: McpServer default/github is already declared in a.yaml, which stays in force; rename or remove one of them\n",
        "3 servers and 1 skill in 4 files: 5 errors, 1 note\n",
    ] {
        assert!(out.contains(expected), "{expected} in {out}");
    }
    assert!(!out.contains("hunter2"), "{out}");
}

#[test]
fn findings_are_printed_as_json_and_annotations() {
    let folder = temp_dir_with(&[("fl,eet/b.yaml", INVALID_SERVERS)]);
    let (code, out, _) = run_validate(folder.path(), &["fl,eet", "-o", "json"], &[]);
    assert_eq!(code, 1);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["valid"], &json["errors"], &json["files"]), (&false.into(), &3.into(), &1.into()));
    let first = &json["findings"][0];
    let field_text = |field: &str| first[field].to_string();
    assert_eq!(
        [
            field_text("level"),
            field_text("file"),
            field_text("line"),
            field_text("column"),
            field_text("reason")
        ],
        ["\"error\"", "\"fl,eet/b.yaml\"", "7", "5", "\"InvalidSpec\""]
    );
    assert!(first["excerpt"].as_str().unwrap().contains('^'));
    let (_, out, _) = run_validate(folder.path(), &["fl,eet", "-o", "github"], &[]);
    let line = out.lines().next().unwrap();
    assert!(
        line.starts_with("::error file=fl%2Ceet/b.yaml,line=7,col=5,title=InvalidSpec::McpServer default/web: spec.http.url: "),
        "{line}"
    );
    assert!(line.contains("%0A     7 |     url: …%0A"), "{line}");
}

#[test]
fn unreadable_files_are_reported_as_errors() {
    let folder = temp_dir_with(&[
        ("fleet/a.yaml", VALID_SERVER),
        ("outside.yaml", VALID_SERVER),
        ("empty/readme.md", ""),
    ]);
    symlink("../outside.yaml", folder.path().join("fleet/link.yaml")).unwrap();
    fs::write(folder.path().join("fleet/huge.yaml"), "#".repeat(2 << 20)).unwrap();
    let (code, out, _) = run_validate(folder.path(), &["fleet"], &[("PROXY", "p")]);
    assert_eq!(code, 1);
    assert!(
        out.contains("fleet/link.yaml:1: error: the file is a link to a target outside the directory"),
        "{out}"
    );
    assert!(out.contains("fleet/huge.yaml:1: error: the file is larger than 1 MiB"), "{out}");
    let (code, out, _) = run_validate(folder.path(), &["empty"], &[]);
    assert_eq!(code, 0);
    assert!(out.starts_with("empty: warning: no declarations found"), "{out}");
    let (code, _, err) = run_validate(folder.path(), &["nowhere"], &[]);
    assert_eq!(code, 1);
    assert!(err.starts_with("error: nowhere: No such file"), "{err}");
    assert_eq!(run_validate(folder.path(), &[], &[]).0, 2);
    assert_eq!(run_validate(folder.path(), &["fleet", "-o", "xml"], &[]).0, 2);
}

#[test]
fn files_of_other_programs_are_passed_over() {
    let folder = temp_dir_with(&[
        ("fleet/a.yaml", VALID_SERVER),
        ("fleet/chart/templates/deployment.yaml", "{{- if .Values.on }}\napiVersion: apps/v1\n{{- end }}\n"),
        (
            "fleet/chart/templates/server.yaml",
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {{ .Release.Name }}\n",
        ),
        ("fleet/broken.yaml", "a: [\n"),
    ]);
    fs::write(folder.path().join("fleet/data.yaml"), b"\xff\xfe\xfd").unwrap();
    let env = [("PROXY", "p")];
    let (code, out, _) = run_validate(folder.path(), &["fleet"], &env);
    assert_eq!(code, 0, "{out}");
    let template = "fleet/chart/templates/server.yaml:1: note: nothing is declared here: it is a template";
    assert!(out.contains(template), "{out}");
    let summary = "1 server and 0 skills in 5 files: 2 notes; 4 documents of other programs passed over\n";
    assert!(out.ends_with(summary), "{out}");
}

#[test]
fn files_are_excluded_by_patterns_and_by_the_ignore_file() {
    let folder = temp_dir_with(&[
        ("fleet/a.yaml", VALID_SERVER),
        ("fleet/drafts/b.yaml", INVALID_SERVERS),
        ("fleet/c.yaml", INVALID_SERVERS),
    ]);
    let env = [("PROXY", "p")];
    let run = |args: &[&str]| run_validate(folder.path(), args, &env);
    assert_eq!(run(&["fleet"]).0, 1);
    let (code, out, _) = run(&["fleet", "--exclude", "drafts/", "--exclude", "c.yaml"]);
    assert!(code == 0 && out.contains("1 server and 0 skills in 1 file"), "{out}");
    assert_eq!(run(&["fleet", "--exclude", "drafts/"]).0, 1);
    let (code, _, err) = run(&["fleet", "--exclude", "[z-a]"]);
    assert!(code == 2 && err.contains("--exclude"), "{err}");
    let (code, out, _) = run(&["fleet/a.yaml", "fleet/c.yaml", "--exclude", "c.yaml"]);
    assert!(code == 0 && out.contains("in 1 file"), "{out}");
    fs::write(folder.path().join("fleet/.evenkeelignore"), "# not ready\n/drafts/\nc.*\n").unwrap();
    let (code, out, _) = run(&["fleet"]);
    assert!(code == 0 && out.contains("1 server and 0 skills in 1 file"), "{out}");
    fs::write(folder.path().join("fleet/.evenkeelignore"), "/drafts/\n[z-a]\nc.*\n").unwrap();
    let (code, out, _) = run(&["fleet"]);
    assert!(
        code == 0 && out.contains("fleet/.evenkeelignore:2: warning: this pattern has no effect"),
        "{out}"
    );
}

#[test]
fn files_of_other_agents_are_named() {
    let folder = temp_dir_with(&[
        ("fleet/.mcp.json", "{ \"mcpServers\": { \"a\": { \"command\": \"x\" } } }"),
        ("fleet/.cursor/mcp.json", "{ \"mcpServers\": { \"b\": { \"command\": \"x\" } } }"),
        ("fleet/team/.codex/config.toml", "[mcp_servers.a]\n"),
        ("fleet/.gemini/settings.json", "{ \"theme\": \"dark\" }"),
    ]);
    fs::write(folder.path().join("fleet/team/b.yaml"), "a: 1\n").unwrap();
    let (code, out, _) = run_validate(folder.path(), &["fleet"], &[]);
    assert_eq!(code, 0);
    for expected in [
        "fleet/.cursor/mcp.json:1: note: this file of an agent is not read; copy its entries into a .mcp.json, or",
        "fleet/team/.codex/config.toml:1: note: this file of an agent is not read; declare its servers in YAML",
        "1 server and 0 skills in 2 files: 2 notes; 1 document of other programs passed over\n",
    ] {
        assert!(out.contains(expected), "{expected} in {out}");
    }
    // Named on the command line, it is checked.
    let (_, out, _) = run_validate(folder.path(), &["fleet/.cursor/mcp.json"], &[]);
    assert!(out.starts_with("1 server and 0 skills in 1 file: no findings"), "{out}");
}

#[test]
fn manifests_are_judged_as_a_cluster_would() {
    let skill = |spec: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Skill\nmetadata: {{ name: s }}\nspec: {{ {spec} }}\n"
        )
    };
    let stdio = |fields: &str| VALID_SERVER.split("    env:").next().unwrap().to_owned() + fields;
    let folder = temp_dir_with(&[
        ("skill/a.yaml", &skill("configMapRef: { name: m }, serverRefs: [{ name: elsewhere }]")),
        ("cwd/a.yaml", &stdio("    cwd: x\n")),
        ("env-file/a.yaml", &stdio("    envFile: .env\n")),
        ("env/a.yaml", VALID_SERVER),
    ]);
    for (dir, in_directory, in_cluster) in [
        (
            "skill",
            "a.yaml:4:9: error: Skill default/s: spec.configMapRef: ",
            "note: Skill team/s: server \"elsewhere\"",
        ),
        (
            "cwd",
            "1 server",
            "cwd/a.yaml:7:5: error: McpServer team/github: spec.stdio.cwd: cwd is not supported",
        ),
        ("env-file", "envFile: .env was not found", "error: McpServer team/github: spec.stdio.envFile: "),
        (
            "env",
            "1 server",
            "env/a.yaml:9:37: error: McpServer team/github: spec.stdio.env[1].valueFrom.env: ",
        ),
    ] {
        let (_, out, _) = run_validate(folder.path(), &[dir], &[("PROXY", "p")]);
        assert!(out.contains(in_directory), "{dir}: {out}");
        let (code, out, _) = run_validate(folder.path(), &[dir, "--kubernetes", "-n", "team"], &[]);
        assert!(out.contains(in_cluster), "{dir}: {out}");
        assert_eq!(code, i32::from(dir != "skill"), "{dir}: {out}");
    }
    assert_eq!(run_validate(folder.path(), &["env", "-n", "team"], &[]).0, 2);
}

#[test]
fn entries_of_agents_are_judged_one_by_one() {
    let folder = temp_dir_with(&[(
        "fleet/.mcp.json",
        r#"{ "mcpServers": {
  "ok": { "command": "x", "disabled": "true", "envFile": ".env", "timeout": 60 },
  "prompted": { "command": "x", "env": { "T": "${input:api-key}" } },
  "old": { "type": "ws", "url": "ws://a" },
  "split": { "command": "npx -y server" }
} }"#,
    )]);
    let (code, out, _) = run_validate(folder.path(), &["fleet"], &[]);
    assert_eq!(code, 1, "{out}");
    for expected in [
        "fleet/.mcp.json:2: note: McpServer default/ok: envFile: .env was not found",
        "fleet/.mcp.json:3:47: error: McpServer default/prompted: env: ${input:api-key} is filled in by VS Code",
        "fleet/.mcp.json:4:3: error: McpServer default/old: unknown type \"ws\"",
        "fleet/.mcp.json:5:14: warning: McpServer default/split: command: this is taken as the name of one program",
        "4 servers and 0 skills in 1 file: 2 errors, 1 warning, 1 note\n",
    ] {
        assert!(out.contains(expected), "{expected} in {out}");
    }
}
