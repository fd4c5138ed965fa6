//! Tests that a plan from one set of files to another equals the changes that the fleet applies.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::planned_changes::{Plan, PlanInput};
use crate::admin::DeclaredState;
use crate::plan::LastApplied;
use crate::resource::{DigestKey, WorkingDirectory};
use crate::source::directory::{CheckContext, CheckResult, TargetMode, check_directory};
use crate::source::{Environment, StdioPolicy};

/// The change of each server, and the parts that caused it.
type ChangesByServer = BTreeMap<String, (&'static str, Vec<String>)>;

/// One declared server: the folder of its file, and its manifest without a name.
type ServerDeclaration = (&'static str, Value);

/// Writes each server to a file of its own and removes all earlier files.
fn write_servers(dir: &Path, servers: &[(&str, &ServerDeclaration)]) {
    for folder in ["", "team", "team/deep"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
        for name in ["a", "b", "c"] {
            let _ = std::fs::remove_file(dir.join(folder).join(format!("{name}.yaml")));
        }
    }
    for (name, (folder, manifest)) in servers {
        let mut manifest = manifest.clone();
        manifest["apiVersion"] = json!("evenkeel.dev/v1alpha1");
        manifest["kind"] = json!("McpServer");
        manifest["metadata"]["name"] = json!(name);
        std::fs::write(dir.join(folder).join(format!("{name}.yaml")), manifest.to_string()).unwrap();
    }
}

/// A live directory of declarations, a copy of it, and secrets.
struct PlanFixture {
    live: TempDir,
    copy: TempDir,
    secrets: TempDir,
    key: DigestKey,
    policy: StdioPolicy,
}

impl PlanFixture {
    fn new(policy: StdioPolicy) -> Self {
        let dir = || TempDir::new().unwrap();
        let fixture = Self { live: dir(), copy: dir(), secrets: dir(), key: DigestKey::new(b"k"), policy };
        for (name, value) in [("one", "secret one"), ("two", "secret two")] {
            fixture.write_secret(name, Some(value));
        }
        fixture
    }

    fn write_secret(&self, key: &str, value: Option<&str>) {
        let folder = self.secrets.path().join("s");
        std::fs::create_dir_all(&folder).unwrap();
        match value {
            Some(value) => std::fs::write(folder.join(key), value).unwrap(),
            None => std::fs::remove_file(folder.join(key)).unwrap(),
        }
    }

    /// Checks the live directory as a running instance does: with secrets and variables.
    fn check_live(&self) -> CheckResult {
        let context = CheckContext {
            secrets_dir: Some(self.secrets.path().into()),
            environment: Environment::from_iter([("ONE", "variable one"), ("TWO", "variable two")]),
            digest_key: self.key.clone(),
            policy: self.policy.clone(),
            target: TargetMode::Directory,
            exclude: Vec::new(),
        };
        check_directory(self.live.path(), &context).unwrap()
    }

    /// Returns the changes that the fleet applies when `before` becomes `after`, and those planned from a copy.
    fn applied_and_planned(
        &self,
        before: &[(&str, &ServerDeclaration)],
        after: &[(&str, &ServerDeclaration)],
        between: impl FnOnce(),
    ) -> [ChangesByServer; 2] {
        write_servers(self.live.path(), before);
        let mut last_applied = LastApplied::default();
        let first = self.check_live().desired;
        last_applied.apply(&first);
        let in_force =
            DeclaredState::from_desired(&first, &self.key, &self.policy, Some(self.live.path().into()));
        let json = serde_json::to_string(&in_force).unwrap();
        let in_force: DeclaredState = serde_json::from_str(&json).unwrap();

        between();
        write_servers(self.live.path(), after);
        let applied = last_applied.apply(&self.check_live().desired).into_iter();
        let applied = applied
            .map(|(key, change)| (key.name.to_string(), (change.action(), change.changed_parts().to_vec())));

        write_servers(self.copy.path(), after);
        let context = CheckContext {
            secrets_dir: None,
            environment: Environment::default(),
            digest_key: self.key.clone(),
            policy: self.policy.clone(),
            target: TargetMode::Directory,
            exclude: Vec::new(),
        };
        let checked = check_directory(self.copy.path(), &context).unwrap();
        let working_directory = WorkingDirectory {
            root: in_force.root.clone().unwrap(),
            default_cwd: self.policy.working_directory().map(Into::into),
        };
        let mut plan = Plan::new(None);
        let declarations = PlanInput {
            desired: &checked.desired,
            findings: &checked.findings,
            working_directory: Some(&working_directory),
            complete: true,
        };
        plan.add_all(&declarations, in_force, &self.key);
        // The fleet does nothing for objects that are on hold or stay.
        let planned = plan.steps.into_iter().filter(|step| !["hold", "stay"].contains(&step.action));
        [applied.collect(), planned.map(|step| (step.name, (step.action, step.parts))).collect()]
    }
}

fn value() -> impl Strategy<Value = Value> {
    let secret = |key: &str, optional: bool| {
        let reference = json!({ "name": "s", "key": key, "optional": optional });
        json!({ "valueFrom": { "secretKeyRef": reference } })
    };
    select(vec![
        json!({ "value": "x" }),
        json!({ "value": "y" }),
        secret("one", false),
        secret("one", true),
        secret("two", false),
        json!({ "valueFrom": { "env": "ONE" } }),
        json!({ "valueFrom": { "env": "TWO" } }),
    ])
}

fn named((name, mut value): (&'static str, Value)) -> Value {
    value["name"] = json!(name);
    value
}

fn stdio() -> impl Strategy<Value = Value> {
    let command = select(vec!["c", "./c", "team/../c", "/opt/c", "d"]);
    let args = select(vec![json!([]), json!(["x", "y"]), json!(["y", "x"]), json!(["x y"])]);
    let cwd = select(vec![json!(null), json!("."), json!("./"), json!("team"), json!(".."), json!("/opt")]);
    let env = (value(), value()).prop_map(|(a, b)| vec![named(("A", a)), named(("B", b))]).prop_shuffle();
    (command, args, cwd, env, 0..=2_usize).prop_map(|(command, args, cwd, env, count)| {
        json!({ "stdio": { "command": command, "args": args, "cwd": cwd, "env": env[..count] } })
    })
}

fn http() -> impl Strategy<Value = Value> {
    let url = select(vec![
        "http://localhost/a",
        "http://LocalHost:80/a#b",
        "http://localhost/A",
        "http://localhost:8080/a",
        "https://localhost:443/a b",
        "https://localhost/a%20b",
    ]);
    let names = select(vec![["A", "B"], ["a", "b"], ["a", "B"]]);
    let headers = (names, value(), value())
        .prop_map(|([one, two], a, b)| vec![named((one, a)), named((two, b))])
        .prop_shuffle();
    let tls = select(vec![json!(null), json!({}), json!({ "caSecretRef": { "name": "s", "key": "one" } })]);
    (url, headers, 0..=2_usize, tls).prop_map(|(url, headers, count, tls)| {
        json!({ "http": { "url": url, "headers": headers[..count], "tls": tls } })
    })
}

fn settings() -> impl Strategy<Value = Value> {
    let defaults = json!({});
    let others = [
        json!({ "suspend": true }),
        json!({ "activation": "OnDemand" }),
        json!({ "expose": { "prefix": "p" }, "required": true }),
        json!({ "timeouts": { "call": "1m" } }),
        json!({ "timeouts": { "call": "60s" }, "retry": { "initial": "2s" } }),
        json!({ "health": { "interval": "0s" }, "gracePeriod": "5s", "update": "Recreate" }),
    ];
    prop_oneof![Just(defaults), select(others.to_vec())]
}

fn metadata() -> impl Strategy<Value = Value> {
    let requested = |name: &str, value: &str| {
        let annotation = format!("evenkeel.dev/{name}-requested-at");
        json!({ "annotations": { annotation: value } })
    };
    let others = vec![
        json!({ "labels": { "area": "code" } }),
        requested("reconcile", "1"),
        requested("reconcile", "2"),
        requested("reconnect", "1"),
        requested("reconnect", "2"),
    ];
    prop_oneof![3 => Just(json!({})), 1 => select(others)]
}

/// The transport, the settings, the metadata and the folder of a server, which vary independently.
type Draft = (Value, Value, Value, &'static str);

fn draft() -> impl Strategy<Value = Draft> {
    let transport = prop_oneof![stdio(), http()];
    (transport, settings(), metadata(), select(vec!["", "team", "team/deep"]))
}

fn server((transport, settings, metadata, folder): Draft) -> ServerDeclaration {
    let mut spec = transport;
    for (name, value) in settings.as_object().unwrap() {
        spec[name] = value.clone();
    }
    (folder, json!({ "metadata": metadata, "spec": spec }))
}

/// Generates a server before and after: absent, the same in some parts, or entirely different.
fn pair() -> impl Strategy<Value = (Option<ServerDeclaration>, Option<ServerDeclaration>)> {
    (draft(), draft(), any::<[bool; 4]>(), 0..10_u8).prop_map(|(before, other, keep, presence)| {
        let after = (
            if keep[0] { reordered(&before.0) } else { other.0 },
            if keep[1] { before.1.clone() } else { other.1 },
            if keep[2] { before.2.clone() } else { other.2 },
            if keep[3] { before.3 } else { other.3 },
        );
        (Some(server(before)).filter(|_| presence != 0), Some(server(after)).filter(|_| presence != 1))
    })
}

/// Returns the same transport with its variables or headers in reverse order.
fn reordered(transport: &Value) -> Value {
    let mut transport = transport.clone();
    for list in ["/stdio/env", "/http/headers"] {
        if let Some(Value::Array(items)) = transport.pointer_mut(list) {
            items.reverse();
        }
    }
    transport
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plan_equals_the_changes_applied(pairs in vec(pair(), 3), bounded in any::<bool>()) {
        let policy = if bounded {
            let commands = ["c", "c *", "c * *"].map(str::to_owned);
            StdioPolicy::allow_only(&commands, &["*".to_owned()]).unwrap()
        } else {
            StdioPolicy::allow_all()
        };
        let fixture = PlanFixture::new(policy);
        let names = ["a", "b", "c"];
        let before = names.into_iter().zip(&pairs).filter_map(|(name, pair)| Some((name, pair.0.as_ref()?)));
        let before: Vec<_> = before.collect();
        let after = names.into_iter().zip(&pairs).filter_map(|(name, pair)| Some((name, pair.1.as_ref()?)));
        let after: Vec<_> = after.collect();
        let [applied, planned] = fixture.applied_and_planned(&before, &after, || ());
        prop_assert_eq!(applied, planned);
    }
}

#[test]
fn plan_compares_references_and_not_their_values() {
    let with = |value: Value| {
        ("", json!({ "metadata": {}, "spec": { "stdio": { "command": "c", "env": [named(("T", value))] } } }))
    };
    let secret = with(json!({ "valueFrom": { "secretKeyRef": { "name": "s", "key": "one" } } }));
    let written = with(json!({ "value": "secret one" }));
    let missing = with(json!({ "valueFrom": { "secretKeyRef": { "name": "s", "key": "none" } } }));
    let none = ChangesByServer::new;
    let one = |verb, parts: &[&str]| {
        ChangesByServer::from([("a".to_owned(), (verb, parts.iter().map(ToString::to_string).collect()))])
    };
    for (what, before, after, rotated, applied, planned) in [
        ("a rotated secret", Some(&secret), &secret, true, one("replace", &["env T"]), none()),
        (
            "a value that is now in a secret",
            Some(&written),
            &secret,
            false,
            none(),
            one("replace", &["env T"]),
        ),
        ("a secret that is missing", None, &missing, false, none(), one("attach", &[])),
        ("a secret that stays missing", Some(&missing), &missing, false, none(), none()),
    ] {
        let fixture = PlanFixture::new(StdioPolicy::allow_all());
        let before: Vec<_> = before.map(|before| ("a", before)).into_iter().collect();
        let rotate = || {
            if rotated {
                fixture.write_secret("one", Some("another"));
            }
        };
        assert_eq!(
            fixture.applied_and_planned(&before, &[("a", after)], rotate),
            [applied, planned],
            "{what}"
        );
    }
}
