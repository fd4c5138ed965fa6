use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::*;
use crate::resource::{DeclaredObject, Transport};
use crate::source::DEFAULT_ALLOWED_VARIABLES;

/// A book of one namespace, with what it told last.
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
    Problem::new(reason, "away")
}

impl StoreFixture {
    fn new() -> Self {
        let policy =
            StdioPolicy::allow_only(&["allowed".into()], &DEFAULT_ALLOWED_VARIABLES.map(String::from))
                .unwrap();
        let mut book = ObjectStore::new(policy, DigestKey::new(b"k"));
        book.add_watch(servers_watch());
        Self { store: book, desired: Arc::default() }
    }

    /// Takes up news and gives every server on a line: name, generation, header or problem.
    fn apply(&mut self, news: impl IntoIterator<Item = WatchMessage>) -> Vec<String> {
        for news in news {
            self.store.handle(news);
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
    let mut desk = StoreFixture::new();
    assert_eq!(desk.apply([server_message("a", "u", 1, 1, http_spec("http://a"))]), ["a u 1 http://a/"]);
    assert!(!desk.desired.source.synced);
    desk.apply([WatchMessage::Listed(servers_watch())]);
    assert!(desk.desired.source.synced);
    // Whatever happens to the watch, the set stays and the trouble is told, once for all watches.
    desk.apply([WatchMessage::Failed(servers_watch(), problem(Reason::SourceUnavailable))]);
    let source = &desk.desired.source;
    assert!(source.synced);
    assert_eq!((source.problems.len(), desk.desired.servers.len()), (1, 1));
    desk.apply([WatchMessage::Listed(servers_watch())]);
    assert!(desk.desired.source.problems.is_empty());
}

#[test]
fn forbidden_namespace_does_not_block_others() {
    for (reason, synced) in [(Reason::NotPermitted, true), (Reason::SourceUnavailable, false)] {
        let mut desk = StoreFixture::new();
        let other = WatchId::Servers(Some("other".into()));
        desk.store.add_watch(other.clone());
        desk.apply([
            WatchMessage::Listed(servers_watch()),
            WatchMessage::Failed(other.clone(), problem(reason)),
        ]);
        assert_eq!(desk.desired.source.synced, synced, "{reason}");
        let mut alone = StoreFixture::new();
        alone.apply([WatchMessage::Failed(servers_watch(), problem(reason))]);
        assert!(!alone.desired.source.synced, "nothing was listed at all");
    }
}

#[test]
fn unchanged_object_keeps_its_arc() {
    let mut desk = StoreFixture::new();
    desk.apply([
        server_message("a", "u", 1, 1, http_spec("http://a")),
        WatchMessage::Listed(servers_watch()),
    ]);
    let first = desk.server("a");
    // A relist, and a write of the status: another version, the same object.
    desk.apply([
        server_message("a", "u", 1, 9, http_spec("http://a")),
        WatchMessage::Listed(servers_watch()),
    ]);
    assert!(Arc::ptr_eq(&first, &desk.server("a")));
    assert_eq!(&*first.meta.revision, "1");
    // An older read than what is known.
    desk.apply([server_message("a", "u", 2, 10, http_spec("http://b"))]);
    assert_eq!(desk.apply([server_message("a", "u", 1, 9, http_spec("http://a"))]), ["a u 2 http://b/"]);
    // Another object of the name begins with nothing.
    assert_eq!(desk.apply([server_message("a", "v", 1, 11, http_spec("http://a"))]), ["a v 1 http://a/"]);
    assert_eq!(desk.apply([WatchMessage::ServerDeleted(ObjectKey::new("n", "a"))]), [""; 0]);
}

#[test]
fn terminating_object_is_no_longer_declared() {
    let leaving = |version: u64| {
        let WatchMessage::Server(mut object) = server_message("a", "u", 2, version, spec_with_secret("s"))
        else {
            panic!()
        };
        let metadata = json!({ "deletionTimestamp": "2026-01-02T00:00:00Z" });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        object.metadata.deletion_timestamp = metadata.deletion_timestamp;
        WatchMessage::Server(object)
    };
    let mut desk = StoreFixture::new();
    desk.apply([
        server_message("a", "u", 1, 1, spec_with_secret("s")),
        secret_message("s", "one"),
        WatchMessage::Listed(servers_watch()),
    ]);
    assert_eq!(desk.apply([leaving(5)]), [""; 0]);
    assert!(desk.secrets().is_empty());
    let (_, shown) = desk.store.publish();
    assert!(shown.is_none(), "it was told with the last");
    // A list that is older does not bring it back, nor does an edit; another object of the name is another.
    assert_eq!(desk.apply([server_message("a", "u", 1, 1, http_spec("http://a")), leaving(6)]), [""; 0]);
    assert_eq!(desk.apply([server_message("a", "v", 1, 7, http_spec("http://a"))]), ["a v 1 http://a/"]);
}

#[test]
fn empty_namespaces_are_named_once_listed() {
    let mut desk = StoreFixture::new();
    let nothing_in = |desk: &StoreFixture| desk.desired.source.empty_scope.clone();
    desk.store.add_watch(WatchId::Skills(Some("n".into())));
    for other in [WatchId::Servers(Some("m".into())), WatchId::Skills(Some("m".into()))] {
        desk.store.add_watch(other.clone());
        desk.apply([WatchMessage::Listed(other)]);
    }
    desk.apply([WatchMessage::Listed(servers_watch())]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespace m"), "of n, skills may be yet to come");
    desk.apply([WatchMessage::Listed(WatchId::Skills(Some("n".into())))]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespaces m, n"));
    desk.apply([server_message("a", "u", 1, 1, http_spec("http://a"))]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespace m"));
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
    let mut desk = StoreFixture::new();
    let broken = json!({ "http": { "url": "http://b", "later": 1 } });
    assert_eq!(desk.apply([server_message("a", "u", 1, 1, broken.clone())]), ["a u 1 nothing InvalidSpec"]);
    assert_eq!(desk.apply([server_message("a", "u", 2, 2, http_spec("http://a"))]), ["a u 2 http://a/"]);
    assert_eq!(desk.apply([server_message("a", "u", 3, 3, broken.clone())]), ["a u 3 http://a/ InvalidSpec"]);
    assert!(desk.server("a").rejected.as_ref().unwrap().message.contains("last good"));
    assert_eq!(desk.apply([server_message("a", "v", 1, 4, broken)]), ["a v 1 nothing InvalidSpec"]);
    let stdio = |command: &str| json!({ "stdio": { "command": command } });
    assert_eq!(desk.apply([server_message("a", "v", 2, 5, stdio("allowed"))]), ["a v 2 allowed"]);
    assert_eq!(desk.apply([server_message("a", "v", 3, 6, stdio("sh"))]), ["a v 3 PolicyDenied"]);
    assert_eq!(desk.server("a").rejection().unwrap().reason, Reason::PolicyDenied);
}

#[test]
fn server_waits_for_its_secrets_and_follows_their_changes() {
    let mut desk = StoreFixture::new();
    assert_eq!(
        desk.apply([
            server_message("a", "u", 1, 1, spec_with_secret("s")),
            server_message("b", "u", 1, 1, http_spec("http://b")),
            WatchMessage::Listed(servers_watch())
        ]),
        ["b u 1 http://b/"]
    );
    assert_eq!(desk.secrets(), ["n/s"]);
    assert!(!desk.desired.source.synced);
    let s = || WatchId::Secret(ObjectKey::new("n", "s"));
    assert_eq!(desk.apply([WatchMessage::Listed(s())]), ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert!(desk.desired.source.synced);
    let b = desk.server("b");
    let lines = desk.apply([secret_message("s", "one")]);
    assert_eq!(lines, ["a u 1 http://a/ one", "b u 1 http://b/"]);
    let a = desk.server("a");
    // The same value again, and trouble with its watch: nothing.
    assert_eq!(
        desk.apply([secret_message("s", "one"), WatchMessage::Failed(s(), problem(Reason::NotPermitted))]),
        lines
    );
    assert!(Arc::ptr_eq(&a, &desk.server("a")));
    assert_eq!(desk.desired.source.problems.len(), 1);
    assert_eq!(
        desk.apply([WatchMessage::Listed(s()), secret_message("s", "two")]),
        ["a u 1 http://a/ two", "b u 1 http://b/"]
    );
    assert_eq!(
        desk.apply([WatchMessage::Secret(ObjectKey::new("n", "s"), ReferenceLookup::Missing)]),
        ["a u 1 SecretNotFound", "b u 1 http://b/"]
    );
    assert!(Arc::ptr_eq(&b, &desk.server("b")));
    // Another reference: the old form stays until the new one was looked at.
    let other = desk.apply([server_message("a", "u", 2, 2, spec_with_secret("t"))]);
    assert_eq!(other, ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert_eq!(desk.secrets(), ["n/t"]);
    assert_eq!(desk.apply([secret_message("t", "three")]), ["a u 2 http://a/ three", "b u 1 http://b/"]);
    desk.apply([WatchMessage::ServerDeleted(ObjectKey::new("n", "a"))]);
    assert_eq!(desk.secrets(), [""; 0]);
}

#[test]
fn unreadable_secret_is_reported_on_the_server() {
    for (met, told) in [(Reason::NotPermitted, "NotPermitted"), (Reason::SourceUnavailable, "SecretNotFound")]
    {
        let mut desk = StoreFixture::new();
        let s = WatchId::Secret(ObjectKey::new("n", "s"));
        let lines = desk.apply([
            server_message("a", "u", 1, 1, spec_with_secret("s")),
            WatchMessage::Failed(s, problem(met)),
        ]);
        assert_eq!(lines, [format!("a u 1 {told}")]);
        assert_eq!(desk.desired.source.problems.len(), 1);
    }
}

#[test]
fn name_that_alters_the_selector_is_never_watched() {
    let skill = |name: &str, generation: i64, map: &str| {
        let object = json!({
            "metadata": { "name": name, "namespace": "n", "uid": name, "generation": generation, "resourceVersion": "1" },
            "spec": { "configMapRef": { "name": map } },
        });
        WatchMessage::Skill(Box::new(serde_json::from_value(object).unwrap()))
    };
    let maps = |desk: &StoreFixture| desk.store.config_maps().map(ToString::to_string).collect::<Vec<_>>();
    let mut desk = StoreFixture::new();
    desk.apply([skill("new", 1, "a,b"), skill("good", 1, "notes")]);
    assert_eq!(maps(&desk), ["n/notes"]);
    desk.apply([
        skill("good", 2, "notes,metadata.name=notes"),
        server_message("s", "s", 1, 1, spec_with_secret("a,b")),
    ]);
    assert_eq!(maps(&desk), ["n/notes"], "what was good stays");
    assert!(desk.secrets().is_empty());
    let refused = |name: &str| {
        let skill = &desk.desired.skills[&ObjectKey::new("n", name)];
        skill.rejected.as_ref().map(|problem| problem.message.clone()).unwrap_or_default()
    };
    for name in ["new", "good"] {
        assert!(refused(name).starts_with("spec.configMapRef.name: "), "{}", refused(name));
    }
}
