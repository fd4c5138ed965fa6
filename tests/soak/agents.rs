//! Agents that open sessions, list, call and leave, until they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, Era};

/// The agents of one churn.
pub struct SoakAgents {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    sessions: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl SoakAgents {
    /// Starts agents, each of which opens a session after each pause and calls one server after another.
    pub fn start(agents: usize, url: &str, servers: &[String], pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let [sessions, calls] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let tasks = (0..agents).map(|first| {
            let (stop, sessions, calls) = (stop.clone(), sessions.clone(), calls.clone());
            let (url, servers) = (url.to_owned(), servers.to_owned());
            tokio::spawn(async move {
                let mut servers = servers.iter().cycle().skip(first * servers.len() / agents);
                while !stop.is_cancelled() {
                    let next: Vec<_> = servers.by_ref().take(5).map(String::as_str).collect();
                    calls.fetch_add(run_session(&url, &next, pause).await, Ordering::Relaxed);
                    sessions.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, tasks, sessions, calls }
    }

    /// Ends the sessions. Returns the numbers of sessions and of calls.
    pub async fn stop(self) -> (usize, usize) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        (self.sessions.load(Ordering::Relaxed), self.calls.load(Ordering::Relaxed))
    }
}

/// Runs one legacy session, and modern requests next to it. Returns the number of calls.
async fn run_session(url: &str, servers: &[&str], pause: Duration) -> usize {
    let agent = Agent::connect(Era::Legacy, url).await;
    let modern = Agent::connect(Era::Modern, url).await;
    let mut notifications = agent.notifications().await;
    assert!(!agent.list_tools().await.is_empty());
    for server in servers {
        // A call may find its server just being replaced, and then fails with a clear error.
        let _ = agent.call(&format!("{server}_echo"), r#"{"text":"soak"}"#).await;
        let _ = modern.call(&format!("{server}_echo"), r#"{"text":"soak"}"#).await;
    }
    tokio::time::sleep(pause).await;
    notifications.drain();
    assert!(agent.end_session().await < 300);
    servers.len() * 2
}
