use std::cell::Cell;
use std::path::Path;

use super::*;
use crate::resource::{DigestKey, Endpoint};
use crate::source::parse::parse;
use crate::source::resolve::{ReferenceValues, SecretLookup};
use crate::source::{Environment, StdioPolicy};

/// A book, what it is given beside the files, and the files by name.
struct MergeFixture {
    objects: AcceptedObjects,
    secret: Cell<&'static str>,
    uid_count: Cell<u32>,
}

/// One server per `(name, command)`; a name of `!` is a document that does not parse.
fn servers_yaml(servers: &[(&str, &str)]) -> String {
    let document = |(name, command): &(&str, &str)| {
        if *name == "!" {
            return "apiVersion: [\n---\n".to_owned();
        }
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: McpServer\nmetadata: {{ name: {name} }}\nspec: {{ stdio: {{ {command} }} }}\n---\n"
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
        let sources = ReferenceValues {
            secret_location: &|_| "/run/secrets".into(),
            environment: &Environment::default(),
            policy: &StdioPolicy::allow_all(),
            lookup_secret: &|_| match self.secret.get() {
                "" => SecretLookup::Missing,
                value => SecretLookup::Found(value.into()),
            },
            digest_key: &DigestKey::new(b"k"),
        };
        sources.resolve(spec, Some(&Path::new("/srv").join(file.parent().unwrap())), Vec::new())
    }

    /// Notes files, in this order, and settles; gives the files whose record is stale.
    fn record_and_apply(&mut self, revision: &str, files: &[(&str, &str)]) -> Vec<String> {
        for (name, text) in files {
            self.objects.record_file(&path(name), parse(&path(name), text.as_bytes()));
        }
        self.apply(revision)
    }

    fn apply(&mut self, revision: &str) -> Vec<String> {
        let mut book = std::mem::take(&mut self.objects);
        let stale = book.apply(&MergeContext {
            now: Timestamp::UNIX_EPOCH,
            revision: &revision.into(),
            last_commit: &|_| None,
            new_uid: &|| {
                self.uid_count.set(self.uid_count.get() + 1);
                format!("u{}", self.uid_count.get()).into()
            },
            resolve: &|spec, file| self.resolve(spec, file),
        });
        self.objects = book;
        stale.iter().map(|path| path.display().to_string()).collect()
    }

    fn server(&self, name: &str) -> Option<Arc<DeclaredObject<McpServerSpec>>> {
        self.objects.servers.objects.get(&ObjectKey::new("default", name)).cloned()
    }

    /// `name uid/generation command @revision file:line`, with what is refused.
    fn describe_servers(&self) -> Vec<String> {
        let told = |server: &Arc<DeclaredObject<McpServerSpec>>| {
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
        self.objects.servers.objects.values().map(told).collect()
    }

    fn describe_faults(&self) -> Vec<String> {
        let told =
            |fault: &SourceProblem| format!("{} {:?}", fault.origin.as_ref().unwrap(), fault.problem.reason);
        self.objects.faults().iter().map(told).collect()
    }
}

const A: (&str, &str) = ("a", "command: x");
const A2: (&str, &str) = ("a", "command: w");
const A_BAD: (&str, &str) = ("a", "comand: w");
const B: (&str, &str) = ("b", "command: x");
const BROKEN: (&str, &str) = ("!", "");

/// Steps: at each the files that changed (their documents; none means gone), and what is declared after it.
type Step<'a> = (&'a [(&'a str, &'a [(&'a str, &'a str)])], &'a [&'a str], &'a [&'a str]);

#[test]
fn objects_follow_their_files_step_by_step() {
    let table: &[(&str, &[Step<'_>])] = &[
        (
            "appears, changes, goes, and comes again as another",
            &[
                (&[("1", &[A])], &["a u1/1 x @r0 1:1"], &[]),
                (&[("1", &[A2])], &["a u1/2 w @r1 1:1"], &[]),
                (&[("1", &[B, A2])], &["a u1/2 w @r1 1:6", "b u2/1 x @r2 1:1"], &[]),
                (&[("1", &[])], &[], &[]),
                (&[("1", &[A])], &["a u3/1 x @r4 1:1"], &[]),
            ],
        ),
        (
            "an invalid spec keeps the last good one, and its return is no change",
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
            "a new object that is invalid is there, and has no spec until it is mended",
            &[
                (&[("1", &[A_BAD])], &["a u1/1 - @r0 1:1 InvalidSpec"], &["1:4 InvalidSpec"]),
                (&[("1", &[A])], &["a u1/2 x @r1 1:1"], &[]),
            ],
        ),
        (
            "a document that does not parse freezes what it may have held, and nothing else",
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
            "at a fresh start the first path has the name; later the incumbent keeps it; the next takes over",
            &[
                (&[("2", &[A2]), ("1", &[A])], &["a u1/1 x @r0 1:1"], &["2:1 DuplicateName"]),
                (&[("0", &[A2])], &["a u1/1 x @r0 1:1"], &["0:1 DuplicateName", "2:1 DuplicateName"]),
                (&[("1", &[])], &["a u1/2 w @r2 0:1"], &["2:1 DuplicateName"]),
                (&[("2", &[BROKEN])], &["a u1/2 w @r2 0:1"], &["2:1 ParseError"]),
                (&[("0", &[]), ("2", &[])], &[], &[]),
            ],
        ),
        (
            "one name twice in one file",
            &[
                (&[("1", &[A, A2])], &["a u1/1 x @r0 1:1"], &["1:6 DuplicateName"]),
                (&[("1", &[A2])], &["a u1/2 w @r1 1:1"], &[]),
            ],
        ),
    ];
    for (name, steps) in table {
        let mut desk = MergeFixture::new();
        for (number, (files, declared, faults)) in steps.iter().enumerate() {
            let texts: Vec<_> = files.iter().map(|(name, servers)| (*name, servers_yaml(servers))).collect();
            let files: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
            desk.record_and_apply(&format!("r{number}"), &files);
            assert_eq!(desk.describe_servers(), *declared, "{name}, step {number}");
            assert_eq!(desk.describe_faults(), *faults, "{name}, step {number}");
        }
    }
}

#[test]
fn unchanged_object_keeps_its_arc() {
    let mut desk = MergeFixture::new();
    desk.record_and_apply(
        "r0",
        &[("1", &servers_yaml(&[A, B])), ("2", &servers_yaml(&[("c", "command: x")]))],
    );
    let before: Vec<_> = ["a", "b", "c"].map(|name| desk.server(name).unwrap()).into();
    let stale = desk.record_and_apply("r1", &[("1", &servers_yaml(&[A, ("b", "command: z")]))]);
    let same = |index: usize, name: &str| Arc::ptr_eq(&before[index], &desk.server(name).unwrap());
    assert!(same(0, "a") && !same(1, "b") && same(2, "c"));
    assert_eq!(stale, ["1"]);
    assert_eq!(before[0].spec_digest, desk.server("a").unwrap().spec_digest);
    assert_ne!(before[1].spec_digest, desk.server("b").unwrap().spec_digest);
}

#[test]
fn literal_value_changes_the_generation_but_not_the_spec_digest() {
    let server = |value: &str| {
        servers_yaml(&[("a", &format!("command: x, env: [{{ name: T, value: \"{value}\" }}]"))])
    };
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &server("hunter2"))]);
    let before = desk.server("a").unwrap();
    desk.record_and_apply("r1", &[("1", &server("hunter3"))]);
    let after = desk.server("a").unwrap();
    assert_eq!(after.meta.generation, 2);
    assert_eq!(before.spec_digest, after.spec_digest);
    let digest =
        |server: &DeclaredObject<McpServerSpec>| server.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
    assert_ne!(digest(&before), digest(&after));
    assert!(!format!("{before:?}").contains("hunter2"));
}

#[test]
fn unreadable_file_keeps_its_objects() {
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &servers_yaml(&[A]))]);
    desk.objects
        .record_file(&path("1"), ParsedFile::unreadable(&path("1"), "cannot be read: permission denied"));
    desk.apply("r1");
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 1:1 ParseError"]);
    let refused = desk.server("a").unwrap().rejected.clone().unwrap();
    assert_eq!(
        refused.message,
        "1:1: the file cannot be read: permission denied; the last good declaration stays in force"
    );
    assert_eq!(desk.describe_faults(), ["1:1 ParseError"]);
    desk.record_and_apply("r2", &[("1", &servers_yaml(&[A]))]);
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 1:1"]);
}

#[test]
fn new_objects_can_be_recorded_alone() {
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &servers_yaml(&[A]))]);
    let text = servers_yaml(&[A2, B, ("c", "comand: x")]);
    desk.objects.record_new_objects(&path("1"), &parse(&path("1"), text.as_bytes()));
    desk.apply("r1");
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 1:1", "b u2/1 x @r1 1:6"]);
    let before = desk.server("b").unwrap();
    desk.record_and_apply("r2", &[("1", &text)]);
    assert_eq!(
        desk.describe_servers(),
        ["a u1/2 w @r2 1:1", "b u2/1 x @r1 1:6", "c u3/1 - @r2 1:11 InvalidSpec"]
    );
    assert!(Arc::ptr_eq(&before, &desk.server("b").unwrap()));
}

#[test]
fn rotated_secret_changes_only_servers_that_use_it() {
    let reference = "command: x, env: [{ name: T, valueFrom: { secretKeyRef: { name: s, key: k } } }]";
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &servers_yaml(&[A, ("b", reference)]))]);
    assert_eq!(desk.objects.secret_references().into_iter().collect::<Vec<_>>(), [("s".into(), "k".into())]);
    let before = (desk.server("a").unwrap(), desk.server("b").unwrap());
    let again = |desk: &mut MergeFixture| {
        let mut book = std::mem::take(&mut desk.objects);
        book.resolve_references(&|spec, file| desk.resolve(spec, file));
        desk.objects = book;
    };

    again(&mut desk);
    assert!(Arc::ptr_eq(&before.1, &desk.server("b").unwrap()), "nothing differs");
    desk.secret.set("two");
    again(&mut desk);
    assert!(Arc::ptr_eq(&before.0, &desk.server("a").unwrap()));
    let after = desk.server("b").unwrap();
    let digest =
        |server: &DeclaredObject<McpServerSpec>| server.endpoint.as_ref().unwrap().as_ref().unwrap().digest();
    assert_ne!(digest(&before.1), digest(&after));
    assert_eq!(after.meta.generation, 1, "the declaration is the same");
    desk.secret.set("");
    again(&mut desk);
    let problem = desk.server("b").unwrap().endpoint.clone().unwrap().unwrap_err();
    assert_eq!(problem.reason, Reason::SecretNotFound);
}

#[test]
fn restart_continues_from_the_restored_objects() {
    let remembered = |text: Option<&str>| RestoredObject {
        key: ObjectKey::new("default", "a"),
        line: 7,
        uid: "old".into(),
        generation: 4,
        created: Timestamp::UNIX_EPOCH,
        revision: "r".into(),
        change: None,
        last_good: text.map(|text| parse(&path("1"), text.as_bytes()).servers.remove(0)),
    };
    let restored = |text: Option<&str>| {
        let mut desk = MergeFixture::new();
        let mut book = AcceptedObjects::default();
        book.servers.restore(&path("1"), remembered(text), &|spec, file| desk.resolve(spec, file));
        desk.objects = book;
        desk
    };
    let good = servers_yaml(&[A]);
    for (text, newest, expected) in [
        (Some(good.as_str()), servers_yaml(&[A]), "a old/4 x @r 1:1"),
        (Some(good.as_str()), servers_yaml(&[A2]), "a old/5 w @now 1:1"),
        (Some(good.as_str()), servers_yaml(&[BROKEN]), "a old/4 x @r 1:7 ParseError"),
        (Some(good.as_str()), servers_yaml(&[A_BAD]), "a old/4 x @r 1:1 InvalidSpec"),
        (None, servers_yaml(&[A_BAD]), "a old/4 - @r 1:1 InvalidSpec"),
        (None, servers_yaml(&[A]), "a old/5 x @now 1:1"),
    ] {
        let mut desk = restored(text);
        desk.record_and_apply("now", &[("1", &newest)]);
        assert_eq!(desk.describe_servers(), [expected]);
    }
    let mut desk = restored(Some(&good));
    desk.record_and_apply("now", &[("0", &good), ("1", "")]);
    assert_eq!(desk.describe_servers(), ["a old/4 x @r 0:1"], "moved while nobody looked");
    let kept: Vec<_> = desk
        .objects
        .servers
        .applied_objects(&path("0"))
        .map(|(meta, line, text)| (meta.uid.clone(), line, text.is_some()))
        .collect();
    assert_eq!(kept, [(Arc::from("old"), 1, true)]);
}

#[test]
fn unrecognized_content_keeps_the_objects_of_its_file() {
    let good = servers_yaml(&[A, B]);
    for (text, known) in [
        ("hello\n", false),
        ("- a\n", false),
        ("kind: McpServer\nmetadata: { name: a }\n", false),
        ("apiVersion: evenkeel.dv/v1alpha1\nkind: McpServer\n", false),
        ("apiVersion: evenkeel.dev/v1beta1\nkind: McpServer\nmetadata: { name: a }\n", true),
        ("apiVersion: evenkeel.dev/v1alpha1\nkind: McpServers\nmetadata: { name: a }\n", true),
        ("apiVersion: evenkeel.dev/v1alpha1\nmetadata: { name: a }\n", true),
        ("apiVersion: v1\nkind: List\n", true),
    ] {
        let mut desk = MergeFixture::new();
        desk.record_and_apply("r0", &[("other", text)]);
        assert_eq!(desk.describe_faults().len(), usize::from(known), "nothing was declared there: {text}");
        desk.record_and_apply("r0", &[("1", &good)]);
        desk.record_and_apply("r1", &[("1", text)]);
        assert_eq!(
            desk.describe_servers(),
            ["a u1/1 x @r0 1:1 ParseError", "b u2/1 x @r0 1:6 ParseError"],
            "{text}"
        );
        assert!(
            desk.describe_faults().iter().any(|fault| fault.starts_with("1:")),
            "{text}: {:?}",
            desk.describe_faults()
        );
        desk.record_and_apply("r2", &[("1", &servers_yaml(&[A]))]);
        assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 1:1"], "{text}");
    }
    // Documents of other groups are none of ours: what stood there is gone.
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &good)]);
    desk.record_and_apply("r1", &[("1", "apiVersion: v1\nkind: ConfigMap\n")]);
    assert_eq!(desk.describe_servers(), [""; 0]);
}

#[test]
fn list_replaces_single_files() {
    let item = |(name, command): (&str, &str)| {
        format!(
            "- apiVersion: evenkeel.dev/v1alpha1\n  kind: McpServer\n  metadata: {{ name: {name} }}\n  spec: {{ stdio: {{ {command} }} }}\n"
        )
    };
    let list = |items: &[(&str, &str)]| {
        format!("apiVersion: v1\nkind: List\nitems:\n{}", items.iter().copied().map(item).collect::<String>())
    };
    let mut desk = MergeFixture::new();
    desk.record_and_apply("r0", &[("1", &servers_yaml(&[A])), ("2", &servers_yaml(&[B]))]);
    desk.record_and_apply("r1", &[("3", &list(&[A, B, A_BAD]))]);
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 1:1", "b u2/1 x @r0 2:1"]);
    desk.record_and_apply("r2", &[("1", ""), ("2", "")]);
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 3:4", "b u2/1 x @r0 3:8"]);
    assert_eq!(desk.describe_faults(), ["3:12 DuplicateName", "3:15 InvalidSpec"]);
    desk.record_and_apply("r3", &[("3", &list(&[A_BAD, B]))]);
    assert_eq!(desk.describe_servers(), ["a u1/1 x @r0 3:4 InvalidSpec", "b u2/1 x @r0 3:8"]);
    desk.record_and_apply("r4", &[("3", &list(&[B]))]);
    assert_eq!(desk.describe_servers(), ["b u2/1 x @r0 3:4"]);
}
