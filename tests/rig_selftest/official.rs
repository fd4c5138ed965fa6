//! The official client works with the rig in each era and over each transport, and the rig records no violation by the
//! client.

use std::path::PathBuf;
use std::sync::Arc;

use crate::rig::{Counters, FakeHttpServer, FakeStdioServer, ResponseFormat, Script, ServerEra};
use crate::support::{eventually, within};
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, ProtocolVersion,
    ServerNotification, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, RunningService};
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, TokioChildProcess, UnixSocketHttpClient};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use tokio::sync::Notify;

/// The handler of an official client that is notified of changed tools.
#[derive(Clone, Default)]
struct Client(Arc<Notify>);

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("selftest", "1"))
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.notify_one();
    }
}

fn lifecycle_mode(era: ServerEra) -> ClientLifecycleMode {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    match era {
        ServerEra::Legacy => ClientLifecycleMode::Initialize,
        ServerEra::Modern => ClientLifecycleMode::Discover { preferred_versions },
        ServerEra::Dual => ClientLifecycleMode::Auto { preferred_versions, legacy_version: None },
    }
}

/// Forwards a Unix socket to a TCP port: without a TLS stack, the official client supports HTTP over Unix sockets only.
fn unix_to_tcp_bridge(socket: PathBuf, rig: &FakeHttpServer) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let address = rig.address();
    tokio::spawn(async move {
        while let Ok((mut unix_stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut tcp_stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut unix_stream, &mut tcp_stream).await;
            });
        }
    })
}

/// Lists tools, calls one, waits for a change notification and lists again. `edit` changes the tools of the server.
async fn exercise_client(
    client: RunningService<RoleClient, Client>,
    modern: bool,
    edit: impl AsyncFnOnce(),
) -> RunningService<RoleClient, Client> {
    let names = async || -> Vec<String> {
        let tools = client.list_all_tools().await.unwrap();
        tools.into_iter().map(|tool| tool.name.into_owned()).collect()
    };
    assert_eq!(names().await, ["echo", "report"]);
    let call = CallToolRequestParams::new("echo").with_arguments(serde_json::from_str(r#"{"a":1}"#).unwrap());
    let result = client.call_tool(call).await.unwrap();
    let text = result.content[0].as_text().unwrap().text.clone();
    assert!(text.contains(r#""arguments":{"a":1}"#), "{text}");
    if modern {
        let mut filter = SubscriptionFilter::default();
        filter.tools_list_changed = Some(true);
        let mut subscription = client.listen(filter).await.unwrap();
        edit().await;
        let notification = within("a notification on the subscription", subscription.next()).await.unwrap();
        assert!(
            matches!(notification, Some(ServerNotification::ToolListChangedNotification(_))),
            "{notification:?}"
        );
    } else {
        edit().await;
        within("an unsolicited notification", client.service().0.notified()).await;
    }
    assert_eq!(names().await, ["echo", "report", "late"]);
    client
}

fn add_late_tool(script: &mut Script) {
    *script = script.clone().tools(&["echo", "report", "late"]);
}

fn assert_no_violations(counters: &Counters, case: &str) {
    assert_eq!(counters.complaints, Vec::<String>::new(), "{case}");
    assert_eq!(counters.cancelled + counters.abandoned, 0, "{case}: {counters:?}");
    assert_eq!(counters.calls(), 1, "{case}");
}

#[tokio::test]
async fn official_client_works_over_http() {
    for (client_era, rig_era, modern) in era_combinations() {
        for format in [ResponseFormat::Mixed, ResponseFormat::Json, ResponseFormat::Stream] {
            let case = format!("{client_era:?} client, {rig_era:?} rig, {format:?}");
            let mut script = Script::new("selftest", rig_era);
            script.http.answers = format;
            script.http.priming = format == ResponseFormat::Stream;
            let rig = FakeHttpServer::start(script).await;
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("socket");
            let bridge = unix_to_tcp_bridge(socket.clone(), &rig);
            let transport = StreamableHttpClientTransport::with_client(
                UnixSocketHttpClient::new(socket.to_str().unwrap(), &rig.url()),
                StreamableHttpClientTransportConfig::with_uri(rig.url()),
            );
            let client = Client::default().serve_with_lifecycle(transport, lifecycle_mode(client_era)).await;
            let client = client.unwrap_or_else(|error| panic!("{case}: {error}"));
            // A legacy client opens its stream concurrently with its first requests. It must be open before the change.
            let client = exercise_client(client, modern, async || {
                eventually("the stream is open", async || (rig.counters().streams > 0).then_some(())).await;
                rig.edit_script(add_late_tool);
            })
            .await;
            client.cancel().await.unwrap();
            eventually("the streams are closed", async || (rig.counters().streams == 0).then_some(())).await;
            let counters = rig.counters();
            assert_no_violations(&counters, &case);
            assert_eq!(counters.initializes(), u64::from(!modern), "{case}");
            assert_eq!(counters.count("DELETE"), u64::from(!modern), "{case}");
            assert_eq!((counters.sessions_opened, counters.sessions), (u64::from(!modern), 0), "{case}");
            bridge.abort();
        }
    }
}

#[tokio::test]
async fn official_client_works_over_stdio() {
    for (client_era, rig_era, modern) in era_combinations() {
        let case = format!("{client_era:?} client, {rig_era:?} rig");
        let rig = FakeStdioServer::new(Script::new("selftest", rig_era));
        let (program, script) = rig.command();
        let mut command = tokio::process::Command::new(program);
        command.arg(script);
        let client = Client::default()
            .serve_with_lifecycle(TokioChildProcess::new(command).unwrap(), lifecycle_mode(client_era))
            .await;
        let client = client.unwrap_or_else(|error| panic!("{case}: {error}"));
        let process = eventually("the process is registered", async || rig.live_processes().pop()).await;
        let changed = Script::new("selftest", rig_era).tools(&["echo", "report", "late"]);
        let client = exercise_client(client, modern, async || process.set_script(changed).await).await;
        let counters = process.counters().await;
        assert_no_violations(&counters, &case);
        assert_eq!(counters.initializes(), u64::from(!modern), "{case}");
        client.cancel().await.unwrap();
        within("the process ends", process.wait_for_exit()).await;
    }
}

/// The eras of the client and the server, and true if the client then uses the modern era.
fn era_combinations() -> [(ServerEra, ServerEra, bool); 6] {
    use ServerEra::{Dual, Legacy, Modern};
    [
        (Legacy, Legacy, false),
        (Legacy, Dual, false),
        (Modern, Modern, true),
        (Modern, Dual, true),
        (Dual, Legacy, false),
        (Dual, Modern, true),
    ]
}
