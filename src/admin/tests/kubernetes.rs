use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::resource::RECONCILE_REQUESTED_AT;

const BASE: &str = "/apis/evenkeel.dev/v1alpha1";

/// A watch that reads its response line by line.
struct TestWatch(BufReader<TcpStream>);

impl TestWatch {
    async fn next_event(&mut self) -> Value {
        let line = self.next_line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Returns the type of the next event, the name of its object, and the reason of its first condition.
    async fn next_summary(&mut self) -> String {
        let event = self.next_event().await;
        let (object, kind) = (&event["object"], event["type"].as_str().unwrap());
        let name = object["metadata"]["name"].as_str().unwrap();
        format!("{kind} {name} {}", object["status"]["conditions"][0]["reason"].as_str().unwrap())
    }

    /// Returns the next line; empty at the end of the response.
    async fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line
    }
}

impl TestStatusApi {
    /// Starts a watch over HTTP/1.0, which has no chunked encoding.
    async fn watch(&self, query: &str) -> TestWatch {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {BASE}/mcpservers?watch=1&{query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut watching = TestWatch(BufReader::new(stream));
        while watching.next_line().await != "\r\n" {}
        watching
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    async fn list(&self, query: &str) -> (Vec<String>, Value) {
        let (code, list) = self.json(&format!("{BASE}/mcpservers?{query}")).await;
        assert_eq!(code, 200, "{list}");
        let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
        (list["items"].as_array().unwrap().iter().map(name).collect(), list["metadata"].clone())
    }

    /// Declares exactly these servers and waits until the store has them. Servers declared before stay unchanged.
    async fn declare(&mut self, names: &[&str]) {
        let before = self.desired_sender.borrow().servers.clone();
        let servers = names.iter().map(|name| {
            let mut declared = declared_server(name, 1);
            declared.meta.labels = [("first".to_owned(), name[..1].to_owned())].into();
            let existing = before.get(&key(name)).cloned();
            (key(name), existing.unwrap_or_else(|| Arc::new(declared)))
        });
        let source = Arc::new(SourceState { synced: true, revision: "r1".into(), ..SourceState::default() });
        self.desired_sender
            .send(Arc::new(Desired { servers: servers.collect(), source, ..Desired::default() }))
            .unwrap();
        let names: Vec<_> = names.to_vec();
        self.wait_for(move |store| store.servers.keys().map(|key| &*key.name).eq(names.iter().copied()))
            .await;
    }
}

fn as_str(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn list_pages_share_one_resource_version() {
    let mut api = TestStatusApi::new().await;
    api.declare(&["a", "b", "c"]).await;
    let (names, metadata) = api.list("limit=2").await;
    assert_eq!((names, &metadata["remainingItemCount"]), (vec!["a".into(), "b".into()], &json!(1)));
    api.declare(&["b", "d"]).await;
    let (names, second) = api.list(&format!("limit=2&continue={}", as_str(&metadata["continue"]))).await;
    assert_eq!((names, second.get("continue")), (vec!["c".into()], None));
    assert_eq!(second["resourceVersion"], metadata["resourceVersion"]);
    assert_eq!(api.list("").await.0, ["b", "d"]);
    let exact =
        format!("resourceVersion={}&resourceVersionMatch=Exact", as_str(&metadata["resourceVersion"]));
    assert_eq!(api.list(&exact).await.0, ["a", "b", "c"]);

    let old =
        URL_SAFE_NO_PAD.encode(json!({ "version": 1, "namespace": "default", "name": "a" }).to_string());
    let (code, status) = api.json(&format!("{BASE}/mcpservers?continue={old}")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    api.shutdown().await;
}

#[tokio::test]
async fn watch_resumes_from_a_list_without_missing_changes() {
    let mut api = TestStatusApi::new().await;
    api.declare(&["a", "b"]).await;
    let (_, metadata) = api.list("").await;
    let from = as_str(&metadata["resourceVersion"]).to_owned();
    api.declare(&["b", "c"]).await;
    let mut watch = api.watch(&format!("resourceVersion={from}")).await;
    assert_eq!(watch.next_summary().await, "DELETED a Connecting");
    assert_eq!(watch.next_summary().await, "ADDED c Connecting");
    api.observation_sender.send(observation("b", 1, Phase::Attached, Some(1))).unwrap();
    let modified = watch.next_event().await;
    assert_eq!((&modified["type"], &modified["object"]["status"]["tools"]), (&json!("MODIFIED"), &json!(3)));
    // A watch from the last version receives only what follows.
    api.declare(&["b", "c", "d"]).await;
    let last_seen = as_str(&modified["object"]["metadata"]["resourceVersion"]).to_owned();
    let mut resumed = api.watch(&format!("resourceVersion={last_seen}")).await;
    for watch in [&mut watch, &mut resumed] {
        assert_eq!(watch.next_summary().await, "ADDED d Connecting");
    }

    // An object that is deleted and created again at once.
    let mut another = declared_server("d", 1);
    another.meta.uid = "another".into();
    let mut desired = Desired::clone(&api.desired_sender.borrow());
    desired.servers.insert(key("d"), Arc::new(another));
    api.desired_sender.send(Arc::new(desired)).unwrap();
    assert_eq!(watch.next_summary().await, "DELETED d Connecting");
    assert_eq!(watch.next_summary().await, "ADDED d Connecting");

    let mut expired = api.watch("resourceVersion=1").await;
    let error = expired.next_event().await;
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(expired.next_line().await, "", "the watch ends after the error");
    api.shutdown().await;
}

#[tokio::test]
async fn watch_sends_initial_events_then_a_bookmark() {
    let mut api = TestStatusApi::new().await;
    api.declare(&["a1", "a2", "b1"]).await;
    let streaming = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = api.watch(&format!("{streaming}&labelSelector=first%3Da")).await;
    assert_eq!(watch.next_summary().await, "ADDED a1 Connecting");
    assert_eq!(watch.next_summary().await, "ADDED a2 Connecting");
    let bookmark = watch.next_event().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(as_str(&bookmark["object"]["metadata"]["resourceVersion"]).parse::<u64>().unwrap() > 0);

    // An object that no longer matches is deleted for this watch; one that never matched is not reported.
    let mut desired = Desired::clone(&api.desired_sender.borrow());
    for name in ["a1", "b1"] {
        let mut changed = declared_server(name, 2);
        changed.meta.labels.clear();
        desired.servers.insert(key(name), Arc::new(changed));
    }
    api.desired_sender.send(Arc::new(desired)).unwrap();
    let deleted = watch.next_event().await;
    assert_eq!((&deleted["type"], &deleted["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("a1")));

    // A watch ends at its timeout, and at shutdown.
    let mut short = api.watch("timeoutSeconds=1&sendInitialEvents=false").await;
    assert_eq!(short.next_line().await, "");
    api.stop.cancel();
    assert_eq!(watch.next_line().await, "");
    api.shutdown().await;
}

#[tokio::test]
async fn tables_and_partial_metadata_are_served_on_request() {
    let mut api = TestStatusApi::new().await;
    api.declare(&["a", "b"]).await;
    let table = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io, application/json";
    let (code, table) = api.send("GET", &format!("{BASE}/mcpservers?limit=1"), table, "").await;
    assert_eq!(
        (code, &table["kind"], &table["apiVersion"]),
        (200, &json!("Table"), &json!("meta.k8s.io/v1"))
    );
    let names: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| as_str(&column["name"])).collect();
    assert_eq!(
        names,
        ["Name", "Ready", "Reason", "Transport", "Tools", "Protocol", "Restarts", "Message", "Age"]
    );
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..3],
        [json!("a"), json!("False"), json!("Connecting")]
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["metadata"]["continue"].is_string());

    let metadata = "Accept: application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io, application/json";
    let path = format!("{BASE}/namespaces/default/mcpservers/a");
    let (_, object) = api.send("GET", &path, metadata, "").await;
    assert_eq!(object["kind"], "PartialObjectMetadata");
    assert_eq!(object["metadata"]["uid"], "uid-a");
    assert!(object.get("spec").is_none());

    let (_, events) =
        api.json("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Db").await;
    assert_eq!(events["items"].as_array().unwrap().len(), 1);
    let event = &events["items"][0];
    assert_eq!((&event["reason"], &event["involvedObject"]["uid"]), (&json!("Created"), &json!("uid-b")));
    let (_, events) = api.json("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Db").await;
    assert_eq!(
        (&events["items"][0]["note"], &events["items"][0]["regarding"]["kind"]),
        (&json!("declared in b.yaml:1"), &json!("McpServer"))
    );
    api.shutdown().await;
}

#[tokio::test]
async fn patch_requires_the_token_and_shows_in_the_object() {
    let mut api = TestStatusApi::new().await;
    api.declare(&["a", "b"]).await;
    let path = format!("{BASE}/namespaces/default/mcpservers/a");
    let patch = json!({ "metadata": { "annotations": { RECONCILE_REQUESTED_AT: "now" } } }).to_string();
    let kind = "Content-Type: application/merge-patch+json";
    let token = format!("{kind}\r\nAuthorization: Bearer {TOKEN}");
    for (headers, code) in [(kind, 401), (&format!("{kind}\r\nAuthorization: Bearer {TOKEN}x"), 401)] {
        let (found, status) = api.send("PATCH", &path, headers, &patch).await;
        assert_eq!((found, &status["kind"]), (code, &json!("Status")));
    }
    let (code, dry) = api.send("PATCH", &format!("{path}?dryRun=All"), &token, &patch).await;
    assert_eq!((code, dry["metadata"].get("annotations")), (200, None));
    let (code, object) = api.send("PATCH", &path, &token, &patch).await;
    assert_eq!((code, &object["metadata"]["annotations"][RECONCILE_REQUESTED_AT]), (200, &json!("now")));
    let (_, current) = api.json(&path).await;
    assert_eq!(current["metadata"], object["metadata"]);

    let missing = format!("{BASE}/namespaces/default/mcpservers/x");
    assert_eq!(api.send("PATCH", &missing, &token, &patch).await.0, 404);
    let version = as_str(&current["metadata"]["resourceVersion"]).to_owned();
    for (key, value, expected) in [
        ("name", "b", (400, "BadRequest")),
        ("namespace", "team", (400, "BadRequest")),
        ("uid", "another", (409, "Conflict")),
        ("resourceVersion", "1", (409, "Conflict")),
    ] {
        let patch =
            json!({ "metadata": { key: value, "annotations": { RECONCILE_REQUESTED_AT: "x" } } }).to_string();
        let (code, status) = api.send("PATCH", &path, &token, &patch).await;
        assert_eq!((code, as_str(&status["reason"])), expected, "{key}");
    }
    assert_eq!(api.json(&path).await.1["metadata"], current["metadata"]);
    let same = json!({ "metadata": {
        "name": "a", "namespace": "default", "uid": "uid-a", "resourceVersion": version,
        "annotations": { RECONCILE_REQUESTED_AT: "later" },
    } });
    assert_eq!(api.send("PATCH", &path, &token, &same.to_string()).await.0, 200);
    let other = json!({ "spec": { "suspend": true } }).to_string();
    let (code, status) = api.send("PATCH", &path, &token, &other).await;
    assert_eq!(code, 405);
    assert!(as_str(&status["message"]).contains("edit the files in /fleet"), "{status}");
    api.shutdown().await;
}
