//! Four servers that differ only in era and transport, and an agent of each era for each server.

use crate::fixture::EvenkeelFixture;
use crate::rig::{ControlCommand, Counters, FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

/// The names of the four servers: stdio or HTTP, legacy or modern.
pub const NAMES: [&str; 4] = ["sl", "sm", "hl", "hm"];

/// One server of each era over each transport, all with the same script.
pub struct ServerMatrix {
    pub fixture: EvenkeelFixture,
    stdio: Vec<(&'static str, FakeStdioServer)>,
    http: Vec<(&'static str, FakeHttpServer)>,
}

impl ServerMatrix {
    /// Attaches the servers. `script` completes a script that has its name and era.
    pub async fn attach(script: impl Fn(Script) -> Script) -> Self {
        let script = |name, era| script(Script::new(name, era));
        let servers = Self {
            fixture: EvenkeelFixture::start(&[]).await,
            stdio: vec![
                ("sl", FakeStdioServer::new(script("sl", ServerEra::Legacy))),
                ("sm", FakeStdioServer::new(script("sm", ServerEra::Modern))),
            ],
            http: vec![
                ("hl", FakeHttpServer::start(script("hl", ServerEra::Legacy)).await),
                ("hm", FakeHttpServer::start(script("hm", ServerEra::Modern)).await),
            ],
        };
        for (name, rig) in &servers.stdio {
            servers.fixture.attach(name, &rig.spec("")).await;
        }
        for (name, rig) in &servers.http {
            servers.fixture.attach(name, &rig.spec()).await;
        }
        servers
    }

    /// Returns an agent of each era for each server, with a description for failure messages.
    pub async fn pairs(&self) -> Vec<(Agent, &'static str, String)> {
        let mut pairs = Vec::new();
        for era in Era::ALL {
            for (name, _) in &self.stdio {
                pairs.push((self.fixture.agent(era).await, *name, format!("{era:?} agent, server {name}")));
            }
            for (name, _) in &self.http {
                pairs.push((self.fixture.agent(era).await, *name, format!("{era:?} agent, server {name}")));
            }
        }
        pairs
    }

    pub async fn counters(&self, name: &str) -> Counters {
        if let Some((_, rig)) = self.http.iter().find(|(server, _)| *server == name) {
            return rig.counters();
        }
        let (_, rig) = self.stdio.iter().find(|(server, _)| *server == name).unwrap();
        rig.live_processes().pop().expect("a live process").counters().await
    }

    /// Fails if evenkeel violated the specification towards any server.
    pub async fn assert_no_complaints(&self) {
        for name in NAMES {
            assert_eq!(self.counters(name).await.complaints, Vec::<String>::new(), "{name}");
        }
    }

    /// Sends a control command to a server.
    pub async fn send_command(&self, name: &str, command: ControlCommand) {
        if let Some((_, rig)) = self.http.iter().find(|(server, _)| *server == name) {
            return rig.send_command(command);
        }
        let (_, rig) = self.stdio.iter().find(|(server, _)| *server == name).unwrap();
        rig.live_processes()
            .pop()
            .expect("a live process")
            .send_command(command)
            .await
            .expect("a live process");
    }

    /// Cuts a server's connection: kills the process, or forgets the session and closes the streams.
    pub async fn cut_connection(&self, name: &str) {
        if let Some((_, rig)) = self.http.iter().find(|(server, _)| *server == name) {
            return rig.send_command(ControlCommand::ForgetSessions { quietly: false });
        }
        let (_, rig) = self.stdio.iter().find(|(server, _)| *server == name).unwrap();
        let process = rig.live_processes().pop().expect("a live process");
        process.kill();
        process.wait_for_exit().await;
        eventually("another process has started", async || (!rig.live_processes().is_empty()).then_some(()))
            .await;
    }

    /// Changes the script of a running server.
    pub async fn edit_script(&self, name: &str, change: impl FnOnce(&mut Script)) {
        if let Some((_, rig)) = self.http.iter().find(|(server, _)| *server == name) {
            return rig.edit_script(change);
        }
        let (_, rig) = self.stdio.iter().find(|(server, _)| *server == name).unwrap();
        let mut script = None;
        rig.edit_script(|current| {
            change(current);
            script = Some(current.clone());
        });
        rig.live_processes().pop().expect("a live process").set_script(script.unwrap()).await;
    }
}
