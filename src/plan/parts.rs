use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::resource::{
    Content, Declared, Digest, DigestKey, EnvVar, Header, Literal, McpServerSpec, Origin, SkillSpec,
    ValueFrom,
};

/// What a declaration is made of, as keyed digests: two of them can be compared part by part, and nobody
/// learns a value from one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parts {
    /// What the connection is made from: another value is another connection.
    connection: BTreeMap<String, Digest>,
    /// What applies to a live connection.
    settings: BTreeMap<String, Digest>,
    /// Declared, and to be left alone.
    suspended: bool,
}

/// What becomes of one object when its declaration is replaced by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is new, or no longer suspended.
    Attach,
    /// Its connection is made anew, because of these parts; all parts that differ are named.
    Replace(Vec<String>),
    /// These parts apply to what is there.
    Refilter(Vec<String>),
    /// It goes: taken away, or suspended.
    Detach {
        /// It stays declared.
        suspended: bool,
    },
    /// Nothing differs.
    Stay,
}

impl Parts {
    /// Of a server; `None` if it was never declared well.
    pub fn of_server(server: &Declared<McpServerSpec>, key: &DigestKey) -> Option<Self> {
        let spec = server.spec.as_ref()?;
        let mut connection = BTreeMap::new();
        let mut part = |name: String, texts: &[&str]| {
            connection.insert(name, key.digest(texts.iter().map(|text| text.as_bytes())));
        };
        part("transport".to_owned(), &[spec.transport()]);
        if let Some(stdio) = &spec.stdio {
            part("command".to_owned(), &[&stdio.command]);
            part("args".to_owned(), &stdio.args.iter().map(String::as_str).collect::<Vec<_>>());
            // A process runs in the folder of the file that declares it.
            let folder = match &server.meta.origin {
                Origin::File { path, .. } => path.parent().map(|folder| folder.display().to_string()),
                Origin::Cluster { .. } => None,
            };
            part("cwd".to_owned(), &[&folder.unwrap_or_default(), stdio.cwd.as_deref().unwrap_or_default()]);
            for EnvVar { name, value, value_from } in &stdio.env {
                part(format!("env {name}"), &value_of(value.as_ref(), value_from.as_ref()));
            }
        }
        if let Some(http) = &spec.http {
            part("url".to_owned(), &[&http.url]);
            for Header { name, value, value_from } in &http.headers {
                part(format!("header {name}"), &value_of(value.as_ref(), value_from.as_ref()));
            }
            if let Some(reference) = http.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()) {
                part("tls".to_owned(), &[&reference.name, &reference.key]);
            }
        }
        let settings = fields(spec, &["stdio", "http", "suspend"], key);
        Some(Self { connection, settings, suspended: spec.suspend })
    }

    /// Of a skill, likewise; no connection is made from one.
    pub fn of_skill(skill: &Declared<SkillSpec>, content: Option<&Content>, key: &DigestKey) -> Option<Self> {
        let spec = skill.spec.as_ref()?;
        let mut settings = fields(spec, &["suspend"], key);
        if let Some(Ok(bundle)) = content {
            settings.insert("content".to_owned(), key.digest([bundle.digest().to_string().as_bytes()]));
        }
        Some(Self { settings, suspended: spec.suspend, ..Self::default() })
    }

    /// The step from what is in force, if anything, to what is declared, if anything.
    pub fn step(before: Option<&Self>, after: Option<&Self>) -> Step {
        let is_live = |parts: &&Self| !parts.suspended;
        match (before.filter(is_live), after.filter(is_live)) {
            (None, Some(_)) => Step::Attach,
            (Some(_), None) => Step::Detach { suspended: after.is_some() },
            (Some(before), Some(after)) => {
                let connection = differing(&before.connection, &after.connection);
                let settings = differing(&before.settings, &after.settings);
                match (connection.is_empty(), settings.is_empty()) {
                    (true, true) => Step::Stay,
                    (true, false) => Step::Refilter(settings),
                    (false, _) => Step::Replace([connection, settings].concat()),
                }
            }
            // Nothing is there, and nothing comes.
            (None, None) => match (before, after) {
                (Some(_), None) => Step::Detach { suspended: false },
                (Some(before), Some(after)) if before != after => {
                    let connection = differing(&before.connection, &after.connection);
                    Step::Refilter([connection, differing(&before.settings, &after.settings)].concat())
                }
                _ => Step::Stay,
            },
        }
    }
}

/// A value that is written out, or what it is taken from.
fn value_of<'a>(literal: Option<&'a Literal>, from: Option<&'a ValueFrom>) -> Vec<&'a str> {
    let secret = from.and_then(|from| from.secret_key_ref.as_ref());
    let variable = from.and_then(|from| from.env.as_deref());
    match (literal, secret, variable) {
        (Some(literal), ..) => vec!["value", literal.expose()],
        (_, Some(secret), _) => vec!["secret", &secret.name, &secret.key],
        (_, _, Some(variable)) => vec!["variable", variable],
        _ => Vec::new(),
    }
}

/// The fields of a spec but for some.
fn fields(spec: &impl Serialize, without: &[&str], key: &DigestKey) -> BTreeMap<String, Digest> {
    let Ok(Value::Object(fields)) = serde_json::to_value(spec) else { return BTreeMap::new() };
    let kept = fields.into_iter().filter(|(name, _)| !without.contains(&name.as_str()));
    kept.map(|(name, value)| (name, key.digest([value.to_string().as_bytes()]))).collect()
}

/// The names of what only one has, or has otherwise.
fn differing(one: &BTreeMap<String, Digest>, other: &BTreeMap<String, Digest>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::resource::{Meta, ObjectKey};

    fn parts(spec: Value, file: &str) -> Parts {
        let declared = Declared {
            meta: Meta {
                key: ObjectKey::new("default", "a"),
                uid: "u".into(),
                generation: 1,
                created: jiff::Timestamp::UNIX_EPOCH,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                origin: Origin::File { path: Arc::new(file.into()), line: 1 },
                revision: "r".into(),
                change: None,
            },
            spec: Some(Arc::new(serde_json::from_value::<McpServerSpec>(spec).unwrap())),
            spec_digest: None,
            refused: None,
            endpoint: None,
        };
        Parts::of_server(&declared, &DigestKey::new(b"k")).unwrap()
    }

    #[test]
    fn what_differs_is_named_and_decides_the_step() {
        let secret =
            |key: &str| json!({ "name": "T", "valueFrom": { "secretKeyRef": { "name": "s", "key": key } } });
        let base = json!({ "stdio": { "command": "c", "args": ["x"], "env": [{ "name": "A", "value": "hunter2" }, secret("k")] } });
        let with = |path: &str, value: Value| {
            let mut spec = base.clone();
            *spec.pointer_mut(path).unwrap() = value;
            spec
        };
        let and = |name: &str, value: Value| {
            let mut spec = base.clone();
            spec[name] = value;
            spec
        };
        let named = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let before = parts(base.clone(), "a.yaml");
        for (after, file, expected) in [
            (base.clone(), "a.yaml", Step::Stay),
            (base.clone(), "b.yaml", Step::Stay),
            (base.clone(), "team/a.yaml", Step::Replace(named(&["cwd"]))),
            (with("/stdio/command", json!("d")), "a.yaml", Step::Replace(named(&["command"]))),
            (with("/stdio/args", json!(["x", "y"])), "a.yaml", Step::Replace(named(&["args"]))),
            (with("/stdio/env/0/value", json!("other")), "a.yaml", Step::Replace(named(&["env A"]))),
            (with("/stdio/env/1", secret("other")), "a.yaml", Step::Replace(named(&["env T"]))),
            (with("/stdio/env", json!([])), "a.yaml", Step::Replace(named(&["env A", "env T"]))),
            (and("expose", json!({ "prefix": "p" })), "a.yaml", Step::Refilter(named(&["expose"]))),
            (
                and("timeouts", json!({ "call": "1m" })),
                "team/a.yaml",
                Step::Replace(named(&["cwd", "timeouts"])),
            ),
            (and("suspend", json!(true)), "a.yaml", Step::Detach { suspended: true }),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "H", "value": "x" }] } }),
                "a.yaml",
                Step::Replace(named(&[
                    "args",
                    "command",
                    "cwd",
                    "env A",
                    "env T",
                    "header H",
                    "transport",
                    "url",
                ])),
            ),
        ] {
            assert_eq!(
                Parts::step(Some(&before), Some(&parts(after.clone(), file))),
                expected,
                "{after} {file}"
            );
        }
        let suspended = parts(and("suspend", json!(true)), "a.yaml");
        let changed = parts(
            json!({ "stdio": { "command": "d", "args": ["x"], "env": [] }, "suspend": true }),
            "a.yaml",
        );
        for (before, after, expected) in [
            (None, Some(&before), Step::Attach),
            (Some(&before), None, Step::Detach { suspended: false }),
            (None, Some(&suspended), Step::Stay),
            (Some(&suspended), Some(&before), Step::Attach),
            (Some(&suspended), None, Step::Detach { suspended: false }),
            (Some(&suspended), Some(&suspended), Step::Stay),
            (Some(&suspended), Some(&changed), Step::Refilter(named(&["command", "env A", "env T"]))),
        ] {
            assert_eq!(Parts::step(before, after), expected);
        }
        let told = serde_json::to_string(&before).unwrap();
        assert!(!told.contains("hunter2"), "{told}");
    }
}
