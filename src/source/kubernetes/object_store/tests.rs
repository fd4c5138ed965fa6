use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::*;
use crate::resource::{DeclaredObject, Transport};
use crate::source::DEFAULT_VARIABLES;

/// A book of one namespace, with what it told last.
struct Desk {
    book: ObjectStore,
    desired: Arc<Desired>,
}

#[expect(clippy::needless_pass_by_value, reason = "tables read better")]
fn server(name: &str, uid: &str, generation: i64, version: u64, spec: Value) -> WatchMessage {
    let object = json!({
        "metadata": {
            "name": name, "namespace": "n", "uid": uid, "generation": generation,
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    });
    WatchMessage::Server(Box::new(serde_json::from_value(object).unwrap()))
}

fn at(url: &str) -> Value {
    json!({ "http": { "url": url } })
}

fn with_secret(secret: &str) -> Value {
    let from = json!({ "secretKeyRef": { "name": secret, "key": "k" } });
    json!({ "http": { "url": "http://a", "headers": [{ "name": "x", "valueFrom": from }] } })
}

fn secret(name: &str, value: &str) -> WatchMessage {
    let value = Some(SecretString::from(value));
    WatchMessage::Secret(
        ObjectKey::new("n", name),
        ReferenceLookup::Found(BTreeMap::from([("k".to_owned(), value)])),
    )
}

fn watch() -> WatchId {
    WatchId::Servers(Some("n".into()))
}

fn trouble(reason: Reason) -> Problem {
    Problem::new(reason, "away")
}

impl Desk {
    fn new() -> Self {
        let policy = StdioPolicy::only(&["allowed".into()], &DEFAULT_VARIABLES.map(String::from)).unwrap();
        let mut book = ObjectStore::new(policy, DigestKey::new(b"k"));
        book.expect(watch());
        Self { book, desired: Arc::default() }
    }

    /// Takes up news and gives every server on a line: name, generation, header or problem.
    fn take(&mut self, news: impl IntoIterator<Item = WatchMessage>) -> Vec<String> {
        for news in news {
            self.book.take(news);
        }
        if let (Some(desired), _) = self.book.settle() {
            self.desired = desired;
        }
        self.desired.servers.values().map(|declared| line(declared)).collect()
    }

    fn get(&self, name: &str) -> Arc<DeclaredObject<McpServerSpec>> {
        self.desired.servers[&ObjectKey::new("n", name)].clone()
    }

    fn secrets(&self) -> Vec<String> {
        self.book.secrets().map(ToString::to_string).collect()
    }
}

fn line(declared: &DeclaredObject<McpServerSpec>) -> String {
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
    let refused = declared.refused.as_ref().map_or(String::new(), |problem| format!(" {}", problem.reason));
    format!("{} {} {} {endpoint}{refused}", meta.key.name, meta.uid, meta.generation)
}

#[test]
fn a_set_is_complete_when_everything_was_listed() {
    let mut desk = Desk::new();
    assert_eq!(desk.take([server("a", "u", 1, 1, at("http://a"))]), ["a u 1 http://a/"]);
    assert!(!desk.desired.source.synced);
    desk.take([WatchMessage::Listed(watch())]);
    assert!(desk.desired.source.synced);
    // Whatever happens to the watch, the set stays and the trouble is told, once for all watches.
    desk.take([WatchMessage::Trouble(watch(), trouble(Reason::SourceUnavailable))]);
    let source = &desk.desired.source;
    assert!(source.synced);
    assert_eq!((source.faults.len(), desk.desired.servers.len()), (1, 1));
    desk.take([WatchMessage::Listed(watch())]);
    assert!(desk.desired.source.faults.is_empty());
}

#[test]
fn a_forbidden_namespace_holds_up_no_other() {
    for (reason, synced) in [(Reason::NotPermitted, true), (Reason::SourceUnavailable, false)] {
        let mut desk = Desk::new();
        let other = WatchId::Servers(Some("other".into()));
        desk.book.expect(other.clone());
        desk.take([WatchMessage::Listed(watch()), WatchMessage::Trouble(other.clone(), trouble(reason))]);
        assert_eq!(desk.desired.source.synced, synced, "{reason}");
        let mut alone = Desk::new();
        alone.take([WatchMessage::Trouble(watch(), trouble(reason))]);
        assert!(!alone.desired.source.synced, "nothing was listed at all");
    }
}

#[test]
fn what_did_not_change_is_the_same() {
    let mut desk = Desk::new();
    desk.take([server("a", "u", 1, 1, at("http://a")), WatchMessage::Listed(watch())]);
    let first = desk.get("a");
    // A relist, and a write of the status: another version, the same object.
    desk.take([server("a", "u", 1, 9, at("http://a")), WatchMessage::Listed(watch())]);
    assert!(Arc::ptr_eq(&first, &desk.get("a")));
    assert_eq!(&*first.meta.revision, "1");
    // An older read than what is known.
    desk.take([server("a", "u", 2, 10, at("http://b"))]);
    assert_eq!(desk.take([server("a", "u", 1, 9, at("http://a"))]), ["a u 2 http://b/"]);
    // Another object of the name begins with nothing.
    assert_eq!(desk.take([server("a", "v", 1, 11, at("http://a"))]), ["a v 1 http://a/"]);
    assert_eq!(desk.take([WatchMessage::ServerGone(ObjectKey::new("n", "a"))]), [""; 0]);
}

#[test]
fn what_is_being_deleted_is_declared_no_more() {
    let leaving = |version: u64| {
        let WatchMessage::Server(mut object) = server("a", "u", 2, version, with_secret("s")) else {
            panic!()
        };
        let metadata = json!({ "deletionTimestamp": "2026-01-02T00:00:00Z" });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        object.metadata.deletion_timestamp = metadata.deletion_timestamp;
        WatchMessage::Server(object)
    };
    let mut desk = Desk::new();
    desk.take([server("a", "u", 1, 1, with_secret("s")), secret("s", "one"), WatchMessage::Listed(watch())]);
    assert_eq!(desk.take([leaving(5)]), [""; 0]);
    assert!(desk.secrets().is_empty());
    let (_, shown) = desk.book.settle();
    assert!(shown.is_none(), "it was told with the last");
    // A list that is older does not bring it back, nor does an edit; another object of the name is another.
    assert_eq!(desk.take([server("a", "u", 1, 1, at("http://a")), leaving(6)]), [""; 0]);
    assert_eq!(desk.take([server("a", "v", 1, 7, at("http://a"))]), ["a v 1 http://a/"]);
}

#[test]
fn a_place_in_which_nothing_is_declared_is_named_once_it_was_looked_at() {
    let mut desk = Desk::new();
    let nothing_in = |desk: &Desk| desk.desired.source.nothing_in.clone();
    desk.book.expect(WatchId::Skills(Some("n".into())));
    for other in [WatchId::Servers(Some("m".into())), WatchId::Skills(Some("m".into()))] {
        desk.book.expect(other.clone());
        desk.take([WatchMessage::Listed(other)]);
    }
    desk.take([WatchMessage::Listed(watch())]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespace m"), "of n, skills may be yet to come");
    desk.take([WatchMessage::Listed(WatchId::Skills(Some("n".into())))]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespaces m, n"));
    desk.take([server("a", "u", 1, 1, at("http://a"))]);
    assert_eq!(nothing_in(&desk).as_deref(), Some("namespace m"));
    let mut all = Desk {
        book: ObjectStore::new(StdioPolicy::everything(), DigestKey::new(b"k")),
        desired: Arc::default(),
    };
    for watch in [WatchId::Servers(None), WatchId::Skills(None)] {
        all.book.expect(watch.clone());
        all.take([WatchMessage::Listed(watch)]);
    }
    assert_eq!(nothing_in(&all).as_deref(), Some("any namespace"));
}

#[test]
fn what_cannot_be_accepted_keeps_the_last_good_declaration_of_the_same_object() {
    let mut desk = Desk::new();
    let broken = json!({ "http": { "url": "http://b", "later": 1 } });
    assert_eq!(desk.take([server("a", "u", 1, 1, broken.clone())]), ["a u 1 nothing InvalidSpec"]);
    assert_eq!(desk.take([server("a", "u", 2, 2, at("http://a"))]), ["a u 2 http://a/"]);
    assert_eq!(desk.take([server("a", "u", 3, 3, broken.clone())]), ["a u 3 http://a/ InvalidSpec"]);
    assert!(desk.get("a").refused.as_ref().unwrap().message.contains("last good"));
    assert_eq!(desk.take([server("a", "v", 1, 4, broken)]), ["a v 1 nothing InvalidSpec"]);
    let stdio = |command: &str| json!({ "stdio": { "command": command } });
    assert_eq!(desk.take([server("a", "v", 2, 5, stdio("allowed"))]), ["a v 2 allowed"]);
    assert_eq!(desk.take([server("a", "v", 3, 6, stdio("sh"))]), ["a v 3 PolicyDenied"]);
    assert_eq!(desk.get("a").refusal().unwrap().reason, Reason::PolicyDenied);
}

#[test]
fn a_server_waits_for_the_first_look_at_its_secrets_and_follows_them() {
    let mut desk = Desk::new();
    assert_eq!(
        desk.take([
            server("a", "u", 1, 1, with_secret("s")),
            server("b", "u", 1, 1, at("http://b")),
            WatchMessage::Listed(watch())
        ]),
        ["b u 1 http://b/"]
    );
    assert_eq!(desk.secrets(), ["n/s"]);
    assert!(!desk.desired.source.synced);
    let s = || WatchId::Secret(ObjectKey::new("n", "s"));
    assert_eq!(desk.take([WatchMessage::Listed(s())]), ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert!(desk.desired.source.synced);
    let b = desk.get("b");
    let lines = desk.take([secret("s", "one")]);
    assert_eq!(lines, ["a u 1 http://a/ one", "b u 1 http://b/"]);
    let a = desk.get("a");
    // The same value again, and trouble with its watch: nothing.
    assert_eq!(
        desk.take([secret("s", "one"), WatchMessage::Trouble(s(), trouble(Reason::NotPermitted))]),
        lines
    );
    assert!(Arc::ptr_eq(&a, &desk.get("a")));
    assert_eq!(desk.desired.source.faults.len(), 1);
    assert_eq!(
        desk.take([WatchMessage::Listed(s()), secret("s", "two")]),
        ["a u 1 http://a/ two", "b u 1 http://b/"]
    );
    assert_eq!(
        desk.take([WatchMessage::Secret(ObjectKey::new("n", "s"), ReferenceLookup::Missing)]),
        ["a u 1 SecretNotFound", "b u 1 http://b/"]
    );
    assert!(Arc::ptr_eq(&b, &desk.get("b")));
    // Another reference: the old form stays until the new one was looked at.
    let other = desk.take([server("a", "u", 2, 2, with_secret("t"))]);
    assert_eq!(other, ["a u 1 SecretNotFound", "b u 1 http://b/"]);
    assert_eq!(desk.secrets(), ["n/t"]);
    assert_eq!(desk.take([secret("t", "three")]), ["a u 2 http://a/ three", "b u 1 http://b/"]);
    desk.take([WatchMessage::ServerGone(ObjectKey::new("n", "a"))]);
    assert_eq!(desk.secrets(), [""; 0]);
}

#[test]
fn a_secret_that_cannot_be_read_is_told_on_the_server() {
    for (met, told) in [(Reason::NotPermitted, "NotPermitted"), (Reason::SourceUnavailable, "SecretNotFound")]
    {
        let mut desk = Desk::new();
        let s = WatchId::Secret(ObjectKey::new("n", "s"));
        let lines =
            desk.take([server("a", "u", 1, 1, with_secret("s")), WatchMessage::Trouble(s, trouble(met))]);
        assert_eq!(lines, [format!("a u 1 {told}")]);
        assert_eq!(desk.desired.source.faults.len(), 1);
    }
}

#[test]
fn a_name_that_would_be_another_selector_is_never_watched() {
    let skill = |name: &str, generation: i64, map: &str| {
        let object = json!({
            "metadata": { "name": name, "namespace": "n", "uid": name, "generation": generation, "resourceVersion": "1" },
            "spec": { "configMapRef": { "name": map } },
        });
        WatchMessage::Skill(Box::new(serde_json::from_value(object).unwrap()))
    };
    let maps = |desk: &Desk| desk.book.config_maps().map(ToString::to_string).collect::<Vec<_>>();
    let mut desk = Desk::new();
    desk.take([skill("new", 1, "a,b"), skill("good", 1, "notes")]);
    assert_eq!(maps(&desk), ["n/notes"]);
    desk.take([skill("good", 2, "notes,metadata.name=notes"), server("s", "s", 1, 1, with_secret("a,b"))]);
    assert_eq!(maps(&desk), ["n/notes"], "what was good stays");
    assert!(desk.secrets().is_empty());
    let refused = |name: &str| {
        let skill = &desk.desired.skills[&ObjectKey::new("n", name)];
        skill.refused.as_ref().map(|problem| problem.message.clone()).unwrap_or_default()
    };
    for name in ["new", "good"] {
        assert!(refused(name).starts_with("spec.configMapRef.name: "), "{}", refused(name));
    }
}
