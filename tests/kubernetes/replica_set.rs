//! Two replicas with a session key in common, and a proxy that sends each connection to the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};

use crate::support::{Agent, Era, Evenkeel, eventually};
use crate::test_namespace::TestNamespace;

/// Creates the Secret of the session key, and runs two replicas with it, which reach each other.
pub async fn run_replicas(ns: &TestNamespace<'_>, more: &[&str]) -> [Evenkeel; 2] {
    let key = "--from-literal=key=0123456789abcdef0123456789abcdef";
    ns.kubectl(&["create", "secret", "generic", "evenkeel-session-key", key]).await;
    let flags = [&["--session-key-secret=evenkeel-session-key", "--pod-ip=127.0.0.1"], more].concat();
    [ns.run(&flags).await, ns.run(&flags).await]
}

/// Waits until each replica lists exactly these tools.
pub async fn wait_until_served(replicas: &[Evenkeel], tools: &[&str]) {
    for replica in replicas {
        let agent = Agent::connect(Era::Modern, &replica.url()).await;
        eventually("each replica serves it", async || (agent.tool_names().await == tools).then_some(()))
            .await;
    }
}

/// A TCP proxy that forwards connections to several servers in turn.
pub struct RoundRobinProxy {
    pub url: String,
    connection_counts: Arc<Vec<AtomicUsize>>,
    task: tokio::task::JoinHandle<()>,
}

impl RoundRobinProxy {
    pub async fn start(replicas: &[Evenkeel]) -> Self {
        let address = |url: String| url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
        let addresses: Vec<_> = replicas.iter().map(Evenkeel::url).map(address).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let counts: Arc<Vec<AtomicUsize>> = Arc::new(addresses.iter().map(|_| AtomicUsize::new(0)).collect());
        let counted = counts.clone();
        let task = tokio::spawn(async move {
            for next in (0..addresses.len()).cycle() {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(&addresses[next]).await.unwrap();
                counted[next].fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, connection_counts: counts, task }
    }

    /// Returns the number of connections that each replica got.
    pub fn connection_counts(&self) -> Vec<usize> {
        self.connection_counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

impl Drop for RoundRobinProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
