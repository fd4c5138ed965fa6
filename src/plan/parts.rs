use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::change::{DeclarationChange, Presence};
use super::target::ConnectionTarget;
use crate::resource::{
    ConnectionParts, DeclaredMeta, DeclaredObject, Digest, DigestKey, HttpTransport, McpServerSpec,
    PartValue, RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT, SkillContent, SkillSpec, StdioTransport,
    WorkingDirectory,
};

/// What a declaration is made of, by the names of its parts, so that two can be compared part by part: as keyed digests,
/// from which nobody learns a value, or as the values themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclarationParts<V = Digest> {
    /// What the connection is made from: another value is another connection.
    connection: BTreeMap<String, V>,
    /// What applies to a live connection.
    settings: BTreeMap<String, V>,
    /// Declared, and not attached: it is suspended, or may not run here.
    detached: bool,
    /// What [`RECONNECT_AT`] says: another value, if there is one, is another connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect: Option<V>,
    /// What [`REQUESTED_AT`] says: another value, if there is one, is a look at what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<V>,
}

/// A spec, taken apart: every field is in one of these, or decides whether there is a connection at all.
struct SpecFields<'a> {
    stdio: Option<&'a StdioTransport>,
    http: Option<&'a HttpTransport>,
    settings: BTreeMap<String, PartValue<'a>>,
    suspended: bool,
}

impl<'a> DeclarationParts<PartValue<'a>> {
    /// Gives the parts of what a server is connected to: the values that references stand for are among them, and which
    /// object it is.
    pub fn resolved(target: &'a ConnectionTarget) -> Self {
        let ConnectionTarget {
            key: _,
            uid,
            generation: _,
            spec_digest: _,
            endpoint,
            spec,
            reconcile_requested_at: requested,
            reconnect_requested_at: reconnect,
        } = target;
        let SpecFields { stdio: _, http: _, settings, suspended } = SpecFields::from_spec(spec);
        let mut connection = ConnectionParts::resolved(&endpoint.transport).into_parts();
        connection.insert("uid".to_owned(), PartValue::from_texts([&**uid]));
        let asked =
            |value: &'a Option<Arc<str>>| value.as_deref().map(|value| PartValue::from_texts([value]));
        let detached = suspended;
        Self { connection, settings, detached, reconnect: asked(reconnect), requested: asked(requested) }
    }

    /// Gives the parts of a server as it is declared, where references stand for their values; `None` if it was never
    /// declared well. `base` is where the files of a directory are.
    pub fn declared(
        server: &'a DeclaredObject<McpServerSpec>,
        base: Option<&WorkingDirectory>,
    ) -> Option<Self> {
        let SpecFields { stdio, http, settings, suspended } = SpecFields::from_spec(server.spec.as_ref()?);
        let folder = server.meta.file().map(|file| file.parent().unwrap_or(Path::new("")));
        let connection = match (stdio, http) {
            (Some(stdio), _) => ConnectionParts::declared_stdio(stdio, folder.zip(base)).into_parts(),
            (None, Some(http)) => ConnectionParts::declared_http(http).into_parts(),
            (None, None) => BTreeMap::new(),
        };
        let asked = |name| annotation_value(&server.meta, name);
        Some(Self {
            connection,
            settings,
            detached: suspended || server.is_denied_by_policy(),
            reconnect: asked(RECONNECT_REQUESTED_AT),
            requested: asked(RECONCILE_REQUESTED_AT),
        })
    }

    /// Gives the parts of a skill, likewise; no connection is made from one.
    pub fn declared_skill(
        skill: &'a DeclaredObject<SkillSpec>,
        content: Option<&SkillContent>,
    ) -> Option<Self> {
        let SkillSpec { inline, path, config_map_ref, server_refs, suspend } = &**skill.spec.as_ref()?;
        let content = content.and_then(|content| content.as_ref().ok());
        let settings = [
            inline.as_ref().map(|text| ("inline", PartValue::from_texts([text.as_str()]))),
            path.as_ref().map(|path| ("path", PartValue::from_texts([path.as_str()]))),
            config_map_ref.as_ref().map(|map| setting_part("configMapRef", map)),
            Some(setting_part("serverRefs", server_refs)),
            content.map(|bundle| ("content", PartValue::from_string(bundle.digest().to_string()))),
        ];
        let settings = settings.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect();
        let connection = BTreeMap::new();
        Some(Self { connection, settings, detached: *suspend, reconnect: None, requested: None })
    }

    /// Gives the same as keyed digests.
    pub fn into_digests(self, key: &DigestKey) -> DeclarationParts {
        let Self { connection, settings, detached, reconnect, requested } = self;
        let digest = |value: PartValue<'_>| value.digest(key);
        let all = |parts: BTreeMap<String, PartValue<'_>>| {
            parts.into_iter().map(|(name, value)| (name, digest(value))).collect()
        };
        DeclarationParts {
            connection: all(connection),
            settings: all(settings),
            detached,
            reconnect: reconnect.map(digest),
            requested: requested.map(digest),
        }
    }
}

impl<V: PartialEq> DeclarationParts<V> {
    /// Gives how an object stands that is declared like this, if it is.
    pub fn presence(parts: Option<&Self>) -> Presence<&Self> {
        match parts {
            None => Presence::Absent,
            Some(parts) if parts.detached => Presence::Detached,
            Some(parts) => Presence::Attached(parts),
        }
    }

    /// Gives the step from this to another declaration of the same object; both are attached.
    pub fn change_to(&self, after: &Self) -> DeclarationChange {
        let asked_anew = |before: &Option<V>, after: &Option<V>| after.is_some() && before != after;
        let mut connection = differing_names(&self.connection, &after.connection);
        if asked_anew(&self.reconnect, &after.reconnect) {
            connection.push(format!("annotation {RECONNECT_REQUESTED_AT}"));
        }
        let settings = differing_names(&self.settings, &after.settings);
        match (connection.is_empty(), settings.is_empty()) {
            (false, _) => DeclarationChange::Replace((), [connection, settings].concat()),
            (true, false) => DeclarationChange::Refilter((), settings),
            (true, true) if asked_anew(&self.requested, &after.requested) => DeclarationChange::Refresh(()),
            (true, true) => DeclarationChange::Stay(()),
        }
    }
}

impl<'a> SpecFields<'a> {
    fn from_spec(spec: &'a McpServerSpec) -> Self {
        let McpServerSpec {
            stdio,
            http,
            expose,
            suspend,
            activation,
            update,
            required,
            timeouts,
            retry,
            health,
            grace_period,
        } = spec;
        let settings = [
            setting_part("expose", expose),
            setting_part("activation", activation),
            setting_part("update", update),
            setting_part("required", required),
            setting_part("timeouts", timeouts),
            setting_part("retry", retry),
            setting_part("health", health),
            setting_part("gracePeriod", grace_period),
        ];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { stdio: stdio.as_ref(), http: http.as_ref(), settings, suspended: *suspend }
    }
}

fn setting_part<'a>(name: &'static str, value: &impl Serialize) -> (&'static str, PartValue<'a>) {
    // What people declare can be written as JSON.
    (name, PartValue::from_string(serde_json::to_string(value).unwrap_or_default()))
}

fn annotation_value<'a>(meta: &'a DeclaredMeta, name: &str) -> Option<PartValue<'a>> {
    meta.annotations.get(name).map(|value| PartValue::from_texts([value.as_str()]))
}

/// The names of what only one has, or has otherwise.
fn differing_names<V: PartialEq>(one: &BTreeMap<String, V>, other: &BTreeMap<String, V>) -> Vec<String> {
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::{DeclaredMeta, ObjectKey, Origin, Reason};

    fn parts_of(spec: Value, file: &str) -> DeclarationParts {
        let declared = DeclaredObject {
            meta: DeclaredMeta {
                key: ObjectKey::new("default", "a"),
                uid: "u".into(),
                generation: 1,
                created_at: jiff::Timestamp::UNIX_EPOCH,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                origin: Origin::File { path: Arc::new(file.into()), line: 1 },
                revision: "r".into(),
                last_commit: None,
            },
            spec: Some(Arc::new(serde_json::from_value::<McpServerSpec>(spec).unwrap())),
            spec_digest: None,
            rejected: None,
            endpoint: None,
        };
        let base = WorkingDirectory { root: "/srv/fleet".into(), default_cwd: None };
        DeclarationParts::declared(&declared, Some(&base)).unwrap().into_digests(&DigestKey::new(b"k"))
    }

    fn change_between(
        before: Option<&DeclarationParts>,
        after: Option<&DeclarationParts>,
    ) -> DeclarationChange {
        DeclarationChange::between(
            DeclarationParts::presence(before),
            DeclarationParts::presence(after),
            DeclarationParts::change_to,
        )
    }

    #[test]
    fn equivalent_spellings_give_no_change() {
        let stdio = |stdio: Value| json!({ "stdio": stdio });
        let http = |url: &str, headers: Value| json!({ "http": { "url": url, "headers": headers } });
        let var = |name: &str, value: &str| json!({ "name": name, "value": value });
        let env = |env: Value| stdio(json!({ "command": "c", "env": env }));
        for (one, other, differing) in [
            (env(json!([var("A", "1"), var("B", "2")])), env(json!([var("B", "2"), var("A", "1")])), &[][..]),
            // The last of two of one name counts.
            (env(json!([var("A", "1"), var("A", "2")])), env(json!([var("A", "2")])), &[]),
            (env(json!([var("A", "1"), var("A", "2")])), env(json!([var("A", "1")])), &["env A"]),
            (env(json!([var("A", "1")])), env(json!([var("a", "1")])), &["env A", "env a"]),
            (
                stdio(json!({ "command": "c", "args": ["a", "b"] })),
                stdio(json!({ "command": "c", "args": ["b", "a"] })),
                &["args"],
            ),
            (
                stdio(json!({ "command": "c", "args": ["ab"] })),
                stdio(json!({ "command": "c", "args": ["a", "b"] })),
                &["args"],
            ),
            (stdio(json!({ "command": "c" })), stdio(json!({ "command": "c", "cwd": "x/../" })), &[]),
            (stdio(json!({ "command": "./c" })), stdio(json!({ "command": "/srv/fleet/c" })), &[]),
            (stdio(json!({ "command": "./c" })), stdio(json!({ "command": "c" })), &["command"]),
            (
                http("http://localhost", json!([var("A", "1"), var("B", "2")])),
                http("HTTP://LOCALHOST:80/#there", json!([var("b", "2"), var("a", "1")])),
                &[],
            ),
            (http("https://a:443/x", json!([])), http("https://a/x", json!([])), &[]),
            (http("https://a/x y", json!([])), http("https://a/x%20y", json!([])), &[]),
            (http("https://a/x", json!([])), http("https://a/X", json!([])), &["url"]),
            (http("https://a:80/", json!([])), http("https://a/", json!([])), &["url"]),
            (http("https://a/?", json!([])), http("https://a/", json!([])), &["url"]),
            // What a variable is called is no host.
            (http("https://${A}/", json!([])), http("https://${a}/", json!([])), &["url"]),
        ] {
            let named: Vec<_> = differing.iter().map(ToString::to_string).collect();
            let expected = if named.is_empty() {
                DeclarationChange::Stay(())
            } else {
                DeclarationChange::Replace((), named)
            };
            let found = parts_of(one.clone(), "a.yaml").change_to(&parts_of(other.clone(), "b.yaml"));
            assert_eq!(found, expected, "{one} {other}");
        }
    }

    #[test]
    fn differing_parts_are_named_and_decide_the_change() {
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
        let before = parts_of(base.clone(), "a.yaml");
        for (after, file, expected) in [
            (base.clone(), "a.yaml", DeclarationChange::Stay(())),
            (base.clone(), "b.yaml", DeclarationChange::Stay(())),
            (base.clone(), "team/a.yaml", DeclarationChange::Replace((), named(&["cwd"]))),
            (
                with("/stdio/command", json!("d")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["command"])),
            ),
            (
                with("/stdio/args", json!(["x", "y"])),
                "a.yaml",
                DeclarationChange::Replace((), named(&["args"])),
            ),
            (
                with("/stdio/env/0/value", json!("other")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env A"])),
            ),
            (
                with("/stdio/env/1", secret("other")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env T"])),
            ),
            (
                with("/stdio/env", json!([])),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env A", "env T"])),
            ),
            (
                and("expose", json!({ "prefix": "p" })),
                "a.yaml",
                DeclarationChange::Refilter((), named(&["expose"])),
            ),
            (
                and("timeouts", json!({ "call": "1m" })),
                "team/a.yaml",
                DeclarationChange::Replace((), named(&["cwd", "timeouts"])),
            ),
            (and("suspend", json!(true)), "a.yaml", DeclarationChange::Detach(Reason::Suspended)),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "H", "value": "x" }] } }),
                "a.yaml",
                DeclarationChange::Replace(
                    (),
                    named(&["args", "command", "cwd", "env A", "env T", "header h", "transport", "url"]),
                ),
            ),
        ] {
            assert_eq!(
                change_between(Some(&before), Some(&parts_of(after.clone(), file))),
                expected,
                "{after} {file}"
            );
        }
        let suspended = parts_of(and("suspend", json!(true)), "a.yaml");
        let changed = parts_of(
            json!({ "stdio": { "command": "d", "args": ["x"], "env": [] }, "suspend": true }),
            "a.yaml",
        );
        for (before, after, expected) in [
            (None, Some(&before), DeclarationChange::Attach(())),
            (Some(&before), None, DeclarationChange::Detach(Reason::Removed)),
            (None, Some(&suspended), DeclarationChange::Stay(())),
            (Some(&suspended), Some(&before), DeclarationChange::Attach(())),
            (Some(&suspended), None, DeclarationChange::Detach(Reason::Removed)),
            (Some(&suspended), Some(&suspended), DeclarationChange::Stay(())),
            (Some(&suspended), Some(&changed), DeclarationChange::Stay(())),
        ] {
            assert_eq!(change_between(before, after), expected);
        }
        let told = serde_json::to_string(&before).unwrap();
        assert!(!told.contains("hunter2"), "{told}");
    }
}
