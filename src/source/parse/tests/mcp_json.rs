use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::resource::{McpServerSpec, SourceProblem};
use crate::source::parse::{ParsedFile, ParsedObject, parse};

fn parsed(text: &str) -> ParsedFile {
    parse(&Arc::new(PathBuf::from("team/.mcp.json")), text.as_bytes())
}

fn entry(fields: &str) -> ParsedFile {
    parsed(&format!("{{\n  \"mcpServers\": {{\n    \"one\": {fields}\n  }}\n}}"))
}

fn told(faults: &[SourceProblem]) -> Vec<String> {
    faults.iter().map(|fault| format!("{}: {}", fault.place().unwrap(), fault.problem.message)).collect()
}

fn spec(object: &ParsedObject<McpServerSpec>) -> Json {
    serde_json::to_value(object.spec.as_ref().unwrap()).unwrap()
}

#[test]
fn both_shapes_and_what_agents_write() {
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
    let parsed = parsed(text);
    assert_eq!(told(&parsed.faults), [""; 0]);
    assert_eq!(told(&parsed.warnings), [""; 0]);
    let names: Vec<_> =
        parsed.servers.iter().map(|server| format!("{}:{}", server.key, server.line)).collect();
    assert_eq!(names, ["default/fs:6", "default/github-mcp:7", "default/code:10", "default/gem:11"]);
    let [fs, github, code, gem] = parsed.servers.as_slice() else { panic!() };
    let env = &fs.spec.as_ref().unwrap().stdio.as_ref().unwrap().env;
    let env: Vec<_> =
        env.iter().map(|var| (var.name.as_str(), var.value.as_ref().unwrap().expose())).collect();
    assert_eq!(env, [("A", "1"), ("N", "2")]);
    let github = spec(github);
    assert_eq!(github["expose"]["prefix"], "GitHub_MCP");
    assert_eq!(github["timeouts"]["call"], "1m");
    assert_eq!(github["http"]["headers"][0]["value"], "<redacted>");
    let code = spec(code);
    assert_eq!((&code["suspend"], &code["stdio"]["command"]), (&true.into(), &"${HOME}/bin/x".into()));
    assert_eq!(
        (&spec(gem)["suspend"], &spec(gem)["http"]["url"]),
        (&false.into(), &"${BASE:-https://b}/mcp".into())
    );
    for server in &parsed.servers {
        let again = self::parsed(&server.text);
        assert_eq!(again.servers[0].key, server.key);
        assert_eq!(again.servers[0].spec, server.spec, "what is remembered is read back");
    }
}

#[test]
fn a_bad_entry_costs_only_itself() {
    for (fields, expected) in [
        ("{}", "InvalidSpec: team/.mcp.json:3:5: it has neither a command nor a url"),
        ("[]", "InvalidSpec: team/.mcp.json:3:12: expected an object"),
        ("{ \"command\": [\"npx\"] }", "team/.mcp.json:3:25: command: expected a text in quotes"),
        ("{ \"command\": \"c\", \"args\": [1] }", "team/.mcp.json:3:39: args: expected a text in quotes"),
        ("{ \"command\": \"c\", \"env\": { \"A\": true } }", "env: expected a text in quotes"),
        (
            "{ \"command\": \"c\", \"env\": { \"1 A\": \"x\" } }",
            "team/.mcp.json:3:30: env[0].name: \"1 A\" must be",
        ),
        ("{ \"command\": \"c\", \"command\": \"d\" }", "the key \"command\" is there twice"),
        ("{ \"command\": \"c\", \"url\": \"http://a\" }", "it has both a command and a url"),
        ("{ \"type\": \"http\", \"command\": \"c\" }", "a server of type http needs a url"),
        ("{ \"url\": \"ftp://a\" }", "team/.mcp.json:3:14: url: url must start with http:// or https://"),
        (
            "{ \"type\": \"sse\", \"url\": \"http://a\" }",
            "UnsupportedTransport: team/.mcp.json:3:5: type sse",
        ),
        (
            "{ \"type\": \"ws\", \"url\": \"ws://a\" }",
            "UnsupportedTransport: team/.mcp.json:3:5: type \"ws\" is not known",
        ),
    ] {
        let parsed = entry(&format!("{fields}, \"two\": {{ \"command\": \"c\" }}"));
        let refused = parsed.servers[0].spec.as_ref().unwrap_err().to_string();
        assert!(refused.contains(expected), "{fields}: {refused}");
        assert!(parsed.servers[1].spec.is_ok() && parsed.unnamed.is_none(), "{fields}");
        assert_eq!(parsed.faults.len(), 1, "{fields}");
    }
}

#[test]
fn headers_that_the_protocol_sets_are_left_out() {
    let parsed = entry(
        "{ \"url\": \"http://a\", \"headers\": { \"Accept\": \"*/*\", \"X-Key\": \"k\", \"content-type\": \"application/json\" } }",
    );
    let http = parsed.servers[0].spec.as_ref().unwrap().http.as_ref().unwrap();
    assert_eq!(http.headers.iter().map(|header| header.name.as_str()).collect::<Vec<_>>(), ["X-Key"]);
    assert_eq!(
        told(&parsed.warnings),
        ["Accept", "content-type"].map(|name| {
            let column = if name == "Accept" { 46 } else { 77 };
            format!(
                "team/.mcp.json:3:{column}: McpServer default/one: headers: evenkeel sets {name} itself; it has no effect here"
            )
        })
    );
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let parsed = entry("{ \"command\": \"c\", \"arg\": [], \"envFile\": \".env\", \"timeout\": 60 }");
    assert!(parsed.servers[0].spec.is_ok() && parsed.faults.is_empty());
    assert_eq!(
        told(&parsed.warnings),
        [
            "team/.mcp.json:3:30: McpServer default/one: the key \"arg\" has no effect here; did you mean \"args\"?",
            "team/.mcp.json:3:41: McpServer default/one: the key \"envFile\" has no effect here",
            "team/.mcp.json:3:60: McpServer default/one: timeout: not from 1000 (1s) to 86400000 (24h), in milliseconds; it has no effect",
        ]
    );
    let typo = self::parsed("{ \"mcpServer\": {} }");
    assert_eq!(
        told(&typo.warnings),
        ["team/.mcp.json:1:3: the key \"mcpServer\" has no effect; did you mean \"mcpServers\"?"]
    );
}

#[test]
fn a_file_that_is_no_json_freezes_what_is_in_it() {
    for (text, expected) in [
        ("{", "team/.mcp.json:1:1: no JSON: Unterminated object"),
        ("{ \"mcpServers\": [] }", "team/.mcp.json:1:17: expected an object in mcpServers"),
        ("[]", "team/.mcp.json:1:1: expected an object with mcpServers in it"),
        ("{ \"a\": hunter2 }", "no JSON: Unexpected word"),
        (&"[".repeat(100_000), "no JSON: Maximum nesting depth exceeded"),
    ] {
        let parsed = parsed(text);
        assert!(parsed.unnamed.is_some() && parsed.servers.is_empty(), "{text}");
        let told = told(&parsed.faults);
        assert!(told.len() == 1 && told[0].contains(expected) && told[0].len() < 500, "{told:?}");
        assert!(!format!("{:?}", parsed.faults).contains("hunter2"));
    }
    assert!(parsed("").unnamed.is_none());
}

#[test]
fn no_value_comes_back_out() {
    for fields in [
        "{ \"command\": \"c\", \"env\": { \"A\": [\"hunter2\"] } }",
        "{ \"command\": \"c\", \"env\": \"hunter2\" }",
        "{ \"url\": \"ftp://hunter2\", \"headers\": { \"A b\": \"hunter2\" } }",
        "{ \"command\": {\"hunter2\": 1}, \"nope\":\n\"hunter2\" }",
        "{ \"command\": \"c\", \"env\": { \"A\": \"hunter2\nx\" } }",
    ] {
        let parsed = entry(fields);
        let found = format!("{:?}{:?}{:?}", parsed.faults, parsed.warnings, parsed.unnamed);
        assert!(!found.contains("hunter2"), "{found}");
    }
}

#[test]
fn a_redacted_value_that_is_read_back_is_refused() {
    for (fields, expected) in [
        (r#"{ "command": "c", "env": { "TOKEN": "<redacted>" } }"#, "env[0].value: the value of TOKEN"),
        (r#"{ "url": "https://a", "headers": { "X": "<redacted>" } }"#, "headers[0].value: the value of X"),
        (r#"{ "url": "https://a?<redacted>" }"#, "url: a part of the URL"),
    ] {
        let parsed = entry(fields);
        let found = told(&parsed.faults);
        assert!(found.len() == 1 && found[0].contains(expected), "{fields}: {found:?}");
        assert!(parsed.servers[0].spec.is_err());
    }
}

#[test]
fn a_file_of_another_shape_may_have_lost_its_servers() {
    for (text, unread) in [
        ("{}", false),
        (r#"{ "inputs": [] }"#, false),
        (r#"{ "mcpServers": {} }"#, false),
        (r#"{ "mcpServer": {} }"#, true),
        (r#"{ "apiVersion": "v1", "kind": "List", "items": [] }"#, true),
        (r#"{ "fs": { "command": "x" } }"#, true),
    ] {
        assert_eq!(parsed(text).unread.is_some(), unread, "{text}");
    }
}
