use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::change::{DeclarationChange, Presence};
use super::target::ConnectionTarget;
use crate::resource::{
    ConnectionParts, DeclaredMeta, DeclaredObject, Digest, DigestKey, HttpTransport, Isolation,
    McpServerSpec, PartValue, ProtocolMode, RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT, SkillContent,
    SkillSpec, StdioTransport, WorkingDirectory,
};

/// The named parts of a declaration, for comparing two declarations part by part. The values are either keyed digests,
/// which do not reveal anything, or the values themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeclarationParts<V = Digest> {
    /// The parts that define the connection. A different value requires a new connection.
    connection: BTreeMap<String, V>,
    /// The parts that can be applied to a live connection.
    settings: BTreeMap<String, V>,
    /// True if the object is declared but not attached: it is suspended, or policy denies it.
    detached: bool,
    /// The value of the annotation [`RECONNECT_REQUESTED_AT`]. A different value, if present, requires a new
    /// connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect: Option<V>,
    /// The value of the annotation [`RECONCILE_REQUESTED_AT`]. A different value, if present, requests a reconcile.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<V>,
}

/// The fields of a spec, grouped by their effect. `suspended` decides if there is a connection at all.
struct SpecFields<'a> {
    stdio: Option<&'a StdioTransport>,
    http: Option<&'a HttpTransport>,
    protocol: ProtocolMode,
    isolation: Isolation,
    roots: bool,
    settings: BTreeMap<String, PartValue<'a>>,
    suspended: bool,
}

impl<'a> DeclarationParts<PartValue<'a>> {
    /// Returns the parts of a target, with the resolved values of references and with the uid of the object.
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
        let SpecFields { stdio: _, http: _, protocol: _, isolation, roots, settings, suspended } =
            SpecFields::from_spec(spec);
        let connection = ConnectionParts::resolved(&endpoint.transport, endpoint.protocol);
        let mut connection = connection.with_isolation(isolation, roots).into_parts();
        connection.insert("uid".to_owned(), PartValue::from_texts([&**uid]));
        let annotation =
            |value: &'a Option<Arc<str>>| value.as_deref().map(|value| PartValue::from_texts([value]));
        let detached = suspended;
        Self {
            connection,
            settings,
            detached,
            reconnect: annotation(reconnect),
            requested: annotation(requested),
        }
    }

    /// Returns the parts of a server as declared, with references in place of their values; `None` if there never was a
    /// valid declaration. `directory` is the root of a directory source.
    pub fn declared(
        server: &'a DeclaredObject<McpServerSpec>,
        directory: Option<&WorkingDirectory>,
    ) -> Option<Self> {
        let SpecFields { stdio, http, protocol, isolation, roots, settings, suspended } =
            SpecFields::from_spec(server.spec.as_ref()?);
        let folder = server.meta.file().map(|file| file.parent().unwrap_or(Path::new("")));
        let connection = match (stdio, http) {
            (Some(stdio), _) => Some(ConnectionParts::declared_stdio(stdio, folder.zip(directory))),
            (None, Some(http)) => Some(ConnectionParts::declared_http(http)),
            (None, None) => None,
        };
        let connection = connection
            .map(|parts| parts.with_protocol(protocol).with_isolation(isolation, roots).into_parts());
        let connection = connection.unwrap_or_default();
        let annotation = |name| annotation_value(&server.meta, name);
        Some(Self {
            connection,
            settings,
            detached: suspended || server.is_denied_by_policy(),
            reconnect: annotation(RECONNECT_REQUESTED_AT),
            requested: annotation(RECONCILE_REQUESTED_AT),
        })
    }

    /// Returns the parts of a skill as declared; `None` if there never was a valid declaration. A skill has no
    /// connection parts.
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

    /// Converts the values to keyed digests.
    pub fn into_digests(self, key: &DigestKey) -> DeclarationParts {
        let Self { connection, settings, detached, reconnect, requested } = self;
        let digest = |value: PartValue<'_>| value.digest(key);
        let digests = |parts: BTreeMap<String, PartValue<'_>>| {
            parts.into_iter().map(|(name, value)| (name, digest(value))).collect()
        };
        DeclarationParts {
            connection: digests(connection),
            settings: digests(settings),
            detached,
            reconnect: reconnect.map(digest),
            requested: requested.map(digest),
        }
    }
}

impl<V: PartialEq> DeclarationParts<V> {
    /// Returns the presence of an object with these parts; `None` means that it is not declared.
    pub fn presence(parts: Option<&Self>) -> Presence<&Self> {
        match parts {
            None => Presence::Absent,
            Some(parts) if parts.detached => Presence::Detached,
            Some(parts) => Presence::Attached(parts),
        }
    }

    /// Returns the change from this to another declaration of the same object. Both must be attached.
    pub fn change_to(&self, after: &Self) -> DeclarationChange {
        let is_new_request = |before: &Option<V>, after: &Option<V>| after.is_some() && before != after;
        let mut connection = differing_names(&self.connection, &after.connection);
        if is_new_request(&self.reconnect, &after.reconnect) {
            connection.push(format!("annotation {RECONNECT_REQUESTED_AT}"));
        }
        let settings = differing_names(&self.settings, &after.settings);
        match (connection.is_empty(), settings.is_empty()) {
            (false, _) => DeclarationChange::Replace((), [connection, settings].concat()),
            (true, false) => DeclarationChange::Refilter((), settings),
            (true, true) if is_new_request(&self.requested, &after.requested) => {
                DeclarationChange::Refresh(())
            }
            (true, true) => DeclarationChange::Stay(()),
        }
    }
}

impl<'a> SpecFields<'a> {
    fn from_spec(spec: &'a McpServerSpec) -> Self {
        let McpServerSpec {
            stdio,
            http,
            protocol,
            expose,
            capabilities,
            suspend,
            activation,
            isolation,
            max_sessions,
            roots,
            update,
            required,
            timeouts,
            retry,
            health,
            grace_period,
        } = spec;
        let settings = [
            setting_part("expose", expose),
            setting_part("capabilities", capabilities),
            setting_part("activation", activation),
            setting_part("update", update),
            setting_part("required", required),
            setting_part("timeouts", timeouts),
            setting_part("retry", retry),
            setting_part("health", health),
            setting_part("gracePeriod", grace_period),
        ];
        let stop = stdio.as_ref().map(|stdio| setting_part("stop", &stdio.stop));
        let is_isolated = *isolation == Isolation::Session;
        let max_sessions = is_isolated.then(|| setting_part("maxSessions", max_sessions));
        let settings = settings.into_iter().chain(stop).chain(max_sessions);
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).collect();
        Self {
            stdio: stdio.as_ref(),
            http: http.as_ref(),
            protocol: *protocol,
            isolation: *isolation,
            roots: *roots,
            settings,
            suspended: *suspend,
        }
    }
}

fn setting_part<'a>(name: &'static str, value: &impl Serialize) -> (&'static str, PartValue<'a>) {
    // Declared values can always be serialized as JSON.
    (name, PartValue::from_string(serde_json::to_string(value).unwrap_or_default()))
}

fn annotation_value<'a>(meta: &'a DeclaredMeta, name: &str) -> Option<PartValue<'a>> {
    meta.annotations.get(name).map(|value| PartValue::from_texts([value.as_str()]))
}

/// Returns the names of the parts that only one side has or whose values differ.
fn differing_names<V: PartialEq>(first: &BTreeMap<String, V>, second: &BTreeMap<String, V>) -> Vec<String> {
    let names: BTreeSet<_> = first.keys().chain(second.keys()).collect();
    names.into_iter().filter(|name| first.get(*name) != second.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::bundle::Bundle;
    use crate::resource::{DeclaredMeta, ObjectKey, Origin, Reason};

    fn declared_object<S: DeserializeOwned>(spec: Value, file: &str) -> DeclaredObject<S> {
        DeclaredObject {
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
            spec: Some(Arc::new(serde_json::from_value(spec).unwrap())),
            spec_digest: None,
            rejected: None,
            endpoint: None,
        }
    }

    fn parts_of(spec: Value, file: &str) -> DeclarationParts {
        let declared = declared_object(spec, file);
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
            // If a name occurs twice, the last value counts.
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
            // The name of a variable is case-sensitive, unlike a host.
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
        let base = json!({ "stdio": {
            "command": "c", "args": ["x"], "env": [{ "name": "A", "value": "hunter2" }, secret("k")],
        } });
        let replacing = |path: &str, value: Value| {
            let mut spec = base.clone();
            *spec.pointer_mut(path).unwrap() = value;
            spec
        };
        let adding = |name: &str, value: Value| {
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
                replacing("/stdio/command", json!("d")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["command"])),
            ),
            (
                replacing("/stdio/args", json!(["x", "y"])),
                "a.yaml",
                DeclarationChange::Replace((), named(&["args"])),
            ),
            (
                replacing("/stdio/env/0/value", json!("other")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env A"])),
            ),
            (
                replacing("/stdio/env/1", secret("other")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env T"])),
            ),
            (
                replacing("/stdio/env", json!([])),
                "a.yaml",
                DeclarationChange::Replace((), named(&["env A", "env T"])),
            ),
            (
                adding("expose", json!({ "prefix": "p" })),
                "a.yaml",
                DeclarationChange::Refilter((), named(&["expose"])),
            ),
            (
                adding("timeouts", json!({ "call": "1m" })),
                "team/a.yaml",
                DeclarationChange::Replace((), named(&["cwd", "timeouts"])),
            ),
            (
                replacing(
                    "/stdio",
                    json!({ "stop": "1m", "command": "c", "args": ["x"], "env": base["stdio"]["env"] }),
                ),
                "a.yaml",
                DeclarationChange::Refilter((), named(&["stop"])),
            ),
            (
                adding("isolation", json!("Session")),
                "a.yaml",
                DeclarationChange::Replace((), named(&["isolation", "maxSessions"])),
            ),
            // It has no effect without isolation.
            (adding("maxSessions", json!(2)), "a.yaml", DeclarationChange::Stay(())),
            (adding("suspend", json!(true)), "a.yaml", DeclarationChange::Detach(Reason::Suspended)),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "H", "value": "x" }] } }),
                "a.yaml",
                DeclarationChange::Replace(
                    (),
                    named(&[
                        "args",
                        "command",
                        "cwd",
                        "env A",
                        "env T",
                        "header h",
                        "transport",
                        "url",
                        "stop",
                    ]),
                ),
            ),
        ] {
            assert_eq!(
                change_between(Some(&before), Some(&parts_of(after.clone(), file))),
                expected,
                "{after} {file}"
            );
        }
        let suspended = parts_of(adding("suspend", json!(true)), "a.yaml");
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
        let json = serde_json::to_string(&before).unwrap();
        assert!(!json.contains("hunter2"), "{json}");
    }

    #[test]
    fn differing_parts_of_a_skill_are_named() {
        let parts_of = |spec: Value, description: Option<&str>| {
            let content = description.map(|description| {
                let text = format!("---\nname: a\ndescription: {description}\n---\n");
                Ok(Arc::new(Bundle::from_text("a", &text).unwrap()))
            });
            let skill = declared_object(spec, "a.yaml");
            let parts = DeclarationParts::declared_skill(&skill, content.as_ref()).unwrap();
            parts.into_digests(&DigestKey::new(b"k"))
        };
        let refiltered = |names: &[&str]| {
            DeclarationChange::Refilter((), names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let before = parts_of(json!({ "inline": "x" }), Some("one"));
        for (after, description, expected) in [
            (json!({ "inline": "x" }), Some("one"), DeclarationChange::Stay(())),
            (json!({ "inline": "y" }), Some("one"), refiltered(&["inline"])),
            (json!({ "inline": "x" }), Some("two"), refiltered(&["content"])),
            (json!({ "inline": "x" }), None, refiltered(&["content"])),
            (json!({ "path": "p" }), Some("one"), refiltered(&["inline", "path"])),
            (
                json!({ "configMapRef": { "name": "m" } }),
                Some("one"),
                refiltered(&["configMapRef", "inline"]),
            ),
            (
                json!({ "inline": "x", "serverRefs": [{ "name": "s" }] }),
                Some("one"),
                refiltered(&["serverRefs"]),
            ),
            (
                json!({ "inline": "x", "suspend": true }),
                Some("one"),
                DeclarationChange::Detach(Reason::Suspended),
            ),
        ] {
            let found = change_between(Some(&before), Some(&parts_of(after.clone(), description)));
            assert_eq!(found, expected, "{after} {description:?}");
        }
    }
}
