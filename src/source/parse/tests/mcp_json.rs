use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::resource::{McpServerSpec, SourceProblem};
use crate::source::parse::{ParsedFile, ParsedObject, parse};

fn parse_json(text: &str) -> ParsedFile {
    parse(&Arc::new(PathBuf::from("team/.mcp.json")), text.as_bytes())
}

fn parse_entry(fields: &str) -> ParsedFile {
    parse_json(&format!("{{\n  \"mcpServers\": {{\n    \"one\": {fields}\n  }}\n}}"))
}

fn describe(faults: &[SourceProblem]) -> Vec<String> {
    faults.iter().map(|fault| format!("{}: {}", fault.location().unwrap(), fault.problem.message)).collect()
}

fn spec_json(object: &ParsedObject<McpServerSpec>) -> Json {
    serde_json::to_value(object.spec.as_ref().unwrap()).unwrap()
}

#[test]
fn both_server_maps_and_agent_keys_are_parsed() {
    let text = r#"{
  // Comments and trailing commas are what editors write.
  "$schema": "x",
  "inputs": [],
  "mcpServers": {
    "fs": { "command": "npx", "args": ["-y", "server"], "env": { "A": "1", "N": 2, "GONE": null }, "autoApprove": ["*"] },
    "GitHub MCP": { "type": "http", "url": "https://a/mcp", "headers": { "Authorization": "Bearer ${T}" }, "timeout": 60000 },
  },
  "servers": {
    "code": { "type": "stdio", "command": "${HOME}/bin/x", "cwd": "sub", "disabled": true, "description": "x" },
    "gem": { "httpUrl": "${BASE:-https://b}/mcp", "enabled": true },
  },
}"#;
    let parsed = parse_json(text);
    assert_eq!(describe(&parsed.faults), [""; 0]);
    assert_eq!(describe(&parsed.warnings), [""; 0]);
    let names: Vec<_> =
        parsed.servers.iter().map(|server| format!("{}:{}", server.key, server.line)).collect();
    assert_eq!(names, ["default/fs:6", "default/github-mcp:7", "default/code:10", "default/gem:11"]);
    let [fs, github, code, gem] = parsed.servers.as_slice() else { panic!() };
    let env = &fs.spec.as_ref().unwrap().stdio.as_ref().unwrap().env;
    let env: Vec<_> =
        env.iter().map(|var| (var.name.as_str(), var.value.as_ref().unwrap().expose())).collect();
    assert_eq!(env, [("A", "1"), ("N", "2")]);
    let github = spec_json(github);
    assert_eq!(github["expose"]["prefix"], "GitHub_MCP");
    assert_eq!(github["timeouts"]["call"], "1m");
    assert_eq!(github["http"]["headers"][0]["value"], "<redacted>");
    let code = spec_json(code);
    assert_eq!((&code["suspend"], &code["stdio"]["command"]), (&true.into(), &"${HOME}/bin/x".into()));
    assert_eq!(
        (&spec_json(gem)["suspend"], &spec_json(gem)["http"]["url"]),
        (&false.into(), &"${BASE:-https://b}/mcp".into())
    );
    for server in &parsed.servers {
        let reparsed = parse_json(&server.document);
        assert_eq!(reparsed.servers[0].key, server.key);
        assert_eq!(reparsed.servers[0].spec, server.spec, "the saved document parses to the same spec");
    }
}

#[test]
fn invalid_entry_does_not_affect_others() {
    for (fields, expected) in [
        ("{}", "InvalidSpec: team/.mcp.json:3:5: neither command nor url is set"),
        ("[]", "InvalidSpec: team/.mcp.json:3:12: expected an object"),
        ("\"npx\"", "InvalidSpec: team/.mcp.json:3:12: expected an object"),
        ("{ \"command\": [] }", "team/.mcp.json:3:25: command: expected a command in the list"),
        ("{ \"command\": {} }", "team/.mcp.json:3:25: command: expected a string"),
        (
            "{ \"command\": \"c\", \"args\": \"a b\" }",
            "team/.mcp.json:3:38: args: expected a list of strings",
        ),
        ("{ \"command\": \"c\", \"args\": [[1]] }", "team/.mcp.json:3:39: args: expected a string"),
        ("{ \"command\": \"c\", \"env\": { \"A\": [] } }", "env: expected a string"),
        ("{ \"command\": \"c\", \"disabled\": [] }", "disabled: expected true or false"),
        ("{ \"command\": \"c\", \"includeTools\": \"x\" }", "includeTools: expected a list of strings"),
        ("{ \"command\": \"c\", \"disabledTools\": [\"[\"] }", "team/.mcp.json:3:30: expose.tools.deny: "),
        (
            "{ \"command\": \"c\", \"env\": { \"1 A\": \"x\" } }",
            "team/.mcp.json:3:30: env[0].name: \"1 A\" must be",
        ),
        ("{ \"command\": \"c\", \"command\": \"d\" }", "duplicate key \"command\""),
        ("{ \"command\": \"c\", \"url\": \"http://a\" }", "both command and url are set"),
        ("{ \"type\": \"http\", \"command\": \"c\" }", "a server of type http needs a url"),
        ("{ \"url\": \"ftp://a\" }", "team/.mcp.json:3:14: url: url must start with http:// or https://"),
        (
            "{ \"command\": \"c\", \"args\": [\"${workspaceFolder}/x\"] }",
            "InvalidSpec: team/.mcp.json:3:39: args: ${workspaceFolder} is filled in by VS Code and Cursor",
        ),
        (
            "{ \"command\": \"c\", \"envFile\": \"${workspaceFolder}/.env\" }",
            "InvalidSpec: team/.mcp.json:3:30: envFile: ${workspaceFolder} is filled in by VS Code and Cursor",
        ),
        ("{ \"type\": \"sse\", \"command\": \"c\" }", "a server of type sse needs a url"),
        (
            "{ \"type\": \"ws\", \"url\": \"ws://a\" }",
            "UnsupportedTransport: team/.mcp.json:3:5: unknown type \"ws\"",
        ),
    ] {
        let parsed = parse_entry(&format!("{fields}, \"two\": {{ \"command\": \"c\" }}"));
        let message = parsed.servers[0].spec.as_ref().unwrap_err().to_string();
        assert!(message.contains(expected), "{fields}: {message}");
        assert!(parsed.servers[1].spec.is_ok() && parsed.unidentified.is_none(), "{fields}");
        // The file is written for another program, so it has no fault.
        assert_eq!((parsed.faults.len(), parsed.rejected_entries.len()), (0, 1), "{fields}");
    }
}

#[test]
fn protocol_headers_are_removed() {
    let parsed = parse_entry(
        "{ \"url\": \"http://a\", \"headers\": { \"Accept\": \"*/*\", \"X-Key\": \"k\", \
         \"content-type\": \"application/json\" } }",
    );
    let http = parsed.servers[0].spec.as_ref().unwrap().http.as_ref().unwrap();
    assert_eq!(http.headers.iter().map(|header| header.name.as_str()).collect::<Vec<_>>(), ["X-Key"]);
    assert_eq!(
        describe(&parsed.warnings),
        ["Accept", "content-type"].map(|name| {
            let column = if name == "Accept" { 46 } else { 77 };
            format!(
                "team/.mcp.json:3:{column}: McpServer default/one: headers: evenkeel sets {name} itself; \
                 this value has no effect"
            )
        })
    );
}

/// Each pair of entries means the same.
#[test]
fn settings_are_read_as_tools_write_them() {
    for (as_written, expected) in [
        (
            r#"{ "type": null, "url": "", "command": "c", "args": null, "env": null, "headers": {}, "cwd": "" }"#,
            r#"{ "command": "c" }"#,
        ),
        (
            r#"{ "command": "c", "args": ["-p", 8080, true, null], "env": { "A": 1, "B": false, "C": null } }"#,
            r#"{ "command": "c", "args": ["-p", "8080", "true"], "env": { "A": "1", "B": "false" } }"#,
        ),
        (
            r#"{ "url": "http://a", "headers": { "X": 1, "Y": true, "Z": null } }"#,
            r#"{ "url": "http://a", "headers": { "X": "1", "Y": "true" } }"#,
        ),
        (
            r#"{ "type": "local", "command": ["npx", "-y", "s"], "environment": { "A": "1" }, "enabled": true }"#,
            r#"{ "command": "npx", "args": ["-y", "s"], "env": { "A": "1" } }"#,
        ),
        (r#"{ "command": ["npx", "-y"], "args": ["s"] }"#, r#"{ "command": "npx", "args": ["-y", "s"] }"#),
        (
            r#"{ "url": "http://a", "http_headers": { "X": "1" }, "bearer_token_env_var": "T" }"#,
            r#"{ "url": "http://a", "headers": { "X": "1", "Authorization": "Bearer ${T}" } }"#,
        ),
        (r#"{ "transport": "streamable_http", "serverUrl": "http://a" }"#, r#"{ "url": "http://a" }"#),
        (r#"{ "transportType": "streamableHttp", "url": "http://a" }"#, r#"{ "url": "http://a" }"#),
        (r#"{ "type": "Streamable-HTTP", "httpUrl": "http://a" }"#, r#"{ "url": "http://a" }"#),
        (r#"{ "type": "remote", "url": "http://a" }"#, r#"{ "url": "http://a" }"#),
        (r#"{ "command": "c", "disabled": "true" }"#, r#"{ "command": "c", "disabled": true }"#),
        (r#"{ "command": "c", "disabled": 1 }"#, r#"{ "command": "c", "disabled": true }"#),
        (r#"{ "command": "c", "enabled": "false" }"#, r#"{ "command": "c", "disabled": true }"#),
        (r#"{ "command": "c", "enabled": 0 }"#, r#"{ "command": "c", "disabled": true }"#),
        (r#"{ "command": "c", "disabled": "false", "enabled": null }"#, r#"{ "command": "c" }"#),
        (
            r#"{ "command": "c", "enabledTools": ["a"], "disabled_tools": ["b"] }"#,
            r#"{ "command": "c", "includeTools": ["a(x)"], "excludeTools": ["b"] }"#,
        ),
        (r#"{ "command": "c", "tools": ["*"] }"#, r#"{ "command": "c", "includeTools": ["*"] }"#),
        (r#"{ "command": "c", "tools": { "a": { "approval_mode": "auto" } } }"#, r#"{ "command": "c" }"#),
        (r#"{ "command": "c", "tool_timeout_sec": 60 }"#, r#"{ "command": "c", "toolTimeoutMs": "60000" }"#),
        (
            r#"{ "command": ["sh", "-c"], "args": ["x $HOME"] }"#,
            r#"{ "command": "sh", "args": ["-c", "x $HOME"] }"#,
        ),
        (r#"{ "command": "c", "//": "why", "_comment": ["x"], "trust": true }"#, r#"{ "command": "c" }"#),
    ] {
        let (as_written, expected) = (parse_entry(as_written), parse_entry(expected));
        assert_eq!(describe(&as_written.warnings), [""; 0]);
        let spec = |parsed: &ParsedFile| parsed.servers[0].spec.clone().unwrap();
        assert_eq!(spec(&as_written), spec(&expected), "{:?}", as_written.servers[0].document);
    }
    let spec = spec_json(
        &parse_entry(r#"{ "command": "c", "includeTools": ["a"], "excludeTools": ["b"] }"#).servers[0],
    );
    assert_eq!(spec["expose"]["tools"], serde_json::json!({ "allow": ["a"], "deny": ["b"] }));
    let text = "\u{feff}{ \"mcpServers\": { \"a\": { \"command\": \"c\" } } }";
    assert_eq!(parse_json(text).servers.len(), 1, "a file with a byte order mark");
}

#[test]
fn entries_that_are_absent_or_have_no_name_declare_nothing() {
    for (text, warnings) in [
        ("null", 0),
        (r#"{ "mcpServers": null }"#, 0),
        (r#"{ "servers": "" }"#, 0),
        (r#"{ "mcpServers": { "a": null, "//": "old ones", "_comment": "x" } }"#, 0),
        (r#"{ "mcpServers": { "": { "command": "c" } } }"#, 1),
    ] {
        let parsed = parse_json(text);
        assert!(parsed.servers.is_empty() && parsed.unidentified.is_none(), "{text}");
        assert_eq!((parsed.faults.len(), parsed.warnings.len()), (0, warnings), "{text}");
    }
}

#[test]
fn ineffective_values_are_warnings() {
    let parsed = parse_entry(
        "{ \"command\": \"c\", \"arg\": [], \"env\": { \"T\": \"$TOKEN\" }, \"timeout\": 1800, \"includeTools\": [] }",
    );
    assert!(parsed.servers[0].spec.is_ok() && parsed.faults.is_empty());
    assert_eq!(
        describe(&parsed.warnings),
        [
            "team/.mcp.json:3:30: McpServer default/one: the key \"arg\" has no effect here; did you mean \"args\"?",
            "team/.mcp.json:3:55: McpServer default/one: env: $NAME and {env:NAME} are passed on as written; \
             write ${NAME} for the variable NAME of evenkeel's environment",
            "team/.mcp.json:3:67: McpServer default/one: timeout: 1800 is read as milliseconds, but some tools mean \
             seconds; write toolTimeoutMs or tool_timeout_sec instead",
            "team/.mcp.json:3:100: McpServer default/one: includeTools: the list is empty, so no tool of this server \
             is exposed",
        ]
    );
    let typo = parse_json("{ \"mcpServer\": {} }");
    assert_eq!(
        describe(&typo.warnings),
        ["team/.mcp.json:1:3: the key \"mcpServer\" has no effect; did you mean \"mcpServers\"?"]
    );
}

#[test]
fn invalid_json_leaves_the_file_unidentified() {
    for (text, expected) in [
        ("{", "team/.mcp.json:1:1: invalid JSON: Unterminated object"),
        ("{ \"mcpServers\": [] }", "team/.mcp.json:1:17: expected an object in mcpServers"),
        ("[]", "team/.mcp.json:1:1: expected an object with mcpServers in it"),
        ("{ \"a\": hunter2 }", "invalid JSON: Unexpected word"),
        (&"[".repeat(100_000), "invalid JSON: Maximum nesting depth exceeded"),
    ] {
        let parsed = parse_json(text);
        assert!(parsed.unidentified.is_some() && parsed.servers.is_empty(), "{text}");
        let faults = describe(&parsed.faults);
        assert!(faults.len() == 1 && faults[0].contains(expected) && faults[0].len() < 500, "{faults:?}");
        assert!(!format!("{:?}", parsed.faults).contains("hunter2"));
    }
    assert!(parse_json("").unidentified.is_none());
}

#[test]
fn errors_never_contain_a_value() {
    for fields in [
        "{ \"command\": \"c\", \"env\": { \"A\": [\"hunter2\"] } }",
        "{ \"command\": \"c\", \"env\": \"hunter2\" }",
        "{ \"url\": \"ftp://hunter2\", \"headers\": { \"A b\": \"hunter2\" } }",
        "{ \"command\": {\"hunter2\": 1}, \"nope\":\n\"hunter2\" }",
        "{ \"command\": \"c\", \"env\": { \"A\": \"hunter2\nx\" } }",
    ] {
        let parsed = parse_entry(fields);
        let text = format!(
            "{:?}{:?}{:?}{:?}",
            parsed.faults, parsed.rejected_entries, parsed.warnings, parsed.unidentified
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn redacted_value_is_rejected() {
    for (fields, expected) in [
        (r#"{ "command": "c", "env": { "TOKEN": "<redacted>" } }"#, "env[0].value: the value of TOKEN"),
        (r#"{ "url": "https://a", "headers": { "X": "<redacted>" } }"#, "headers[0].value: the value of X"),
        (r#"{ "url": "https://a?<redacted>" }"#, "url: a part of the URL"),
    ] {
        let parsed = parse_entry(fields);
        let faults = describe(&parsed.rejected_entries);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{fields}: {faults:?}");
        assert!(parsed.servers[0].spec.is_err());
    }
}

#[test]
fn json_without_a_server_map_is_unrecognized() {
    for (text, unrecognized) in [
        ("{}", false),
        (r#"{ "inputs": [] }"#, false),
        (r#"{ "mcpServers": {} }"#, false),
        (r#"{ "mcpServer": {} }"#, true),
        (r#"{ "apiVersion": "v1", "kind": "List", "items": [] }"#, true),
        (r#"{ "fs": { "command": "x" } }"#, true),
    ] {
        assert_eq!(parse_json(text).unrecognized.is_some(), unrecognized, "{text}");
    }
}
