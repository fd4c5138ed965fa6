//! A fleet of fake servers over HTTP and stdio, and the edits of its declarations.

use std::time::Duration;

use crate::rig::{FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Evenkeel, ProcessUsage, TestDirectory, http};

/// The descriptors that work which never ends opens for a moment, such as answers to these tests.
const SPARE_DESCRIPTORS: usize = 8;

/// Declared servers, each in a file of its own, and the number of edits of each.
pub struct SoakFleet {
    pub evenkeel: Evenkeel,
    declared: TestDirectory,
    /// One server of each era; each responds at every path.
    http: [FakeHttpServer; 2],
    stdio: FakeStdioServer,
    http_servers: usize,
    edits: Vec<usize>,
}

impl SoakFleet {
    /// Declares the servers, starts evenkeel and waits until all are attached.
    pub async fn start(http_servers: usize, stdio_servers: usize) -> Self {
        let script = |era| Script::new("soak", era).tools(&["echo", "report"]);
        let legacy = FakeHttpServer::start(script(ServerEra::Legacy)).await;
        let modern = FakeHttpServer::start(script(ServerEra::Modern)).await;
        let stdio = FakeStdioServer::new(script(ServerEra::Modern));
        let declared = TestDirectory::new();
        let evenkeel = Evenkeel::run(declared.path()).await;
        let edits = vec![0; http_servers + stdio_servers];
        let fleet = Self { evenkeel, declared, http: [legacy, modern], stdio, http_servers, edits };
        for server in 0..fleet.edits.len() {
            fleet.write(server);
        }
        fleet.wait_until_quiet(usize::MAX).await;
        fleet
    }

    /// Returns the names of all servers.
    pub fn names(&self) -> Vec<String> {
        (0..self.edits.len()).map(server_name).collect()
    }

    /// Edits the declaration of a server. Every second edit of a server makes a new connection; the others change only
    /// what does not concern it.
    pub fn edit(&mut self, server: usize) {
        self.edits[server] += 1;
        self.write(server);
    }

    /// Waits until every server is attached with its latest declaration, nothing else is connected, the caches hold
    /// nothing else either, and idle connections are closed: evenkeel has at most this many descriptors.
    pub async fn wait_until_quiet(&self, descriptors: usize) {
        let mut waited = Duration::ZERO;
        while let Some(reason) = self.unrest(descriptors).await {
            assert!(waited < Duration::from_mins(3), "not quiet: {reason}");
            waited += Duration::from_secs(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn unrest(&self, descriptors: usize) -> Option<String> {
        let open = ProcessUsage::of(self.evenkeel.pid()).counts.descriptors;
        if open > descriptors.saturating_add(SPARE_DESCRIPTORS) {
            return Some(format!("{open} descriptors, expected {descriptors}"));
        }
        let objects = self.evenkeel.admin("/apis/evenkeel.dev/v1alpha1/mcpservers");
        let list: serde_json::Value = serde_json::from_str(&http::get(&objects).await.unwrap()).unwrap();
        let is_attached = |server: &&serde_json::Value| {
            let conditions = server["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            server["status"]["attachedGeneration"] == server["metadata"]["generation"]
                && ready.all(|condition| condition["reason"] == "Attached")
        };
        let attached = list["items"].as_array().unwrap().iter().filter(is_attached).count();
        let [legacy, modern] = [0, 1].map(|era| self.http[era].counters());
        let catalogs = self.evenkeel.state_dir().join("catalogs");
        let cached = std::fs::read_dir(catalogs).map_or(0, Iterator::count);
        let [servers, http_servers] = [self.edits.len(), self.http_servers];
        let found = [
            ("attached servers", attached, servers),
            ("sessions of servers", usize::try_from(legacy.sessions).unwrap(), http_servers.div_ceil(2)),
            ("streams of servers", usize::try_from(legacy.streams + modern.streams).unwrap(), http_servers),
            ("processes", self.stdio.live_processes().len(), servers - http_servers),
            ("cached catalogs", cached, servers),
        ];
        let wrong = found.iter().find(|(_, found, expected)| found != expected);
        wrong.map(|(name, found, expected)| format!("{found} {name}, expected {expected}"))
    }

    fn write(&self, server: usize) {
        let edits = self.edits[server];
        let connection = edits.div_ceil(2);
        let transport = if server < self.http_servers {
            format!("http: {{ url: \"{}/{server}/{connection}\" }}", self.http[server % 2].url())
        } else {
            self.stdio.spec(&format!(", env: [{{ name: EDIT, value: \"{server}-{connection}\" }}]"))
        };
        let filter = format!("expose: {{ tools: {{ deny: [\"none-{edits}\"] }} }}");
        // Health checks would open connections at any time, and the counts of an idle process would differ.
        let health = "health: { interval: 0s }";
        self.declared.write_server(&server_name(server), &format!("{transport}\n{filter}\n{health}"));
    }
}

fn server_name(server: usize) -> String {
    format!("s{server}")
}
