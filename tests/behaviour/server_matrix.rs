//! Four servers that differ in nothing but era and transport, and an agent of each era with each.

use crate::fixture::EvenkeelFixture;
use crate::rig::{ControlCommand, Counters, FakeHttpServer, FakeStdioServer, Script, ServerEra};
use crate::support::{Agent, Era, eventually};

/// The names of the four: over stdio and HTTP, legacy and modern.
pub const NAMES: [&str; 4] = ["sl", "sm", "hl", "hm"];

/// One server of each era over each transport, all with the same script.
pub struct ServerMatrix {
    pub fixture: EvenkeelFixture,
    stdio: Vec<(&'static str, FakeStdioServer)>,
    http: Vec<(&'static str, FakeHttpServer)>,
}

impl ServerMatrix {
    /// Attaches them; the script gets its name and era.
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

    /// An agent of each era with each server, and what to say when that fails.
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
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.counters();
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        rig.live_processes().pop().expect("it lives").counters().await
    }

    /// Nobody did what the specification forbids.
    pub async fn assert_no_complaints(&self) {
        for name in NAMES {
            assert_eq!(self.counters(name).await.complaints, Vec::<String>::new(), "{name}");
        }
    }

    /// Tells the server something.
    pub async fn send_command(&self, name: &str, command: ControlCommand) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.send_command(command);
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        rig.live_processes().pop().expect("it lives").send_command(command).await.expect("it lives");
    }

    /// Cuts the connection: the process is killed, the session forgotten, the streams closed.
    pub async fn cut_connection(&self, name: &str) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.send_command(ControlCommand::ForgetSessions { quietly: false });
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        let process = rig.live_processes().pop().expect("it lives");
        process.kill();
        process.wait_for_exit().await;
        eventually("another process", async || (!rig.live_processes().is_empty()).then_some(())).await;
    }

    /// Changes the script of a server that runs.
    pub async fn edit_script(&self, name: &str, change: impl FnOnce(&mut Script)) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.edit_script(change);
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        let mut script = None;
        rig.edit_script(|known| {
            change(known);
            script = Some(known.clone());
        });
        rig.live_processes().pop().expect("it lives").set_script(script.unwrap()).await;
    }
}
