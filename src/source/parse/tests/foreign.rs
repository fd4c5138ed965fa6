//! Files and documents that do not concern evenkeel.

use super::*;

#[test]
fn foreign_documents_are_counted_and_ignored() {
    for text in [
        "- a\n- b\n",
        "just text\n",
        "1: 2\n",
        "a: 1e999\n? [x]\n: y\n",
        "apiVersion: 1\nkind: [x]\n",
        "apiVersion: [x]\n",
        "apiVersion: apps/v1\nkind: McpServer\nmetadata: []\n",
        "kind: McpServer\nmetadata: { name: 1 }\n",
        "version: '3'\nservices: { web: { command: !custom x } }\n",
        "a: [\n",
        "a: b: c\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {{ .Release.Name }}\n",
        "{{- if .Values.enabled }}\napiVersion: apps/v1\n{{- end }}\n",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata:\n  name: {{ .Values.name }}\nspec: {}\n",
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\n{{- with .Values.labels }}\nspec: {}\n",
        "apiVersion: toolhive.example/v1\nkind: McpServer\nmetadata: { name: a }\n",
        "apiVersion: other.example/v1\nkind: Skill\nmetadata: { name: a }\n",
    ] {
        let parsed = parse_yaml(text);
        assert_eq!((parsed.foreign_documents, describe_faults(&parsed)), (1, vec![]), "{text}");
        assert!(describe_objects(&parsed).is_empty() && parsed.unidentified.is_none(), "{text}");
    }
    assert_eq!(parse_yaml("---\n# nothing\n").foreign_documents, 0);
}

#[test]
fn file_that_is_not_utf8_is_a_fault_only_if_it_may_declare_something() {
    let utf16: Vec<u8> =
        "\u{feff}apiVersion: evenkeel.dev/v1alpha1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (file, bytes, expected) in [
        ("a.yaml", &b"# McpServer\nb: \xff\n"[..], Some("a.yaml:2: the file is not valid UTF-8")),
        ("a.yaml", &b"a: 1\nb: \xff\n"[..], None),
        ("a.yaml", &utf16, Some("a.yaml:1: the file is UTF-16; save it as UTF-8")),
        (".mcp.json", &b"{ \xff }"[..], Some(".mcp.json:1: the file is not valid UTF-8")),
    ] {
        let parsed = parse(&Arc::new(PathBuf::from(file)), bytes);
        assert_eq!(describe_faults(&parsed), expected.into_iter().collect::<Vec<_>>(), "{file}");
        assert_eq!(parsed.foreign_documents, usize::from(expected.is_none()));
        assert_eq!(parsed.unrecognized.is_some(), expected.is_none(), "earlier objects of the file are kept");
    }
}
