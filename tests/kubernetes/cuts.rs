//! Connections to the API server that are cut again and again, or fall silent.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::rig::{Era as RigEra, Http, Script};
use crate::site::{Site, server};
use crate::support::{Agent, Era, eventually};

#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn watches_that_are_cut_again_and_again_lose_nothing_and_disturb_nobody() {
    let site = Site::open().await;
    let rig = |name: &'static str| Http::start(Script::new(name, RigEra::Legacy).tools(&["echo"]));
    let (peer, other) = (rig("peer").await, rig("other").await);
    let between = Between::start(&site, |mut client, mut server| async move {
        let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
        let _ = tokio::time::timeout(Duration::from_secs(1), copy).await;
    })
    .await;
    let evenkeel = site.run_by(&between.kubeconfig, &[]).await;
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

/// A connection that is dead, though nobody closed it: as after a lost route or a NAT that has forgotten it.
#[tokio::test]
#[cfg_attr(without_api_server, ignore = "needs Go, for a Kubernetes API server")]
async fn watches_that_fall_silent_are_noticed_and_taken_up_again() {
    let site = Site::open().await;
    let rig = Http::start(Script::new("a", RigEra::Legacy).tools(&["echo"])).await;
    let (frozen, freeze) = watch::channel(false);
    let between = Between::start(&site, move |mut client, mut server| {
        let mut freeze = freeze.clone();
        async move {
            // Those that are made later work.
            let born = *freeze.borrow_and_update();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = async { drop(freeze.wait_for(|frozen| *frozen && !born).await) } => {
                    std::future::pending::<()>().await;
                }
            }
        }
    })
    .await;
    let evenkeel = site.run_by(&between.kubeconfig, &[]).await;
    let secret = "{ secretKeyRef: { name: ours, key: key } }";
    let waits = format!(
        "http: {{ url: \"{}\", headers: [{{ name: x-key, valueFrom: {secret} }}] }}\nhealth: {{ interval: 0s }}",
        rig.url()
    );
    site.apply(&server("waits", &waits)).await;
    site.serve("before", &rig).await;
    site.attached("before").await;
    site.wait_for("waits", "ResolvedRefs", "False", "SecretNotFound").await;

    frozen.send_replace(true);
    site.serve("after", &rig).await;
    site.create_secret("ours", "hunter2").await;
    let agent = Agent::open(Era::Modern, &evenkeel.url()).await;
    // Longer than a test waits for most things: a watch of one Secret lasts up to a minute.
    let all = ["after_echo", "before_echo", "waits_echo"];
    tokio::time::timeout(Duration::from_mins(2), async {
        while agent.tools().await != all {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("what happened meanwhile is seen");
    assert_eq!(rig.counters().initializes(), 3, "nothing was attached again");
}

/// A proxy before the API server, on the level of connections.
struct Between {
    kubeconfig: PathBuf,
    _home: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Between {
    /// `carry` moves bytes between evenkeel and the API server, as long as a connection lasts.
    async fn start<F: Future<Output = ()> + Send + 'static>(
        site: &Site<'_>,
        carry: impl Fn(TcpStream, TcpStream) -> F + Send + 'static,
    ) -> Self {
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
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(carry(client, server));
            }
        });
        Self { kubeconfig, _home: home, task }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}
