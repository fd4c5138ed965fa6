//! Four servers that differ in nothing but era and transport, and an agent of each era with each.

use crate::rig::{Command, Counters, Era as RigEra, Http, Script, Stdio};
use crate::stage::Stage;
use crate::support::{Agent, Era, eventually};

/// The names of the four: over stdio and HTTP, legacy and modern.
pub const NAMES: [&str; 4] = ["sl", "sm", "hl", "hm"];

/// One server of each era over each transport, all with the same script.
pub struct Servers {
    pub stage: Stage,
    stdio: Vec<(&'static str, Stdio)>,
    http: Vec<(&'static str, Http)>,
}

impl Servers {
    /// Attaches them; the script gets its name and era.
    pub async fn attach(script: impl Fn(Script) -> Script) -> Self {
        let script = |name, era| script(Script::new(name, era));
        let servers = Self {
            stage: Stage::start(&[]).await,
            stdio: vec![
                ("sl", Stdio::new(script("sl", RigEra::Legacy))),
                ("sm", Stdio::new(script("sm", RigEra::Modern))),
            ],
            http: vec![
                ("hl", Http::start(script("hl", RigEra::Legacy)).await),
                ("hm", Http::start(script("hm", RigEra::Modern)).await),
            ],
        };
        for (name, rig) in &servers.stdio {
            servers.stage.attach(name, &rig.spec("")).await;
        }
        for (name, rig) in &servers.http {
            servers.stage.attach(name, &rig.spec()).await;
        }
        servers
    }

    /// An agent of each era with each server, and what to say when that fails.
    pub async fn pairs(&self) -> Vec<(Agent, &'static str, String)> {
        let mut pairs = Vec::new();
        for era in Era::ALL {
            for (name, _) in &self.stdio {
                pairs.push((self.stage.agent(era).await, *name, format!("{era:?} agent, server {name}")));
            }
            for (name, _) in &self.http {
                pairs.push((self.stage.agent(era).await, *name, format!("{era:?} agent, server {name}")));
            }
        }
        pairs
    }

    pub async fn counters(&self, name: &str) -> Counters {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.counters();
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        rig.alive().pop().expect("it lives").counters().await
    }

    /// Nobody did what the specification forbids.
    pub async fn no_complaints(&self) {
        for name in NAMES {
            assert_eq!(self.counters(name).await.complaints, Vec::<String>::new(), "{name}");
        }
    }

    /// Tells the server something.
    pub async fn tell(&self, name: &str, command: Command) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.tell(command);
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        rig.alive().pop().expect("it lives").tell(command).await.expect("it lives");
    }

    /// Cuts the connection: the process is killed, the session forgotten, the streams closed.
    pub async fn cut(&self, name: &str) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.tell(Command::ForgetSessions { quietly: false });
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        let process = rig.alive().pop().expect("it lives");
        process.kill();
        process.gone().await;
        eventually("another process", async || (!rig.alive().is_empty()).then_some(())).await;
    }

    /// Changes the script of a server that runs.
    pub async fn play(&self, name: &str, change: impl FnOnce(&mut Script)) {
        if let Some((_, rig)) = self.http.iter().find(|(known, _)| *known == name) {
            return rig.edit(change);
        }
        let (_, rig) = self.stdio.iter().find(|(known, _)| *known == name).unwrap();
        let mut script = None;
        rig.edit(|known| {
            change(known);
            script = Some(known.clone());
        });
        rig.alive().pop().expect("it lives").play(script.unwrap()).await;
    }
}
