//! The official client, in each era and over each transport, finds nothing to object to, and the rig finds nothing
//! to object to in the client.

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

/// An official client that hears of changed tools.
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

/// The official client reaches HTTP servers over Unix sockets without a TLS stack; this leads one to a TCP port.
fn unix_to_tcp_bridge(socket: PathBuf, rig: &FakeHttpServer) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let address = rig.address();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    })
}

/// The official client lists, calls, hears of a change and lists again; `edit` changes the rig's tools.
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
        let notice = within("a notice on the subscription", subscription.next()).await.unwrap();
        assert!(matches!(notice, Some(ServerNotification::ToolListChangedNotification(_))), "{notice:?}");
    } else {
        edit().await;
        within("an unsolicited notice", client.service().0.notified()).await;
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
        for answers in [ResponseFormat::Mixed, ResponseFormat::Json, ResponseFormat::Stream] {
            let case = format!("{client_era:?} client, {rig_era:?} rig, {answers:?}");
            let mut script = Script::new("selftest", rig_era);
            script.http.answers = answers;
            script.http.priming = answers == ResponseFormat::Stream;
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
            // A legacy client opens its stream beside its first requests: it must be there before the change.
            let client = exercise_client(client, modern, async || {
                eventually("the stream is open", async || (rig.counters().streams > 0).then_some(())).await;
                rig.edit_script(add_late_tool);
            })
            .await;
            client.cancel().await.unwrap();
            eventually("the streams are closed", async || (rig.counters().streams == 0).then_some(())).await;
            let seen = rig.counters();
            assert_no_violations(&seen, &case);
            assert_eq!(seen.initializes(), u64::from(!modern), "{case}");
            assert_eq!(seen.count("DELETE"), u64::from(!modern), "{case}");
            assert_eq!((seen.sessions_opened, seen.sessions), (u64::from(!modern), 0), "{case}");
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
        let process = eventually("the census knows it", async || rig.live_processes().pop()).await;
        let changed = Script::new("selftest", rig_era).tools(&["echo", "report", "late"]);
        let client = exercise_client(client, modern, async || process.set_script(changed).await).await;
        let seen = process.counters().await;
        assert_no_violations(&seen, &case);
        assert_eq!(seen.initializes(), u64::from(!modern), "{case}");
        client.cancel().await.unwrap();
        within("the end of the process", process.wait_for_exit()).await;
    }
}

/// Which client meets which rig, and whether they then speak modern.
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
