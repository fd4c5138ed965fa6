//! The official Rust client (rmcp) against the endpoint, in both eras.

use std::path::PathBuf;
use std::sync::Arc;

use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, ProtocolVersion,
    ServerNotification, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, RunningService};
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, UnixSocketHttpClient};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::json;
use tokio::sync::Notify;

use crate::fixture::GatewayFixture;
use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{eventually, within};

#[derive(Clone, Default)]
pub struct NotifyingClient(Arc<Notify>);

impl ClientHandler for NotifyingClient {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("official", "1"))
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.notify_one();
    }
}

/// Forwards a Unix socket to the gateway for as long as the test runs. rmcp reaches HTTP servers without a TLS stack
/// only over Unix sockets.
fn unix_socket_bridge(fixture: &GatewayFixture) -> PathBuf {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let address = fixture.address;
    tokio::spawn(async move {
        let _directory = directory;
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    socket
}

async fn connect(
    fixture: &GatewayFixture,
    mode: ClientLifecycleMode,
) -> (RunningService<RoleClient, NotifyingClient>, Arc<Notify>) {
    let socket = unix_socket_bridge(fixture);
    let transport = StreamableHttpClientTransport::with_client(
        UnixSocketHttpClient::new(socket.to_str().unwrap(), &fixture.url()),
        StreamableHttpClientTransportConfig::with_uri(fixture.url()),
    );
    let client = NotifyingClient::default();
    let changed = client.0.clone();
    let client = within("the handshake", client.serve_with_lifecycle(transport, mode)).await.unwrap();
    (client, changed)
}

/// Connects a client in the modern era.
pub async fn connect_modern(fixture: &GatewayFixture) -> RunningService<RoleClient, NotifyingClient> {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    connect(fixture, ClientLifecycleMode::Discover { preferred_versions }).await.0
}

async fn tool_names(client: &RunningService<RoleClient, NotifyingClient>) -> Vec<String> {
    let tools = client.list_all_tools().await.unwrap();
    tools.into_iter().map(|tool| tool.name.into_owned()).collect()
}

#[tokio::test]
async fn rmcp_client_lists_calls_and_gets_list_changed() {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    for (mode, modern) in [
        (ClientLifecycleMode::Initialize, false),
        (ClientLifecycleMode::Discover { preferred_versions: preferred_versions.clone() }, true),
        (ClientLifecycleMode::Auto { preferred_versions, legacy_version: None }, true),
    ] {
        let server = FakeHttpServer::start(Script::new("rig", ServerEra::Dual)).await;
        let fixture = GatewayFixture::start().await;
        fixture.attach_server("r", &server, json!({})).await;
        let (client, changed) = connect(&fixture, mode).await;
        assert_eq!(tool_names(&client).await, ["r_echo", "r_report"]);
        let call =
            CallToolRequestParams::new("r_echo").with_arguments(serde_json::from_str(r#"{"a":1}"#).unwrap());
        let result = client.call_tool(call).await.unwrap();
        let text = result.content[0].as_text().unwrap().text.clone();
        assert!(text.contains(r#""arguments":{"a":1}"#), "{text}");

        let add_late_tool = |script: &mut Script| *script = script.clone().tools(&["echo", "report", "late"]);
        if modern {
            let mut filter = SubscriptionFilter::default();
            filter.tools_list_changed = Some(true);
            let mut subscription = client.listen(filter).await.unwrap();
            server.edit_script(add_late_tool);
            let listed = async {
                // A change just before the subscription is notified too.
                while tool_names(&client).await.len() < 3 {
                    let notification = subscription.next().await.unwrap();
                    assert!(
                        matches!(notification, Some(ServerNotification::ToolListChangedNotification(_))),
                        "{notification:?}"
                    );
                }
            };
            within("a notification on the subscription", listed).await;
        } else {
            fixture.wait_for_metric("agent_streams 1").await;
            server.edit_script(add_late_tool);
            within("a notification on the GET stream", changed.notified()).await;
        }
        assert_eq!(tool_names(&client).await, ["r_echo", "r_late", "r_report"]);
        client.cancel().await.unwrap();
        fixture.wait_for_metric("agent_streams 0").await;
        fixture.wait_for_metric("agent_sessions 0").await;
    }
}

#[tokio::test]
async fn rmcp_client_cancels_a_dropped_call() {
    let server = FakeHttpServer::start(Script::new("rig", ServerEra::Legacy).tools(&["sleep"])).await;
    let fixture = GatewayFixture::start().await;
    fixture.attach_server("r", &server, json!({})).await;
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    for mode in [ClientLifecycleMode::Initialize, ClientLifecycleMode::Discover { preferred_versions }] {
        let cancellations = || server.counters().count("notifications/cancelled");
        let before = cancellations();
        let case = format!("the call is cancelled at the server: {mode:?}");
        let (client, _) = connect(&fixture, mode).await;
        let arguments = serde_json::from_str(r#"{"ms":600000}"#).unwrap();
        let call = CallToolRequestParams::new("r_sleep").with_arguments(arguments);
        let mut pending = Box::pin(client.call_tool_once(call));
        tokio::select! {
            _ = &mut pending => panic!("the call must not end"),
            () = eventually("the call is in flight", async || (server.counters().in_flight == 1).then_some(())) => {}
        }
        drop(pending);
        eventually(&case, async || (cancellations() == before + 1).then_some(())).await;
        client.cancel().await.unwrap();
    }
}
