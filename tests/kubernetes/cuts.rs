//! A connection to the API server that is cut again and again.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Era as RigEra, Http, Script};
use crate::site::{Site, server};
use crate::support::{Agent, Era, eventually};

#[tokio::test]
async fn watches_that_are_cut_again_and_again_lose_nothing_and_disturb_nobody() {
    let Some(site) = Site::open().await else { return };
    let rig = |name: &'static str| Http::start(Script::new(name, RigEra::Legacy).tools(&["echo"]));
    let (peer, other) = (rig("peer").await, rig("other").await);
    let cuts = Cuts::start(&site).await;
    let evenkeel = site.run_by(&cuts.kubeconfig, &[]).await;
    site.serve("peer", &peer).await;
    site.attached("peer").await;
    let agent = Agent::open(Era::Legacy, &evenkeel.url()).await;
    for round in 0..5 {
        site.serve(&format!("a{round}"), &other).await;
        if round > 0 {
            site.kubectl(&["delete", "mcps", &format!("a{}", round - 1)]).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        agent.text("peer_echo", "{}").await;
    }
    eventually("the last state is reached", async || {
        (agent.tools().await == ["a4_echo", "peer_echo"]).then_some(())
    })
    .await;
    site.apply(&server("denied", "stdio: { command: sh }")).await;
    site.wait_for("denied", "Stalled", "True", "PolicyDenied").await;
    assert_eq!(peer.counters().initializes(), 1);
}

/// A proxy before the API server that cuts each connection after a while.
struct Cuts {
    kubeconfig: PathBuf,
    _home: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Cuts {
    async fn start(site: &Site<'_>) -> Self {
        let server = site.cluster.url().trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap().to_string();
        let text = std::fs::read_to_string(&site.kubeconfig).unwrap();
        assert!(text.contains(&server), "{text}");
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text.replace(&server, &proxy)).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
                    let _ = tokio::time::timeout(Duration::from_secs(1), copy).await;
                });
            }
        });
        Self { kubeconfig, _home: home, task }
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        self.task.abort();
    }
}
