use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fleet::{Observation, Phase};
use crate::net::{AllowedHosts, BearerToken};
use crate::oauth::Logins;
use crate::report::StatusSnapshot;
use crate::report::testing::observation;
use crate::report::{Reporter, ReporterInputs};
use crate::resource::testing::{at, declared_server, key, server_spec, source_id};
use crate::resource::{Desired, ObjectKey, Problem, Reason, SourceState};
use crate::skills::{SkillStates, SyncResults};
use crate::source::merge_requests;

mod kubernetes;

const TOKEN: &str = "a-token";

/// A status API on a TCP socket, fed by a reporter.
struct TestStatusApi {
    address: std::net::SocketAddr,
    store: watch::Receiver<StatusSnapshot>,
    desired_sender: watch::Sender<Arc<Desired>>,
    observation_sender: mpsc::UnboundedSender<Observation>,
    stop: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
}

impl TestStatusApi {
    async fn new() -> Self {
        let (reporter, store) = Reporter::new(source_id(), at(0));
        let (declare, desired) = watch::channel(Arc::new(Desired::default()));
        let (observe, observations) = mpsc::unbounded_channel();
        let (catalog, _, _) = crate::catalog::catalog(
            None,
            crate::catalog::ReservedNames::default(),
            mpsc::unbounded_channel().0,
        );
        let stop = CancellationToken::new();
        let mut registry = Registry::with_prefix("evenkeel");
        register_status_metrics(&mut registry, store.clone());
        let (requests, desired, stage) = merge_requests(desired, stop.clone());
        let sources = ApiState {
            store: store.clone(),
            agents_not_ready: watch::channel(None).1,
            metrics: Arc::new(registry),
            requests: Some(requests),
            logins: Logins::default(),
            edit_hint: "edit the files in /fleet".into(),
            stop: stop.clone(),
        };
        let router = status_api(
            sources,
            Authorization::new(AllowedHosts::default()).with_token(BearerToken::new(TOKEN.into())),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(stage);
        tasks.spawn(reporter.run(
            ReporterInputs {
                desired,
                observations,
                catalog,
                session_counts: watch::channel(imbl::OrdMap::new()).1,
                auth_states: watch::channel(imbl::OrdMap::new()).1,
                skill_states: watch::channel(SkillStates::default()).1,
                sync_results: watch::channel(SyncResults::default()).1,
            },
            stop.clone(),
        ));
        let stop_server = stop.clone();
        tasks.spawn(async move { serve(listener, router, stop_server).await.unwrap() });
        Self { address, store, desired_sender: declare, observation_sender: observe, stop, tasks }
    }

    async fn wait_for(&mut self, predicate: impl FnMut(&StatusSnapshot) -> bool) {
        self.store.wait_for(predicate).await.unwrap();
    }

    async fn request(&self, method: &str, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "localhost").await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (code, body) = self.get(path).await;
        (code, serde_json::from_str(&body).unwrap())
    }

    async fn shutdown(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn desired_fixture() -> Arc<Desired> {
    let mut required = declared_server("b", 1);
    required.spec = Some(server_spec(serde_json::json!({
        "stdio": { "command": "c", "env": [{ "name": "TOKEN", "value": "hunter2" }] },
        "required": true,
    })));
    let mut elsewhere = declared_server("a", 1);
    elsewhere.meta.key = ObjectKey::new("team", "a");
    Arc::new(Desired {
        servers: [declared_server("a", 1), required, elsewhere]
            .into_iter()
            .map(|object| (object.meta.key.clone(), Arc::new(object)))
            .collect(),
        source: Arc::new(SourceState { synced: true, revision: "r1".into(), ..SourceState::default() }),
        ..Desired::default()
    })
}

#[tokio::test]
async fn objects_and_lists_have_kubernetes_shapes() {
    let mut api = TestStatusApi::new().await;
    api.desired_sender.send(desired_fixture()).unwrap();
    api.observation_sender.send(observation("b", 1, Phase::Attached, Some(1))).unwrap();
    api.wait_for(|store| store.servers.get(&key("b")).is_some_and(|object| object.status.tools == Some(3)))
        .await;

    let base = "/apis/evenkeel.dev/v1alpha1";
    let (code, list) = api.json(&format!("{base}/mcpservers?limit=500")).await;
    assert_eq!(code, 200);
    assert_eq!(list["apiVersion"], "evenkeel.dev/v1alpha1");
    assert_eq!(list["kind"], "McpServerList");
    assert!(list["metadata"]["resourceVersion"].is_string());
    let names: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b", "a"]);

    let (_, list) = api.json(&format!("{base}/namespaces/team/mcpservers")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (code, list) = api.json(&format!("{base}/namespaces/nowhere/skills")).await;
    assert_eq!(
        (code, list["kind"].as_str(), &list["items"]),
        (200, Some("SkillList"), &serde_json::json!([]))
    );

    let (code, object) = api.json(&format!("{base}/namespaces/default/mcpservers/b")).await;
    assert_eq!(code, 200);
    assert_eq!(object["kind"], "McpServer");
    assert_eq!(object["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(object["status"]["conditions"][0]["status"], "True");
    assert_eq!(object["spec"]["stdio"]["env"][0]["value"], "<redacted>");
    assert!(!object.to_string().contains("hunter2"));

    // `pretty=true` returns indented JSON.
    let (_, pretty) = api.get(&format!("{base}/namespaces/default/mcpservers/b?pretty=true")).await;
    assert!(pretty.starts_with("{\n  \"apiVersion\""), "{pretty}");
    assert_eq!(serde_json::from_str::<Value>(&pretty).unwrap(), object);

    let (code, source) = api.json(&format!("{base}/sources/directory")).await;
    assert_eq!(code, 200);
    assert_eq!(source["kind"], "Source");
    assert_eq!(source["spec"]["directory"], "/fleet");
    assert_eq!(source["status"]["revision"], "r1");
    assert_eq!(source["status"]["watching"], "Events");
    assert!(source["metadata"].get("namespace").is_none());
    api.shutdown().await;
}

#[tokio::test]
async fn errors_are_kubernetes_status_objects() {
    let api = TestStatusApi::new().await;
    let base = "/apis/evenkeel.dev/v1alpha1";
    for (method, path, code, reason, message) in [
        (
            "GET",
            format!("{base}/namespaces/default/mcpservers/x"),
            404,
            "NotFound",
            "mcpservers.evenkeel.dev \"x\" not found",
        ),
        ("GET", format!("{base}/mcpservers/x"), 404, "NotFound", "could not find"),
        ("GET", format!("{base}/sources/x"), 404, "NotFound", "sources.evenkeel.dev \"x\" not found"),
        ("GET", format!("{base}/namespaces/default/sources"), 404, "NotFound", "could not find"),
        ("GET", format!("{base}/pods"), 404, "NotFound", "could not find"),
        ("GET", "/nothing".to_owned(), 404, "NotFound", "could not find"),
        ("GET", "/openapi/v2".to_owned(), 404, "NotFound", "use /openapi/v3"),
        ("GET", format!("{base}/mcpservers?labelSelector=a%20b"), 400, "BadRequest", "unable to parse"),
        ("GET", format!("{base}/mcpservers?fieldSelector=a%3Db"), 400, "BadRequest", "field label not"),
        ("GET", format!("{base}/mcpservers?limit=x"), 400, "BadRequest", "not a number"),
        ("GET", format!("{base}/mcpservers?resourceVersion=99999999999999"), 504, "Timeout", "Too large"),
        ("GET", format!("{base}/mcpservers?continue=x"), 400, "BadRequest", "continue"),
        (
            "POST",
            format!("{base}/namespaces/default/mcpservers"),
            405,
            "MethodNotAllowed",
            "edit the files in /fleet",
        ),
        (
            "DELETE",
            format!("{base}/namespaces/default/mcpservers/x"),
            405,
            "MethodNotAllowed",
            "edit the files in /fleet",
        ),
    ] {
        let (found, body) = api.request(method, &path, "127.0.0.1:1").await;
        assert_eq!(found, code, "{method} {path}: {body}");
        let status: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status["kind"], "Status", "{path}");
        assert_eq!(status["apiVersion"], "v1", "{path}");
        assert_eq!(status["status"], "Failure", "{path}");
        assert_eq!(status["reason"], reason, "{path}");
        assert_eq!(status["code"], code, "{path}");
        assert!(status["message"].as_str().unwrap().contains(message), "{path}: {status}");
    }
    for (host, expected) in [
        ("evil.example.com", 403),
        ("localhost\r\nOrigin: https://evil.example.com", 403),
        ("localhost\r\nOrigin: http://localhost:5173", 200),
        ("localhost\r\nHost: localhost", 400),
    ] {
        let (code, body) = api.request("GET", &format!("{base}/mcpservers"), host).await;
        assert_eq!(code, expected, "{host}: {body}");
    }
    api.shutdown().await;
}

#[tokio::test]
async fn readyz_is_503_with_all_reasons_then_stays_200() {
    let mut api = TestStatusApi::new().await;
    assert_eq!(api.get("/livez").await, (200, "ok\n".into()));
    let (code, reasons) = api.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(reasons.starts_with("Source/directory: "), "{reasons}");

    api.desired_sender.send(desired_fixture()).unwrap();
    api.wait_for(|store| !store.servers.is_empty()).await;
    let connecting =
        |server: &str| format!("McpServer/{server}: Connecting: waiting for an attempt to connect\n");
    // Required servers come first.
    let all = ["default/b", "default/a", "team/a"].map(connecting).concat();
    assert_eq!(api.get("/readyz").await, (503, all));
    assert_eq!(api.get("/readyz?exclude=first-attempts").await, (503, connecting("default/b")));

    api.observation_sender.send(observation("b", 1, Phase::Attached, Some(1))).unwrap();
    api.wait_for(|store| store.readiness.required_ready()).await;
    assert_eq!(api.get("/readyz?exclude=first-attempts").await, (200, "ok\n".into()));
    assert_eq!(api.get("/readyz").await, (503, ["default/a", "team/a"].map(connecting).concat()));
    for key in [key("a"), ObjectKey::new("team", "a")] {
        let failed = Phase::Failed {
            problem: Problem::new(Reason::ConnectFailed, "nothing listens there"),
            retry_at: None,
            attempt: 2,
        };
        api.observation_sender.send(Observation { key, ..observation("a", 1, failed, None) }).unwrap();
    }
    api.wait_for(|store| store.readiness.is_ready()).await;
    api.observation_sender
        .send(observation("b", 1, Phase::Connecting { attempt: 2, last_problem: None }, None))
        .unwrap();
    api.wait_for(|store| store.servers[&key("b")].status.tools.is_none()).await;
    assert_eq!(api.get("/readyz").await, (200, "ok\n".into()));
    api.shutdown().await;
}

#[tokio::test]
async fn metrics_count_objects_by_ready_condition() {
    let mut api = TestStatusApi::new().await;
    api.desired_sender.send(desired_fixture()).unwrap();
    api.observation_sender.send(observation("b", 1, Phase::Attached, Some(1))).unwrap();
    api.wait_for(|store| store.readiness.required_ready()).await;
    let (code, text) = api.get("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "# TYPE evenkeel_servers gauge",
        "evenkeel_servers{ready=\"False\",reason=\"Connecting\"} 2",
        "evenkeel_servers{ready=\"True\",reason=\"Attached\"} 1",
        "evenkeel_source_faults 0",
        concat!("evenkeel_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    api.shutdown().await;
}

#[tokio::test]
async fn probe_api_serves_only_health_and_metrics_to_any_host() {
    let (reporter, store) = Reporter::new(source_id(), at(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let sources = ApiState {
        store: store.clone(),
        agents_not_ready: watch::channel(None).1,
        metrics: Arc::default(),
        requests: None,
        logins: Logins::default(),
        edit_hint: "".into(),
        stop: stop.clone(),
    };
    let router = probe_api(sources);
    let (desired_sender, _) = watch::channel(Arc::new(Desired::default()));
    let (observation_sender, _) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    let stop_server = stop.clone();
    tasks.spawn(async move { serve(listener, router, stop_server).await.unwrap() });
    drop(reporter);
    let api = TestStatusApi { address, store, desired_sender, observation_sender, stop, tasks };
    for (path, code) in [
        ("/livez", 200),
        ("/readyz", 503),
        ("/metrics", 200),
        ("/apis/evenkeel.dev/v1alpha1/mcpservers", 404),
    ] {
        assert_eq!(api.request("GET", path, "10.1.2.3:9090").await.0, code, "{path}");
    }
    api.shutdown().await;
}
