//! The HTTP proxy of evenkeel's environment.

use crate::rig::{FakeHttpServer, Script, ServerEra};
use crate::support::{Agent, Era, Evenkeel, ForwardProxy, TestDirectory};

#[tokio::test]
async fn remote_servers_are_reached_through_the_proxy_and_local_ones_directly() {
    let rig = FakeHttpServer::start(Script::new("remote", ServerEra::Legacy).tools(&["echo"])).await;
    let url: url::Url = rig.url().parse().unwrap();
    let proxy = ForwardProxy::start(url.socket_addrs(|| None).unwrap()[0]).await;
    let directory = TestDirectory::new();
    // The proxy resolves the names.
    for (name, url) in [
        ("local", rig.url()),
        ("remote", format!("http://mcp.example.test{}", url.path())),
        ("encrypted", format!("https://mcp.example.test{}", url.path())),
    ] {
        directory.write_server(name, &format!("http: {{ url: \"{url}\" }}"));
    }
    let variable = format!("http://user:hunter2@{}", proxy.authority());
    let variables = [("HTTP_PROXY", &*variable), ("https_proxy", &variable)];
    let evenkeel = Evenkeel::run_with_env(directory.path(), &[], &variables).await;
    evenkeel.wait_until_attached("remote").await;
    evenkeel.wait_until_attached("local").await;
    Agent::connect(Era::Legacy, &evenkeel.url()).await.call_text("remote_echo", "{}").await;
    // The fake server does not speak TLS, so the tunnel ends in its handshake.
    let condition = evenkeel.wait_for("encrypted", "Ready", "False", "ConnectFailed").await;
    let through = format!("through the proxy {}", proxy.authority());
    assert!(
        condition.message.contains(&through) && condition.message.contains("TLS"),
        "{}",
        condition.message
    );

    let heads = proxy.heads();
    let has_authorization = |head: &String| {
        head.lines().any(|line| line.eq_ignore_ascii_case("Proxy-Authorization: Basic dXNlcjpodW50ZXIy"))
    };
    assert!(heads.iter().all(has_authorization), "{heads:?}");
    assert!(heads.iter().any(|head| head.starts_with("POST http://mcp.example.test/")), "{heads:?}");
    assert!(heads.iter().any(|head| head.starts_with("CONNECT mcp.example.test:443 ")), "{heads:?}");
    assert!(!heads.iter().any(|head| head.contains("127.0.0.1")), "{heads:?}");
    let log = evenkeel.stderr();
    assert!(!log.contains("hunter2") && !log.contains("dXNlcjpodW50ZXIy"), "{log}");
}
