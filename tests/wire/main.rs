//! Tests of connections to fake servers of both eras over both transports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod connections;
mod failures;
mod http_variants;
mod notification_streams;
mod resumed_streams;
mod sse_connections;

use std::time::Duration;

use evenkeel::resource::{
    DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, ProtocolMode, StdioEndpoint, Transport,
};
use evenkeel::wire::{
    Connection, ConnectionContext, ConnectionError, ConnectionEvents, RequestParams, RpcResponse,
    UpstreamRequest, open,
};
use rig::{Counters, FakeHttpServer, FakeStdioServer, Script};
use support::{eventually, within};

/// The time for the response to the probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A fake server behind either transport.
#[expect(clippy::large_enum_variant, reason = "a handful per test")]
enum TestServer {
    Http(FakeHttpServer),
    Stdio(FakeStdioServer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransportKind {
    Http,
    Stdio,
}

impl TestServer {
    async fn start(transport: TransportKind, script: Script) -> Self {
        match transport {
            TransportKind::Http => Self::Http(FakeHttpServer::start(script).await),
            TransportKind::Stdio => Self::Stdio(FakeStdioServer::new(script)),
        }
    }

    fn endpoint(&self) -> Endpoint {
        let transport = match self {
            Self::Http(rig) => Transport::Http(HttpEndpoint {
                kind: if rig.speaks_sse() {
                    HttpTransportKind::Sse
                } else {
                    HttpTransportKind::StreamableHttp
                },
                url: rig.url().parse().unwrap(),
                headers: Vec::new(),
                ca: None,
                oauth: None,
            }),
            Self::Stdio(rig) => {
                let (program, script) = rig.command();
                Transport::Stdio(StdioEndpoint {
                    command: program.display().to_string(),
                    args: vec![script.display().to_string()],
                    cwd: None,
                    env: Vec::new(),
                })
            }
        };
        Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"test"))
    }

    /// Returns the counters of the fake server, or of its one live process.
    async fn counters(&self) -> Counters {
        match self {
            Self::Http(rig) => rig.counters(),
            Self::Stdio(rig) => {
                eventually("the process is counted", async || rig.live_processes().pop())
                    .await
                    .counters()
                    .await
            }
        }
    }

    /// Replaces the script.
    async fn set_script(&self, script: Script) {
        match self {
            Self::Http(rig) => rig.edit_script(|current| *current = script),
            Self::Stdio(rig) => rig.live_processes().pop().expect("a process").set_script(script).await,
        }
    }

    async fn wait_until(&self, description: &str, condition: impl Fn(&Counters) -> bool) {
        eventually(description, async || condition(&self.counters().await).then_some(())).await;
    }
}

async fn connect(server: &TestServer) -> Result<(Connection, ConnectionEvents), ConnectionError> {
    within(
        "the connection opens or fails",
        open(&server.endpoint(), None, PROBE_TIMEOUT, &ConnectionContext::default()),
    )
    .await
}

/// Sends a request and returns its raw result. The inner error is the raw JSON-RPC error object.
async fn request(
    connection: &Connection,
    method: &str,
    params: &str,
) -> Result<Result<String, String>, ConnectionError> {
    let params = RequestParams::parse(params).unwrap();
    let name = params.members.get_string("name");
    let request = UpstreamRequest { params: &params, name: name.as_deref(), ..UpstreamRequest::new(method) };
    let response = within(method, async { connection.call(request).await?.response().await }).await?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(match response {
        RpcResponse::Result(bytes) => Ok(text(&bytes)),
        RpcResponse::Error(bytes) => Err(text(&bytes)),
    })
}

async fn call(
    connection: &Connection,
    tool: &str,
    arguments: &str,
) -> Result<Result<String, String>, ConnectionError> {
    request(connection, "tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#)).await
}
