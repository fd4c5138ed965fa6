use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::*;
use crate::resource::{DeclaredObject, Transport};
use crate::source::DEFAULT_ALLOWED_VARIABLES;

/// A store with a watch of one namespace, and the last published [`Desired`].
struct StoreFixture {
    store: ObjectStore,
    desired: Arc<Desired>,
}

#[expect(clippy::needless_pass_by_value, reason = "tables read better")]
fn server_message(name: &str, uid: &str, generation: i64, version: u64, spec: Value) -> WatchMessage {
    let object = json!({
        "metadata": {
            "name": name, "namespace": "n", "uid": uid, "generation": generation,
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    });
    WatchMessage::Server(Box::new(serde_json::from_value(object).unwrap()))
}

fn http_spec(url: &str) -> Value {
    json!({ "http": { "url": url } })
}

fn spec_with_secret(secret: &str) -> Value {
    let from = json!({ "secretKeyRef": { "name": secret, "key": "k" } });
    json!({ "http": { "url": "http://a", "headers": [{ "name": "x", "valueFrom": from }] } })
}

fn secret_message(name: &str, value: &str) -> WatchMessage {
    let value = Some(SecretString::from(value));
    WatchMessage::Secret(
        ObjectKey::new("n", name),
        ReferenceLookup::Found(BTreeMap::from([("k".to_owned(), value)])),
    )
}

fn servers_watch() -> WatchId {
    WatchId::Servers(Some("n".into()))
}

fn problem(reason: Reason) -> Problem {
    Problem::new(reason, "unreachable")
}

impl StoreFixture {
    fn new() -> Self {
        let policy =
            StdioPolicy::allow_only(&["allowed".into()], &DEFAULT_ALLOWED_VARIABLES.map(String::from))
                .unwrap();
        let mut store = ObjectStore::new(policy, DigestKey::new(b"k"));
        store.add_watch(servers_watch());
        Self { store, desired: Arc::default() }
    }

    /// Handles messages and returns each server on a line: name, uid, generation, endpoint or problem.
    fn apply(&mut self, messages: impl IntoIterator<Item = WatchMessage>) -> Vec<String> {
        for message in messages {
            self.store.handle(message);
        }
        if let (Some(desired), _) = self.store.publish() {
            self.desired = desired;
        }
        self.desired.servers.values().map(|declared| describe_server(declared)).collect()
    }

    fn server(&self, name: &str) -> Arc<DeclaredObject<McpServerSpec>> {
        self.desired.servers[&ObjectKey::new("n", name)].clone()
    }

    fn secrets(&self) -> Vec<String> {
        self.store.secrets().map(ToString::to_string).collect()
    }
}

fn describe_server(declared: &DeclaredObject<McpServerSpec>) -> String {
    let DeclaredObject { meta, endpoint, .. } = declared;
    let endpoint = match endpoint {
        None => "nothing".to_owned(),
        Some(Err(problem)) => problem.reason.to_string(),
        Some(Ok(endpoint)) => match &endpoint.transport {
            Transport::Stdio(stdio) => stdio.command.clone(),
            Transport::Http(http) => {
                let headers = http.headers.iter().map(|(_, value)| value.expose_secret());
                std::iter::once(http.url.as_str()).chain(headers).collect::<Vec<_>>().join(" ")
            }
        },
    };
    let refused = declared.rejected.as_ref().map_or(String::new(), |problem| format!(" {}", problem.reason));
    format!("{} {} {} {endpoint}{refused}", meta.key.name, meta.uid, meta.generation)
}

#[test]
fn desired_is_synced_once_everything_is_listed() {
    let mut fixture = StoreFixture::new();
    assert_eq!(fixture.apply([server_message("a", "u", 1, 1, http_spec("http://a"))]), ["a u 1 http://a/"]);
    assert!(!fixture.desired.source.synced);
    fixture.apply([WatchMessage::Listed(servers_watch())]);
    assert!(fixture.desired.source.synced);
    // Whatever happens to a watch, the objects are kept and the problem is reported once for all watches.
    fixture.apply([WatchMessage::Failed(servers_watch(), problem(Reason::SourceUnavailable))]);
    let source = &fixture.desired.source;
    assert!(source.synced);
    assert_eq!((source.problems.len(), fixture.desired.servers.len()), (1, 1));
    fixture.apply([WatchMessage::Listed(servers_watch())]);
    assert!(fixture.desired.source.problems.is_empty());
}

#[test]
fn forbidden_namespace_does_not_block_others() {
    for (reason, synced) in [(Reason::NotPermitted, true), (Reason::SourceUnavailable, false)] {
        let mut fixture = StoreFixture::new();
        let other = WatchId::Servers(Some("other".into()));
        fixture.store.add_watch(other.clone());
        fixture.apply([
            WatchMessage::Listed(servers_watch()),
            WatchMessage::Failed(other.clone(), problem(reason)),
        ]);
        assert_eq!(fixture.desired.source.synced, synced, "{reason}");
        let mut alone = StoreFixture::new();
        alone.apply([WatchMessage::Failed(servers_watch(), problem(reason))]);
        assert!(!alone.desired.source.synced, "no watch has listed");
    }
}

#[test]
fn unchanged_object_keeps_its_arc() {
    let mut fixture = StoreFixture::new();
    fixture.apply([
        server_message("a", "u", 1, 1, http_spec("http://a")),
        WatchMessage::Listed(servers_watch()),
    ]);
    let first = fixture.server("a");
    // A new list and a write of the status: another resourceVersion, the same object.
    fixture.apply([
        server_message("a", "u", 1, 9, http_spec("http://a")),
        WatchMessage::Listed(servers_watch()),
    ]);
    assert!(Arc::ptr_eq(&first, &fixture.server("a")));
    assert_eq!(&*first.meta.revision, "1");
    // A read that is older than the current state.
    fixture.apply([server_message("a", "u", 2, 10, http_spec("http://b"))]);
    assert_eq!(fixture.apply([server_message("a", "u", 1, 9, http_spec("http://a"))]), ["a u 2 http://b/"]);
    // Another object of the same name starts without a state.
    assert_eq!(fixture.apply([server_message("a", "v", 1, 11, http_spec("http://a"))]), ["a v 1 http://a/"]);
    assert_eq!(fixture.apply([WatchMessage::ServerDeleted(ObjectKey::new("n", "a"))]), [""; 0]);
}

#[test]
fn terminating_object_is_no_longer_declared() {
    let terminating = |version: u64| {
        let WatchMessage::Server(mut object) = server_message("a", "u", 2, version, spec_with_secret("s"))
        else {
            panic!()
        };
        let metadata = json!({ "deletionTimestamp": "2026-01-02T00:00:00Z" });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        object.metadata.deletion_timestamp = metadata.deletion_timestamp;
        WatchMessage::Server(object)
    };
    let mut fixture = StoreFixture::new();
    fixture.apply([
        server_message("a", "u", 1, 1, spec_with_secret("s")),
        secret_message("s", "one"),
        WatchMessage::Listed(servers_watch()),
    ]);
    assert_eq!(fixture.apply([terminating(5)]), [""; 0]);
    assert!(fixture.secrets().is_empty());
    let (_, statuses) = fixture.store.publish();
    assert!(statuses.is_none(), "it was already published");
    // Neither an older list nor an edit restores it; another object of the same name is a new one.
    assert_eq!(
        fixture.apply([server_message("a", "u", 1, 1, http_spec("http://a")), terminating(6)]),
        [""; 0]
    );
    assert_eq!(fixture.apply([server_message("a", "v", 1, 7, http_spec("http://a"))]), ["a v 1 http://a/"]);
}

#[test]
fn empty_namespaces_are_named_once_listed() {
    let mut fixture = StoreFixture::new();
    let nothing_in = |fixture: &StoreFixture| fixture.desired.source.empty_scope.clone();
    fixture.store.add_watch(WatchId::Skills(Some("n".into())));
    for other in [WatchId::Servers(Some("m".into())), WatchId::Skills(Some("m".into()))] {
        fixture.store.add_watch(other.clone());
        fixture.apply([WatchMessage::Listed(other)]);
    }
    fixture.apply([WatchMessage::Listed(servers_watch())]);
    assert_eq!(nothing_in(&fixture).as_deref(), Some("namespace m"), "skills of n were not listed yet");
    fixture.apply([WatchMessage::Listed(WatchId::Skills(Some("n".into())))]);
    assert_eq!(nothing_in(&fixture).as_deref(), Some("namespaces m, n"));
    fixture.apply([server_message("a", "u", 1, 1, http_spec("http://a"))]);
    assert_eq!(nothing_in(&fixture).as_deref(), Some("namespace m"));
    let mut all = StoreFixture {
        store: ObjectStore::new(StdioPolicy::allow_all(), DigestKey::new(b"k")),
        desired: Arc::default(),
    };
    for watch in [WatchId::Servers(None), WatchId::Skills(None)] {
        all.store.add_watch(watch.clone());
        all.apply([WatchMessage::Listed(watch)]);
    }
    assert_eq!(nothing_in(&all).as_deref(), Some("any namespace"));
}

#[test]
fn rejected_spec_keeps_the_last_good_declaration() {
    let mut fixture = StoreFixture::new();
    let broken = json!({ "http": { "url": "http://b", "later": 1 } });
    assert_eq!(
        fixture.apply([server_message("a", "u", 1, 1, broken.clone())]),
        ["a u 1 nothing InvalidSpec"]
    );
    assert_eq!(fixture.apply([server_message("a", "u", 2, 2, http_spec("http://a"))]), ["a u 2 http://a/"]);
    assert_eq!(
        fixture.apply([server_message("a", "u", 3, 3, broken.clone())]),
        ["a u 3 http://a/ InvalidSpec"]
    );
    assert!(fixture.server("a").rejected.as_ref().unwrap().message.contains("last good"));
    assert_eq!(fixture.apply([server_message("a", "v", 1, 4, broken)]), ["a v 1 nothing InvalidSpec"]);
    let stdio = |command: &str| json!({ "stdio": { "command": command } });
    assert_eq!(fixture.apply([server_message("a", "v", 2, 5, stdio("allowed"))]), ["a v 2 allowed"]);
    assert_eq!(fixture.apply([server_message("a", "v", 3, 6, stdio("sh"))]), ["a v 3 PolicyDenied"]);
    assert_eq!(fixture.server("a").rejection().unwrap().reason, Reason::PolicyDenied);
}

#[test]
fn server_waits_for_its_secrets_and_follows_their_changes() {
    let mut fixture = StoreFixture::new();
    assert_eq!(
        fixture.apply([
            server_message("a", "u", 1, 1, spec_with_secret("s")),
            server_message("b", "u", 1, 1, http_spec("http://b")),
            WatchMessage::Listed(servers_watch())
        ]),
        ["b u 1 http://b/"]
    );
    assert_eq!(fixture.secrets(), ["n/s"]);
    assert!(!fixture.desired.source.synced);
    let s = || WatchId::Secret(ObjectKey::new("n", "s"));
    assert_eq!(fixture.apply([WatchMessage::Listed(s())]), ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert!(fixture.desired.source.synced);
    let b = fixture.server("b");
    let lines = fixture.apply([secret_message("s", "one")]);
    assert_eq!(lines, ["a u 1 http://a/ one", "b u 1 http://b/"]);
    let a = fixture.server("a");
    // The same value again, and a failure of its watch, change nothing.
    assert_eq!(
        fixture.apply([secret_message("s", "one"), WatchMessage::Failed(s(), problem(Reason::NotPermitted))]),
        lines
    );
    assert!(Arc::ptr_eq(&a, &fixture.server("a")));
    assert_eq!(fixture.desired.source.problems.len(), 1);
    assert_eq!(
        fixture.apply([WatchMessage::Listed(s()), secret_message("s", "two")]),
        ["a u 1 http://a/ two", "b u 1 http://b/"]
    );
    assert_eq!(
        fixture.apply([WatchMessage::Secret(ObjectKey::new("n", "s"), ReferenceLookup::Missing)]),
        ["a u 1 SecretNotFound", "b u 1 http://b/"]
    );
    assert!(Arc::ptr_eq(&b, &fixture.server("b")));
    // A different reference: the old state is kept until the new Secret was read.
    let other = fixture.apply([server_message("a", "u", 2, 2, spec_with_secret("t"))]);
    assert_eq!(other, ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert_eq!(fixture.secrets(), ["n/t"]);
    assert_eq!(fixture.apply([secret_message("t", "three")]), ["a u 2 http://a/ three", "b u 1 http://b/"]);
    fixture.apply([WatchMessage::ServerDeleted(ObjectKey::new("n", "a"))]);
    assert_eq!(fixture.secrets(), [""; 0]);
}

#[test]
fn unreadable_secret_is_reported_on_the_server() {
    for (watch_reason, expected_reason) in
        [(Reason::NotPermitted, "NotPermitted"), (Reason::SourceUnavailable, "SecretNotFound")]
    {
        let mut fixture = StoreFixture::new();
        let s = WatchId::Secret(ObjectKey::new("n", "s"));
        let lines = fixture.apply([
            server_message("a", "u", 1, 1, spec_with_secret("s")),
            WatchMessage::Failed(s, problem(watch_reason)),
        ]);
        assert_eq!(lines, [format!("a u 1 {expected_reason}")]);
        assert_eq!(fixture.desired.source.problems.len(), 1);
    }
}

#[test]
fn name_that_alters_the_selector_is_never_watched() {
    let skill = |name: &str, generation: i64, map: &str| {
        let object = json!({
            "metadata": {
                "name": name, "namespace": "n", "uid": name, "generation": generation, "resourceVersion": "1",
            },
            "spec": { "configMapRef": { "name": map } },
        });
        WatchMessage::Skill(Box::new(serde_json::from_value(object).unwrap()))
    };
    let maps =
        |fixture: &StoreFixture| fixture.store.config_maps().map(ToString::to_string).collect::<Vec<_>>();
    let mut fixture = StoreFixture::new();
    fixture.apply([skill("new", 1, "a,b"), skill("good", 1, "notes")]);
    assert_eq!(maps(&fixture), ["n/notes"]);
    fixture.apply([
        skill("good", 2, "notes,metadata.name=notes"),
        server_message("s", "s", 1, 1, spec_with_secret("a,b")),
    ]);
    assert_eq!(maps(&fixture), ["n/notes"], "the last good reference is kept");
    assert!(fixture.secrets().is_empty());
    let refused = |name: &str| {
        let skill = &fixture.desired.skills[&ObjectKey::new("n", name)];
        skill.rejected.as_ref().map(|problem| problem.message.clone()).unwrap_or_default()
    };
    for name in ["new", "good"] {
        assert!(refused(name).starts_with("spec.configMapRef.name: "), "{}", refused(name));
    }
}
