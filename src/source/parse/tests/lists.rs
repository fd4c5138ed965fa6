//! Lists of objects, as printed by `kubectl` and `evenkeel`.

use super::*;
use crate::resource::Reason;

/// Returns a server as `kubectl get -o yaml` prints it, with the fields that the API server adds.
fn kubectl_item(name: &str, spec: &str) -> String {
    format!(
        "- apiVersion: evenkeel.dev/v1alpha1
  kind: McpServer
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {{\"kind\":\"McpServer\",\"value\":\"hunter2\"}}
    creationTimestamp: \"2026-01-01T00:00:00Z\"
    generation: 3
    managedFields:
    - apiVersion: evenkeel.dev/v1alpha1
      fieldsType: FieldsV1
    name: {name}
    namespace: team
    resourceVersion: \"17\"
    uid: 5b6a
  spec:
    {spec}
  status:
    conditions: []
"
    )
}

fn kubectl_list(items: &str) -> String {
    format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
}

#[test]
fn each_list_item_is_an_object() {
    let skill = "- apiVersion: evenkeel.dev/v1alpha1\n  kind: Skill\n  metadata: { name: s }\n  spec: { inline: x }\n";
    let foreign = "- apiVersion: v1\n  kind: ConfigMap\n  metadata: { name: a }\n";
    let bad = kubectl_item("bad", "stdio: { comand: npx }");
    let good = kubectl_item("good", "stdio: { command: npx }");
    let parsed = parse_yaml(&kubectl_list(&format!("{good}{bad}{foreign}{skill}{good}")));
    assert_eq!(
        describe_objects(&parsed),
        [
            "McpServer team/good 3: ok",
            "McpServer team/bad 22: InvalidSpec: team/a.yaml:38:14: unknown field \"spec.stdio.comand\"; \
             did you mean \"command\"?",
            "McpServer team/good 48: ok",
            "Skill default/s 44: ok",
        ]
    );
    assert_eq!(
        describe_faults(&parsed),
        [
            "team/a.yaml:38:14: McpServer team/bad: unknown field \"spec.stdio.comand\"; did you mean \"command\"?"
        ]
    );
    assert_eq!(
        (parsed.foreign_documents, parsed.unidentified.is_some(), parsed.unrecognized.is_some()),
        (1, false, false)
    );
    for server in parsed.servers.iter().filter(|server| server.spec.is_ok()) {
        assert!(server.annotations.is_empty(), "it may hold values: {:?}", server.annotations);
        let reparsed = parse_yaml(&server.document);
        assert_eq!((&reparsed.servers[0].key, &reparsed.servers[0].spec), (&server.key, &server.spec));
    }
}

#[test]
fn lists_are_parsed_in_every_form() {
    let item = "{\"apiVersion\": \"evenkeel.dev/v1alpha1\", \"kind\": \"McpServer\", \
        \"metadata\": {\"name\": \"a\"}, \"spec\": {\"stdio\": {\"command\": \"x\"}}}";
    let item_without_kind = "{\"metadata\": {\"name\": \"a\"}, \"spec\": {\"stdio\": {\"command\": \"x\"}}}";
    let v1 = |items: &str| format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\",\n\"items\": [{items}]}}");
    let list_header =
        "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServerList\nmetadata: { resourceVersion: \"1\" }\n";
    for text in [
        v1(item),
        v1(&v1(item)),
        format!("{list_header}items: [{item}]\n"),
        format!("{list_header}items: [{item_without_kind}]\n"),
        format!(
            "{list_header}items:\n  - metadata: {{ name: a }}\n    spec:\n      stdio: {{ command: x }}\n"
        ),
        format!(
            "{list_header}items:\n- metadata:\n    name: a\n  # between\n  spec:\n    stdio: {{ command: x }}\n"
        ),
        format!("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  - {item}\n"),
        format!("# head\n---\napiVersion: v1\nkind: List\nitems: []\n---\n{}", v1(item)),
    ] {
        let parsed = parse_yaml(&text);
        let faults = describe_objects(&parsed);
        assert!(faults.len() == 1 && faults[0].starts_with("McpServer default/a"), "{text}: {faults:?}");
        assert_eq!((describe_faults(&parsed), parsed.unidentified.is_some()), (vec![], false), "{text}");
        let reparsed = parse_yaml(&parsed.servers[0].document);
        assert_eq!(reparsed.servers[0].spec, parsed.servers[0].spec, "{}", parsed.servers[0].document);
    }
}

#[test]
fn invalid_list_item_does_not_affect_others() {
    let good = kubectl_item("good", "stdio: { command: npx }");
    for (item, expected) in [
        ("- 1\n", "items[1] of the list is not an object"),
        ("- []\n", "items[1] of the list is not an object"),
        ("- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpSever\n", "kind \"McpSever\""),
        ("- apiVersion: evenkeel.dev/v1beta1\n  kind: McpServer\n", "apiVersion \"evenkeel.dev/v1beta1\""),
        ("- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n", "metadata.name is missing"),
        ("- apiVersion: v1\n  kind: List\n", "the list has no items"),
    ] {
        let parsed = parse_yaml(&kubectl_list(&format!("{good}{item}")));
        assert_eq!(describe_objects(&parsed), ["McpServer team/good 3: ok"], "{item}");
        let faults = describe_faults(&parsed);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{item}: {faults:?}");
        assert!(
            faults[0].starts_with("team/a.yaml:2") && parsed.unidentified.is_some(),
            "{item}: {faults:?}"
        );
    }
    for (text, expected) in [
        ("apiVersion: v1\nkind: List\n", "the list has no items"),
        ("apiVersion: v1\nkind: List\nitems: {}\n", "the list has no items"),
        ("apiVersion: evenkeel.dev/v1\nkind: McpServerList\nitems: []\n", "apiVersion"),
        ("apiVersion: evenkeel.dev/v1alpha1\nkind: SourceList\nitems: []\n", "kind \"SourceList\""),
        ("apiVersion: v1\nkind: List\nitems: [\n# McpServer", ""),
    ] {
        let parsed = parse_yaml(text);
        let faults = describe_faults(&parsed);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{text}: {faults:?}");
        assert!(parsed.unidentified.is_some(), "{text}");
    }
    let deep = "{apiVersion: v1, kind: List, items: [".repeat(30) + &"]}".repeat(30);
    assert!(parse_yaml(&deep).unidentified.is_some());
    assert!(parse_yaml("apiVersion: v1\nkind: List\nitems: []\n").unidentified.is_none());
}

#[test]
fn unrecognized_document_is_recorded() {
    for (text, expected) in [
        ("hello\n", "it is not a Kubernetes object"),
        ("- apiVersion: evenkeel.dev/v1alpha1\n", "it is not a Kubernetes object"),
        ("a: 1\n", "it has no apiVersion"),
        ("apiVersion: v1\n", "it has no kind"),
        (
            "apiVersion: toolhive.example/v1\nkind: McpServer\n",
            "its apiVersion belongs to another API group than evenkeel.dev/v1alpha1",
        ),
    ] {
        let unrecognized = parse_yaml(text).unrecognized.unwrap_or_else(|| panic!("{text}"));
        let message = unrecognized.problem.message;
        assert_eq!(message, format!("nothing is declared here: {expected}"), "{text}");
    }
    assert!(parse_yaml("apiVersion: v1\nkind: ConfigMap\n").unrecognized.is_none());
    assert!(parse_yaml("# nothing\n").unrecognized.is_none());
}

/// The placeholder that evenkeel prints in place of a value is rejected as a value.
#[test]
fn redacted_value_is_rejected() {
    for (spec, field) in [
        (
            "  stdio: { command: x, env: [{ name: TOKEN, value: <redacted> }] }",
            "spec.stdio.env[0].value: the value of TOKEN",
        ),
        (
            "  http: { url: \"https://a\", headers: [{ name: Authorization, value: \"Bearer <redacted>\" }] }",
            "spec.http.headers[0].value: the value of Authorization",
        ),
        ("  http: { url: \"https://a/mcp?<redacted>\" }", "spec.http.url: a part of the URL"),
        ("  http: { url: \"https://<redacted>@a/mcp\" }", "spec.http.url: a part of the URL"),
    ] {
        let parsed = parse_yaml(&server_yaml("one", spec));
        let faults = describe_faults(&parsed);
        assert!(faults.len() == 1 && faults[0].contains(field), "{spec}: {faults:?}");
        assert!(parsed.servers[0].spec.as_ref().is_err_and(|problem| problem.reason == Reason::InvalidSpec));
    }
}
