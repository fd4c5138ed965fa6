//! Fuzzes the parser of declaration files: no input makes it panic, and all messages are safe to print.
//!
//! As an ordinary test it runs the corpus and a thousand random inputs; `cargo bolero test declarations` fuzzes without
//! an end.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may fail")]

use std::path::Path;

use evenkeel::resource::DigestKey;
use evenkeel::source::directory::{CheckContext, TargetMode, check_text};
use evenkeel::source::{Environment, StdioPolicy};

/// Fragments of declarations. Inputs composed of them get further in the parser than random bytes.
const DECLARATION_PIECES: &[&str] = &[
    "apiVersion: evenkeel.dev/v1alpha1\n",
    "kind: McpServer\n",
    "kind: Skill\n",
    "apiVersion: v1\nkind: List\n",
    "kind: McpServerList\n",
    "items:\n",
    "- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n  metadata: { name: a }\n",
    "metadata: { name: a }\n",
    "metadata:\n",
    "  name: a.b\n",
    "  labels: { a: b }\n",
    "spec:\n",
    "spec: {}\n",
    "  stdio:\n",
    "  http:\n",
    "    command: npx\n",
    "    args: [-y, no, 010]\n",
    "    env:\n",
    "      - name: A\n",
    "        value: hunter2\n",
    "        valueFrom: { secretKeyRef: { name: s, key: k } }\n",
    "        valueFrom: { env: B }\n",
    "    url: https://a/mcp\n",
    "    headers: [{ name: H, value: hunter2 }]\n",
    "  expose: { prefix: p }\n",
    "  timeouts: { call: 1m }\n",
    "  inline: |\n",
    "  serverRefs: [{ name: a }]\n",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "# x\n",
    "&a ",
    "*a",
    "!t ",
    "<<: *a\n",
    "- ",
    "? ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    "|\n",
    ">\n",
    "\t",
    "  ",
    "\n",
    "\r\n",
    "\u{feff}",
    "\u{0}",
    "\u{1b}[2J",
    "é",
    "日本",
    "{ \"mcpServers\": {",
    "\"servers\": {",
    "\"a\": {",
    "\"A b\": {",
    "\"command\": \"${CMD:-c}\"",
    "\"url\": \"https://${HOST}/\"",
    "\"type\": \"sse\"",
    "\"env\": { \"A\": \"hunter2\" }",
    "\"disabled\": true",
    "\"timeout\": 1e9",
    ", ",
    "} } }",
    "// x\n",
    "/* */",
];

#[test]
fn declarations() {
    let cluster = TargetMode::Cluster { namespace: "team".to_owned() };
    let contexts = [TargetMode::Directory, cluster].map(|target| CheckContext {
        secrets_dir: None,
        environment: Environment::from_iter([("B", "hunter2")]),
        digest_key: DigestKey::new(b"k"),
        policy: StdioPolicy::allow_all(),
        target,
        exclude: Vec::new(),
    });
    bolero::check!().for_each(|input: &[u8]| {
        let pieces: String = input
            .iter()
            .map(|byte| DECLARATION_PIECES[usize::from(*byte) % DECLARATION_PIECES.len()])
            .collect();
        for bytes in [input, pieces.as_bytes()] {
            for file in ["team/a.yaml", "team/.mcp.json"] {
                for context in &contexts {
                    check_input(file, bytes, context);
                }
            }
        }
    });
}

fn check_input(file: &str, bytes: &[u8], context: &CheckContext) {
    let checked = check_text(Path::new(file), bytes, context);
    for finding in &checked.findings {
        let fault = &finding.fault;
        let message = &fault.problem.message;
        assert!(!message.contains("please report it"), "{message}");
        assert!(message.len() < 5_000 && !message.contains(char::is_control), "{message:?}");
        assert!(fault.location().is_none_or(|location| location.starts_with("team/")), "{fault:?}");
        for line in fault.excerpt.iter().flat_map(|excerpt| excerpt.lines()) {
            assert!(line.len() < 1_000 && !line.contains(char::is_control), "{line:?}");
        }
    }
    // Accepted objects can be formatted without secrets, and their origin is this file.
    let desired = &checked.desired;
    for server in desired.servers.values() {
        assert!(server.meta.origin.to_string().starts_with(file));
        assert!(server.spec.is_some() != server.rejected.is_some());
        assert!(!format!("{server:?}").contains("hunter2"));
    }
    for skill in desired.skills.values() {
        assert!(skill.spec.is_some() != skill.rejected.is_some());
    }
}
