use std::cell::Cell;
use std::path::Path;

use super::*;
use crate::resource::{DigestKey, Endpoint};
use crate::source::parse::parse;
use crate::source::resolve::{ReferenceValues, SecretLookup};
use crate::source::{Environment, StdioPolicy};

/// The accepted objects, with a secret value and a counter of uids for their context.
struct MergeFixture {
    objects: AcceptedObjects,
    secret: Cell<&'static str>,
    uid_count: Cell<u32>,
}

/// Returns one server per `(name, command)`; the name `!` stands for a document that does not parse.
fn servers_yaml(servers: &[(&str, &str)]) -> String {
    let document = |(name, command): &(&str, &str)| {
        if *name == "!" {
            return "apiVersion: [evenkeel.dev\n---\n".to_owned();
        }
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\n\
             spec: {{ stdio: {{ {command} }} }}\n---\n"
        )
    };
    servers.iter().map(document).collect()
}

fn path(name: &str) -> Arc<PathBuf> {
    Arc::new(PathBuf::from(name))
}

impl MergeFixture {
    fn new() -> Self {
        Self { objects: AcceptedObjects::default(), secret: Cell::new("one"), uid_count: Cell::new(0) }
    }

    fn resolve(&self, spec: &McpServerSpec, file: &Path) -> Result<Arc<Endpoint>, Problem> {
        let references = ReferenceValues {
            secret_location: &|_| "/run/secrets".into(),
            environment: &Environment::default(),
            policy: &StdioPolicy::allow_all(),
            lookup_secret: &|_| match self.secret.get() {
                "" => SecretLookup::Missing,
                value => SecretLookup::Found(value.into()),
            },
            digest_key: &DigestKey::new(b"k"),
        };
        references.resolve(spec, Some(&Path::new("/srv").join(file.parent().unwrap())), Vec::new())
    }

    /// Records files in this order and applies them. Returns the files whose records are stale.
    fn record_and_apply(&mut self, revision: &str, files: &[(&str, &str)]) -> Vec<String> {
        for (name, text) in files {
            self.objects.record_file(&path(name), parse(&path(name), text.as_bytes()));
        }
        self.apply(revision)
    }

    fn apply(&mut self, revision: &str) -> Vec<String> {
        let mut objects = std::mem::take(&mut self.objects);
        let stale = objects.apply(&MergeContext {
            now: Timestamp::UNIX_EPOCH,
            revision: &revision.into(),
            last_commit: &|_| None,
            new_uid: &|| {
                self.uid_count.set(self.uid_count.get() + 1);
                format!("u{}", self.uid_count.get()).into()
            },
            resolve: &|spec, file| self.resolve(spec, file),
        });
        self.objects = objects;
        stale.iter().map(|path| path.display().to_string()).collect()
    }

    fn server(&self, name: &str) -> Option<Arc<DeclaredObject<McpServerSpec>>> {
        self.objects.servers.objects.get(&ObjectKey::new("default", name)).cloned()
    }

    /// Returns each server as `name uid/generation command @revision file:line`, with the reason it is rejected.
    fn describe_servers(&self) -> Vec<String> {
        let describe = |server: &Arc<DeclaredObject<McpServerSpec>>| {
            let meta = &server.meta;
            let command = match &server.spec {
                Some(spec) => spec.stdio.as_ref().unwrap().command.clone(),
                None => "-".to_owned(),
            };
            let refused = server.rejected.as_ref().map(|problem| format!(" {:?}", problem.reason));
            format!(
                "{} {}/{} {command} @{} {}{}",
                meta.key.name,
                meta.uid,
                meta.generation,
                meta.revision,
                meta.origin,
                refused.unwrap_or_default()
            )
        };
        self.objects.servers.objects.values().map(describe).collect()
    }

    fn describe_faults(&self) -> Vec<String> {
        let describe =
            |fault: &SourceProblem| format!("{} {:?}", fault.origin.as_ref().unwrap(), fault.problem.reason);
        self.objects.faults().iter().map(describe).collect()
    }
}

const A: (&str, &str) = ("a", "command: x");
const A2: (&str, &str) = ("a", "command: w");
const A_BAD: (&str, &str) = ("a", "comand: w");
const B: (&str, &str) = ("b", "command: x");
const BROKEN: (&str, &str) = ("!", "");

/// A step: the files that changed with their servers (no server: the file is gone), then the expected servers and
/// faults.
type Step<'a> = (&'a [(&'a str, &'a [(&'a str, &'a str)])], &'a [&'a str], &'a [&'a str]);

#[test]
fn objects_follow_their_files_step_by_step() {
    let table: &[(&str, &[Step<'_>])] = &[
        (
            "appears, changes, is removed, and returns as a new object",
            &[
                (&[("1", &[A])], &["a u1/1 x @r0 1:1"], &[]),
                (&[("1", &[A2])], &["a u1/2 w @r1 1:1"], &[]),
                (&[("1", &[B, A2])], &["a u1/2 w @r1 1:6", "b u2/1 x @r2 1:1"], &[]),
                (&[("1", &[])], &[], &[]),
                (&[("1", &[A])], &["a u3/1 x @r4 1:1"], &[]),
            ],
        ),
        (
            "an invalid spec keeps the last good one, and restoring it is no change",
            &[
                (&[("1", &[A, B])], &["a u1/1 x @r0 1:1", "b u2/1 x @r0 1:6"], &[]),
                (
                    &[("1", &[A_BAD, B])],
                    &["a u1/1 x @r0 1:1 InvalidSpec", "b u2/1 x @r0 1:6"],
                    &["1:4 InvalidSpec"],
                ),
                (&[("1", &[A, B])], &["a u1/1 x @r0 1:1", "b u2/1 x @r0 1:6"], &[]),
            ],
        ),
        (
            "a new object with an invalid spec exists without a spec until it is fixed",
            &[
                (&[("1", &[A_BAD])], &["a u1/1 - @r0 1:1 InvalidSpec"], &["1:4 InvalidSpec"]),
                (&[("1", &[A])], &["a u1/2 x @r1 1:1"], &[]),
            ],
        ),
        (
            "a document that does not parse keeps the objects it may contain, and no others",
            &[
                (&[("1", &[A, B])], &["a u1/1 x @r0 1:1", "b u2/1 x @r0 1:6"], &[]),
                (
                    &[("1", &[BROKEN, ("b", "command: z")])],
                    &["a u1/1 x @r0 1:1 ParseError", "b u2/2 z @r1 1:3"],
                    &["1:1 ParseError"],
                ),
                (&[("1", &[B])], &["b u2/3 x @r2 1:1"], &[]),
            ],
        ),
        (
            "a moved object is the same object",
            &[
                (&[("1", &[A])], &["a u1/1 x @r0 1:1"], &[]),
                (&[("1", &[]), ("2", &[B, A])], &["a u1/1 x @r0 2:6", "b u2/1 x @r1 2:1"], &[]),
                (&[("1", &[A]), ("2", &[B])], &["a u1/1 x @r0 1:1", "b u2/1 x @r1 2:1"], &[]),
            ],
        ),
        (
            "at a first start the first path wins the name; later the declaration in force keeps it; \
             then the next takes over",
            &[
                (&[("2", &[A2]), ("1", &[A])], &["a u1/1 x @r0 1:1"], &["2:1 DuplicateName"]),
                (&[("0", &[A2])], &["a u1/1 x @r0 1:1"], &["0:1 DuplicateName", "2:1 DuplicateName"]),
                (&[("1", &[])], &["a u1/2 w @r2 0:1"], &["2:1 DuplicateName"]),
                (&[("2", &[BROKEN])], &["a u1/2 w @r2 0:1"], &["2:1 ParseError"]),
                (&[("0", &[]), ("2", &[])], &[], &[]),
            ],
        ),
        (
            "a duplicate name in one file",
            &[
                (&[("1", &[A, A2])], &["a u1/1 x @r0 1:1"], &["1:6 DuplicateName"]),
                (&[("1", &[A2])], &["a u1/2 w @r1 1:1"], &[]),
            ],
        ),
    ];
    for (name, steps) in table {
        let mut fixture = MergeFixture::new();
        for (number, (files, declared, faults)) in steps.iter().enumerate() {
            let texts: Vec<_> = files.iter().map(|(name, servers)| (*name, servers_yaml(servers))).collect();
            let files: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
            fixture.record_and_apply(&format!("r{number}"), &files);
            assert_eq!(fixture.describe_servers(), *declared, "{name}, step {number}");
            assert_eq!(fixture.describe_faults(), *faults, "{name}, step {number}");
        }
    }
}

#[test]
fn unchanged_object_keeps_its_arc() {
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply(
        "r0",
        &[("1", &servers_yaml(&[A, B])), ("2", &servers_yaml(&[("c", "command: x")]))],
    );
    let before: Vec<_> = ["a", "b", "c"].map(|name| fixture.server(name).unwrap()).into();
    let stale = fixture.record_and_apply("r1", &[("1", &servers_yaml(&[A, ("b", "command: z")]))]);
    let same = |index: usize, name: &str| Arc::ptr_eq(&before[index], &fixture.server(name).unwrap());
    assert!(same(0, "a") && !same(1, "b") && same(2, "c"));
    assert_eq!(stale, ["1"]);
    assert_eq!(before[0].spec_digest, fixture.server("a").unwrap().spec_digest);
    assert_ne!(before[1].spec_digest, fixture.server("b").unwrap().spec_digest);
}

#[test]
fn literal_value_changes_the_generation_but_not_the_spec_digest() {
    let server = |value: &str| {
        servers_yaml(&[("a", &format!("command: x, env: [{{ name: T, value: \"{value}\" }}]"))])
    };
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &server("hunter2"))]);
    let before = fixture.server("a").unwrap();
    fixture.record_and_apply("r1", &[("1", &server("hunter3"))]);
    let after = fixture.server("a").unwrap();
    assert_eq!(after.meta.generation, 2);
    assert_eq!(before.spec_digest, after.spec_digest);
    let digest =
        |server: &DeclaredObject<McpServerSpec>| server.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
    assert_ne!(digest(&before), digest(&after));
    assert!(!format!("{before:?}").contains("hunter2"));
}

#[test]
fn unreadable_file_keeps_its_objects() {
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &servers_yaml(&[A]))]);
    fixture
        .objects
        .record_file(&path("1"), ParsedFile::unreadable(&path("1"), "cannot be read: permission denied"));
    fixture.apply("r1");
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 1:1 ParseError"]);
    let refused = fixture.server("a").unwrap().rejected.clone().unwrap();
    assert_eq!(
        refused.message,
        "1:1: the file cannot be read: permission denied; the last good declaration stays in force"
    );
    assert_eq!(fixture.describe_faults(), ["1:1 ParseError"]);
    fixture.record_and_apply("r2", &[("1", &servers_yaml(&[A]))]);
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 1:1"]);
}

#[test]
fn new_objects_can_be_recorded_alone() {
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &servers_yaml(&[A]))]);
    let text = servers_yaml(&[A2, B, ("c", "comand: x")]);
    fixture.objects.record_new_objects(&path("1"), &parse(&path("1"), text.as_bytes()));
    fixture.apply("r1");
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 1:1", "b u2/1 x @r1 1:6"]);
    let before = fixture.server("b").unwrap();
    fixture.record_and_apply("r2", &[("1", &text)]);
    assert_eq!(
        fixture.describe_servers(),
        ["a u1/2 w @r2 1:1", "b u2/1 x @r1 1:6", "c u3/1 - @r2 1:11 InvalidSpec"]
    );
    assert!(Arc::ptr_eq(&before, &fixture.server("b").unwrap()));
}

#[test]
fn rotated_secret_changes_only_servers_that_use_it() {
    let reference = "command: x, env: [{ name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }]";
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &servers_yaml(&[A, ("b", reference)]))]);
    assert_eq!(
        fixture.objects.secret_references().into_iter().collect::<Vec<_>>(),
        [("s".into(), "k".into())]
    );
    let before = (fixture.server("a").unwrap(), fixture.server("b").unwrap());
    let resolve_again = |fixture: &mut MergeFixture| {
        let mut objects = std::mem::take(&mut fixture.objects);
        objects.resolve_references(&|spec, file| fixture.resolve(spec, file));
        fixture.objects = objects;
    };

    resolve_again(&mut fixture);
    assert!(Arc::ptr_eq(&before.1, &fixture.server("b").unwrap()), "nothing differs");
    fixture.secret.set("two");
    resolve_again(&mut fixture);
    assert!(Arc::ptr_eq(&before.0, &fixture.server("a").unwrap()));
    let after = fixture.server("b").unwrap();
    let digest =
        |server: &DeclaredObject<McpServerSpec>| server.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
    assert_ne!(digest(&before.1), digest(&after));
    assert_eq!(after.meta.generation, 1, "the declaration is the same");
    fixture.secret.set("");
    resolve_again(&mut fixture);
    let problem = fixture.server("b").unwrap().endpoint.clone().unwrap().unwrap_err();
    assert_eq!(problem.reason, crate::resource::Reason::SecretNotFound);
}

#[test]
fn restart_continues_from_the_restored_objects() {
    let restored_object = |text: Option<&str>| RestoredObject {
        key: ObjectKey::new("default", "a"),
        line: 7,
        uid: "old".into(),
        generation: 4,
        created_at: Timestamp::UNIX_EPOCH,
        revision: "r".into(),
        last_commit: None,
        last_good: text.map(|text| parse(&path("1"), text.as_bytes()).servers.remove(0)),
    };
    let restored_fixture = |text: Option<&str>| {
        let mut fixture = MergeFixture::new();
        let mut objects = AcceptedObjects::default();
        objects.servers.restore(&path("1"), restored_object(text), &|spec, file| fixture.resolve(spec, file));
        fixture.objects = objects;
        fixture
    };
    let good = servers_yaml(&[A]);
    for (text, latest, expected) in [
        (Some(good.as_str()), servers_yaml(&[A]), "a old/4 x @r 1:1"),
        (Some(good.as_str()), servers_yaml(&[A2]), "a old/5 w @now 1:1"),
        (Some(good.as_str()), servers_yaml(&[BROKEN]), "a old/4 x @r 1:7 ParseError"),
        (Some(good.as_str()), servers_yaml(&[A_BAD]), "a old/4 x @r 1:1 InvalidSpec"),
        (None, servers_yaml(&[A_BAD]), "a old/4 - @r 1:1 InvalidSpec"),
        (None, servers_yaml(&[A]), "a old/5 x @now 1:1"),
    ] {
        let mut fixture = restored_fixture(text);
        fixture.record_and_apply("now", &[("1", &latest)]);
        assert_eq!(fixture.describe_servers(), [expected]);
    }
    let mut fixture = restored_fixture(Some(&good));
    fixture.record_and_apply("now", &[("0", &good), ("1", "")]);
    assert_eq!(fixture.describe_servers(), ["a old/4 x @r 0:1"], "moved while evenkeel was stopped");
    let applied: Vec<_> = fixture
        .objects
        .servers
        .applied_objects(&path("0"))
        .map(|(meta, line, text)| (meta.uid.clone(), line, text.is_some()))
        .collect();
    assert_eq!(applied, [(Arc::from("old"), 1, true)]);
}

#[test]
fn unrecognized_content_keeps_the_objects_of_its_file() {
    let good = servers_yaml(&[A, B]);
    for (text, is_fault) in [
        ("hello\n", false),
        ("- a\n", false),
        ("a: [\n", false),
        ("apiVersion: other.example/v1\nkind: McpServer\n", false),
        ("kind: McpServer\nmetadata: { name: a }\n", true),
        ("apiVersion: evenkeel.dv/v1alpha1\nkind: McpServer\n", true),
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServer\nmetadata: { name: a }\n", true),
        ("apiVersion: evenkeel.dev/v1alpha1\nkind: McpServers\nmetadata: { name: a }\n", true),
        ("apiVersion: evenkeel.dev/v1alpha1\nmetadata: { name: a }\n", true),
        ("apiVersion: v1\nkind: List\n", true),
    ] {
        let mut fixture = MergeFixture::new();
        fixture.record_and_apply("r0", &[("other", text)]);
        assert_eq!(
            fixture.describe_faults().len(),
            usize::from(is_fault),
            "the file declared nothing before: {text}"
        );
        fixture.record_and_apply("r0", &[("1", &good)]);
        fixture.record_and_apply("r1", &[("1", text)]);
        assert_eq!(
            fixture.describe_servers(),
            ["a u1/1 x @r0 1:1 ParseError", "b u2/1 x @r0 1:6 ParseError"],
            "{text}"
        );
        assert!(
            fixture.describe_faults().iter().any(|fault| fault.starts_with("1:")),
            "{text}: {:?}",
            fixture.describe_faults()
        );
        fixture.record_and_apply("r2", &[("1", &servers_yaml(&[A]))]);
        assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 1:1"], "{text}");
    }
    // Documents of other groups do not concern evenkeel: the objects of the file are removed.
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &good)]);
    fixture.record_and_apply("r1", &[("1", "apiVersion: v1\nkind: ConfigMap\n")]);
    assert_eq!(fixture.describe_servers(), [""; 0]);
}

#[test]
fn list_replaces_single_files() {
    let item = |(name, command): (&str, &str)| {
        format!(
            "- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n  metadata: {{ name: {name} }}\n  \
             spec: {{ stdio: {{ {command} }} }}\n"
        )
    };
    let list = |items: &[(&str, &str)]| {
        format!("apiVersion: v1\nkind: List\nitems:\n{}", items.iter().copied().map(item).collect::<String>())
    };
    let mut fixture = MergeFixture::new();
    fixture.record_and_apply("r0", &[("1", &servers_yaml(&[A])), ("2", &servers_yaml(&[B]))]);
    fixture.record_and_apply("r1", &[("3", &list(&[A, B, A_BAD]))]);
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 1:1", "b u2/1 x @r0 2:1"]);
    fixture.record_and_apply("r2", &[("1", ""), ("2", "")]);
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 3:4", "b u2/1 x @r0 3:8"]);
    assert_eq!(fixture.describe_faults(), ["3:12 DuplicateName", "3:15 InvalidSpec"]);
    fixture.record_and_apply("r3", &[("3", &list(&[A_BAD, B]))]);
    assert_eq!(fixture.describe_servers(), ["a u1/1 x @r0 3:4 InvalidSpec", "b u2/1 x @r0 3:8"]);
    fixture.record_and_apply("r4", &[("3", &list(&[B]))]);
    assert_eq!(fixture.describe_servers(), ["b u2/1 x @r0 3:4"]);
}
