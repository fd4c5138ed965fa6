use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::*;
use crate::resource::{McpServer, Skill};
use kube::CustomResourceExt;

/// Specs as written in a manifest, and the messages of the rules that they violate.
fn server_cases() -> Vec<(Value, &'static [&'static str])> {
    let env = |var: Value| json!({ "stdio": { "command": "c", "env": [var] } });
    let headers = |names: &[&str]| {
        let headers: Vec<_> = names.iter().map(|name| json!({ "name": name, "value": "x" })).collect();
        json!({ "http": { "url": "http://a", "headers": headers } })
    };
    let reserved = ["Host", "mcp-session-id", "Mcp-Param-Region"].into_iter().chain(RESERVED_HEADERS);
    let reserved = reserved.map(|name| (headers(&[name]), &["this header is set by evenkeel itself"][..]));
    let mut cases: Vec<(Value, &'static [&'static str])> = vec![
        (json!({ "stdio": { "command": "c" } }), &[]),
        (json!({ "http": { "url": "https://a/mcp" } }), &[]),
        (json!({}), &["exactly one of stdio and http"]),
        (
            json!({ "stdio": { "command": "c" }, "http": { "url": "http://a" } }),
            &["exactly one of stdio and http"],
        ),
        (json!({ "stdio": { "command": "" } }), &["command must not be empty"]),
        (json!({ "http": { "url": "ftp://a" } }), &["url must start with"]),
        (env(json!({ "name": "A" })), &["exactly one of value and valueFrom"]),
        (env(json!({ "name": "A", "value": "" })), &[]),
        (
            env(json!({ "name": "A", "value": "x", "valueFrom": { "env": "B" } })),
            &["exactly one of value and valueFrom"],
        ),
        (env(json!({ "name": "A", "valueFrom": {} })), &["exactly one of secretKeyRef and env"]),
        (
            env(
                json!({ "name": "A", "valueFrom": { "env": "B", "secretKeyRef": { "name": "n", "key": "k" } } }),
            ),
            &["exactly one of secretKeyRef and env"],
        ),
        (
            json!({ "http": { "url": "http://a", "headers": [{ "name": "X" }] } }),
            &["exactly one of value and valueFrom"],
        ),
        (
            json!({ "http": { "url": "http://a" }, "retry": { "initial": "2m", "max": "1m" } }),
            &["initial must not be longer than max"],
        ),
        (
            json!({ "http": { "url": "http://a" }, "health": { "interval": "2s" } }),
            &["interval must be 0s (off) or at least 5s"],
        ),
        (json!({ "http": { "url": "http://a" }, "health": { "interval": "0s" } }), &[]),
        (json!({ "http": { "url": "http://a" }, "roots": true }), &["roots requires isolation: Session"]),
        (
            json!({ "http": { "url": "http://a" }, "roots": true, "isolation": "Shared" }),
            &["roots requires isolation: Session"],
        ),
        (json!({ "http": { "url": "http://a" }, "roots": true, "isolation": "Session" }), &[]),
        (json!({ "http": { "url": "http://a" }, "maxSessions": 0 }), &["maxSessions must be from 1 to 1024"]),
        (
            json!({ "http": { "url": "http://a" }, "maxSessions": 1025 }),
            &["maxSessions must be from 1 to 1024"],
        ),
        (json!({ "http": { "url": "http://a" }, "maxSessions": 1024 }), &[]),
        (
            headers(&[
                "X-A",
                "X-B",
                "Authorization",
                "Proxy-Authorization",
                "mcp-own",
                "Cookie",
                "User-Agent",
            ]),
            &[],
        ),
        (headers(&["X-A", "X-B", "x-a"]), &["a header is declared twice"]),
        (
            json!({ "http": { "url": "http://a" }, "health": { "failures": 0 } }),
            &["failures must be from 1 to 20"],
        ),
        (
            json!({ "http": { "url": "http://a" }, "health": { "failures": 21 } }),
            &["failures must be from 1 to 20"],
        ),
    ];
    cases.extend(reserved);
    cases
}

fn skill_cases() -> Vec<(Value, &'static [&'static str])> {
    let message: &[&str] = &["exactly one of inline, path and configMapRef"];
    vec![
        (json!({ "inline": "x" }), &[]),
        (json!({ "path": "x" }), &[]),
        (json!({}), message),
        (json!({ "inline": "x", "path": "y" }), message),
        (json!({ "inline": "x", "path": "y", "configMapRef": { "name": "z" } }), message),
    ]
}

#[test]
fn rust_rules_agree_with_the_crd_cel_rules() {
    let schema = |crd: CustomResourceDefinition| {
        let crd = serde_json::to_value(crd).unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
    };
    let server = schema(McpServer::crd());
    for (spec, expected) in server_cases() {
        let typed: McpServerSpec = serde_json::from_value(spec.clone()).unwrap();
        let messages: Vec<_> = check_server(&typed).into_iter().map(|violation| violation.message).collect();
        assert_messages_contain(&spec, &messages, expected);
        assert_messages_contain(
            &spec,
            &violated_cel_rules(&server, &serde_json::to_value(typed).unwrap()),
            expected,
        );
    }
    let skill = schema(Skill::crd());
    for (spec, expected) in skill_cases() {
        let typed: SkillSpec = serde_json::from_value(spec.clone()).unwrap();
        let messages: Vec<_> = check_skill(&typed).into_iter().map(|violation| violation.message).collect();
        assert_messages_contain(&spec, &messages, expected);
        assert_messages_contain(
            &spec,
            &violated_cel_rules(&skill, &serde_json::to_value(typed).unwrap()),
            expected,
        );
    }
}

#[test]
fn rules_beyond_the_cel_rules_are_enforced() {
    for (spec, expected) in [
        (json!({ "http": { "url": "http://user:pw@a/" } }), "must not contain a user name"),
        (json!({ "stdio": { "command": "c", "env": [{ "name": "1A", "value": "" }] } }), "\"1A\" must be"),
        (
            json!({ "stdio": {
                "command": "c", "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }],
            } }),
            "A is set twice",
        ),
        (json!({ "stdio": { "command": "c" }, "expose": { "prefix": "a b" } }), "at most 32 letters"),
        (
            json!({ "stdio": { "command": "c", "env": [{ "name": "A", "value": "<redacted>" }] } }),
            "spec.stdio.env[0].value: the value of A is",
        ),
        (json!({ "http": { "url": "http://a?<redacted>" } }), "spec.http.url: a part of the URL is"),
        (json!({ "stdio": { "command": "c" }, "expose": { "tools": { "allow": ["[a"] } } }), "unclosed"),
        (
            json!({ "http": { "url": "http://a", "tls": { "caSecretRef": { "name": "../x", "key": "k" } } } }),
            "must be a DNS name",
        ),
        (
            json!({ "http": { "url": "http://a", "tls": { "caSecretRef": { "name": "x", "key": ".." } } } }),
            "must be letters, digits",
        ),
    ] {
        let typed: McpServerSpec = serde_json::from_value(spec.clone()).unwrap();
        let messages: Vec<_> = check_server(&typed).iter().map(ToString::to_string).collect();
        assert_eq!(messages.len(), 1, "{spec}: {messages:?}");
        assert!(messages[0].contains(expected), "{spec}: {messages:?}");
    }
}

#[test]
fn skill_references_must_be_valid_object_names() {
    let skill = |map: &str, server: &str| {
        let servers = json!([{ "name": "a" }, { "name": server }]);
        json!({ "configMapRef": { "name": map }, "serverRefs": servers })
    };
    for (spec, expected) in [
        (skill("notes", "clock"), &[][..]),
        (skill("a.b-c", "a.b"), &[]),
        (skill("a,b", "clock"), &["spec.configMapRef.name: \"a,b\" must be a DNS name"]),
        (
            skill("notes,metadata.name=notes", "clock"),
            &["spec.configMapRef.name: \"notes,metadata.name=notes\" must be"],
        ),
        (skill("", "clock"), &["spec.configMapRef.name: \"\" must be"]),
        (skill("notes", "../x"), &["spec.serverRefs[1].name: \"../x\" must be"]),
    ] {
        let typed: SkillSpec = serde_json::from_value(spec.clone()).unwrap();
        let messages: Vec<_> = check_skill(&typed).iter().map(ToString::to_string).collect();
        assert_messages_contain(&spec, &messages, expected);
    }
}

fn assert_messages_contain(spec: &Value, found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{spec}: {found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{spec}: {found:?}");
    }
}

/// Evaluates every CEL rule of a schema against a value, as an API server does, and returns the messages of the
/// violated rules.
fn violated_cel_rules(schema: &Value, value: &Value) -> Vec<String> {
    let mut violated = Vec::new();
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let mut env = cel::Env::stdlib();
        env.add_extension(cel::extensions::strings).unwrap();
        let env = std::sync::Arc::new(env);
        let program = env.compile(rule["rule"].as_str().unwrap()).unwrap();
        let mut context = cel::Context::with_env(env);
        context.add_variable("self", value.clone()).unwrap();
        let result = program.execute(&context);
        if !matches!(result, Ok(cel::Value::Bool(true))) {
            assert!(matches!(result, Ok(cel::Value::Bool(false))), "{rule}: {result:?}");
            violated.push(rule["message"].as_str().unwrap().to_owned());
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        match value.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => violated.extend(violated_cel_rules(schema, value)),
        }
    }
    if let Some(values) = value.as_array() {
        violated.extend(values.iter().flat_map(|value| violated_cel_rules(&schema["items"], value)));
    }
    violated
}
