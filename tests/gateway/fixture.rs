//! A gateway with a catalog, and a fleet for tests that call a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::catalog::{Catalog, Publisher, ReservedNames, catalog};
use evenkeel::fleet::{Fleet, FleetContext, RestoredCache, ServerCache};
use evenkeel::gateway::{Gateway, GatewayConfig, GatewayMetrics, KnownNamespaces, Limits, SessionKey};
use evenkeel::net::{AllowedHosts, Authorization};
use evenkeel::resource::{
    DeclaredMeta, DeclaredObject, Desired, DigestKey, Endpoint, HttpEndpoint, HttpTransportKind,
    McpServerSpec, ObjectKey, Origin, Problem, ProtocolMode, Reason, SourceState, Transport,
};
use evenkeel::upstream::{
    CallRefusal, CallerConnections, Item, Responder, Section, ServerLists, Subscriptions, UpstreamControl,
};
use evenkeel::wire::{InstanceId, ListKind};
use hyper::Method;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::rig::FakeHttpServer;
use crate::support::http::{HttpResponse, send};
use crate::support::{Agent, Era, eventually, within};

/// A running gateway. Everything is stopped when it is dropped.
pub struct GatewayFixture {
    pub address: SocketAddr,
    pub catalog: Catalog,
    publisher: Publisher,
    metrics: GatewayMetrics,
    subscriptions: Subscriptions,
    caller_connections: CallerConnections,
    desired: watch::Sender<Arc<Desired>>,
    stop_token: CancellationToken,
    serve_task: Option<JoinHandle<()>>,
    _end: tokio_util::sync::DropGuard,
}

impl GatewayFixture {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// Starts a gateway with a changed configuration.
    pub async fn start_with(change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let (catalog, publisher, task) =
            catalog(Some("default".into()), ReservedNames::default(), mpsc::unbounded_channel().0);
        let end = CancellationToken::new();
        tokio::spawn(task.run(end.clone()));
        let (observations, mut observed) = mpsc::unbounded_channel();
        tokio::spawn(async move { while observed.recv().await.is_some() {} });
        // The server cache is not written to disk.
        let server_cache = ServerCache::new(RestoredCache::default(), mpsc::unbounded_channel().0);
        // Nothing is declared, so startup is complete at once.
        publisher.mark_settled();
        let context = FleetContext::new(publisher.clone(), observations, server_cache, None);
        let (subscriptions, caller_connections) =
            (context.subscriptions.clone(), context.caller_connections.clone());
        let (desired, desired_rx) = watch::channel(Arc::default());
        tokio::spawn(Fleet::new(Arc::new(context)).run(desired_rx, end.clone()));
        let mut this = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            catalog,
            publisher,
            metrics: GatewayMetrics::default(),
            subscriptions,
            caller_connections,
            desired,
            stop_token: end.child_token(),
            serve_task: None,
            _end: end.drop_guard(),
        };
        this.serve(change).await;
        this
    }

    /// Replaces the gateway by a new one on the same catalog and address, as after a restart.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.stop_token = CancellationToken::new();
        self.serve(|_| ()).await;
    }

    async fn serve(&mut self, change: impl FnOnce(&mut GatewayConfig)) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let mut config = GatewayConfig {
            authorization: Authorization::new(AllowedHosts::default()),
            session_key: SessionKey::new(b"the key of all tests").unwrap(),
            subscriptions: self.subscriptions.clone(),
            caller_connections: self.caller_connections.clone(),
            instance_id: InstanceId::default(),
            replica_address: Some(self.address.to_string()),
            namespaces: KnownNamespaces::new(["default".into()].into(), self.desired.subscribe()),
            limits: Limits::default(),
        };
        change(&mut config);
        let gateway =
            Gateway::new(config, self.catalog.clone(), self.metrics.clone(), self.stop_token.clone());
        self.serve_task = Some(tokio::spawn(gateway.serve(Arc::new(listener))));
    }

    /// Stops the gateway and waits for its end.
    pub async fn stop(&mut self) {
        self.stop_token.cancel();
        within("the gateway stops", self.serve_task.take().unwrap()).await.unwrap();
    }

    /// Requests the gateway to stop.
    pub fn request_stop(&self) {
        self.stop_token.cancel();
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn namespace_url(&self, namespace: &str) -> String {
        format!("http://{}/ns/{namespace}/mcp", self.address)
    }

    /// Sends an HTTP request to a path.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> HttpResponse {
        send(method, &format!("http://{}{path}", self.address), headers, body).await.unwrap()
    }

    pub async fn agent(&self, era: Era) -> Agent {
        Agent::connect(era, &self.url()).await
    }

    /// Publishes tools of a server that has no connection.
    pub fn publish_tools(&self, namespace: &str, name: &str, tools: &[&str]) {
        let tools = tools.iter().map(|tool| format!(r#"{{"name":"{tool}"}}"#));
        self.publish_raw_tools(namespace, name, tools);
    }

    /// Publishes tools, given as JSON, of a server that has no connection.
    pub fn publish_raw_tools(&self, namespace: &str, name: &str, tools: impl Iterator<Item = String>) {
        let key = ObjectKey::new(namespace, name);
        let refusal = CallRefusal::Unavailable(Problem::new(Reason::Exited, "exit code 7"));
        self.publisher.publish(Arc::new(Section {
            responder: Responder::Server(UpstreamControl::new(key.clone(), refusal).handle().clone()),
            key,
            prefix: name.to_owned(),
            lists: Arc::new(ServerLists {
                tools: tools.map(|raw| Item::parse(ListKind::Tools, &raw).unwrap()).collect(),
                ..ServerLists::default()
            }),
            resource_filter: None,
            instructions: None,
            call_timeout: Duration::from_mins(1),
        }));
    }

    pub fn withdraw(&self, namespace: &str, name: &str, problem: Problem) {
        self.publisher.withdraw(ObjectKey::new(namespace, name), problem);
    }

    /// Declares a fake server, with further members of its spec, and waits until its section is published.
    pub async fn attach_server(&self, name: &str, server: &FakeHttpServer, extra_spec: serde_json::Value) {
        let mut spec = extra_spec;
        spec["http"] = serde_json::json!({ "url": server.url() });
        let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
        let key = ObjectKey::new("default", name);
        let http = HttpEndpoint {
            kind: HttpTransportKind::StreamableHttp,
            url: server.url().parse().unwrap(),
            headers: Vec::new(),
            ca: None,
            oauth: None,
        };
        let endpoint = Endpoint::new(Transport::Http(http), ProtocolMode::Auto, &DigestKey::new(b"test"));
        let declared = DeclaredObject {
            meta: DeclaredMeta {
                key: key.clone(),
                uid: "1".into(),
                generation: 1,
                created_at: jiff::Timestamp::UNIX_EPOCH,
                labels: [].into(),
                annotations: [].into(),
                origin: Origin::Cluster { resource_version: "1".into() },
                revision: "1".into(),
                last_commit: None,
            },
            spec: Some(Arc::new(spec)),
            spec_digest: None,
            rejected: None,
            endpoint: Some(Ok(Arc::new(endpoint))),
        };
        self.desired.send_modify(|desired| {
            let mut next = Desired::clone(desired);
            next.source =
                Arc::new(SourceState { synced: true, skills_synced: true, ..SourceState::default() });
            next.servers.insert(key.clone(), Arc::new(declared));
            *desired = Arc::new(next);
        });
        eventually("the server is attached", async || {
            self.catalog.load().section(&key).is_some().then_some(())
        })
        .await;
    }

    /// Marks that all declarations have been read.
    pub fn mark_synced(&self) {
        self.desired.send_modify(|desired| {
            let mut next = Desired::clone(desired);
            next.source =
                Arc::new(SourceState { synced: true, skills_synced: true, ..SourceState::default() });
            *desired = Arc::new(next);
        });
    }

    /// Removes the declaration of a server.
    pub fn remove_server(&self, name: &str) {
        self.desired.send_modify(|desired| {
            let mut next = Desired::clone(desired);
            next.servers.remove(&ObjectKey::new("default", name));
            *desired = Arc::new(next);
        });
    }

    /// Waits until the metrics contain a line.
    pub async fn wait_for_metric(&self, line: &str) {
        eventually(line, async || self.encoded_metrics().lines().any(|found| found == line).then_some(()))
            .await;
    }

    fn encoded_metrics(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }
}
