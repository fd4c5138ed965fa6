//! One controller (evenkeel, or the floor that attaches servers with the least work) with a directory and a fake
//! upstream of its own, so that several controllers can run side by side and be measured in turn.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::BenchPlan;
use crate::report::BenchSubject;
use crate::rig::agent::{Agent, NotificationStream};
use crate::rig::directory::{BenchDirectory, tool_name};
use crate::rig::process::{EvenkeelProcess, HelperProcess, ProcessUsage};
use crate::rig::{Era, Result, unix_nanos};

const ATTACH_TIMEOUT: Duration = Duration::from_mins(2);

/// The time without notifications after which a controller is quiet: longer than its debounce interval.
pub const QUIET_PERIOD: Duration = Duration::from_millis(250);

/// A controller with its upstream and directory.
pub struct ControllerSetup {
    pub subject: BenchSubject,
    // Declared first: it must end before its upstream and directory.
    controller: Controller,
    pub upstream: HelperProcess,
    pub directory: BenchDirectory,
}

enum Controller {
    Floor(HelperProcess),
    Evenkeel { process: EvenkeelProcess, agent: Agent, notifications: Option<NotificationStream> },
}

impl ControllerSetup {
    /// Returns every controller that the plan compares: its subject and, for evenkeel, its program.
    pub fn all_subjects(plan: &BenchPlan) -> Vec<(BenchSubject, Option<&Path>)> {
        let programs = plan.programs.iter().map(|(subject, path)| (*subject, Some(path.as_path())));
        [(BenchSubject::Floor, None)].into_iter().chain(programs).collect()
    }

    /// Starts a controller with a number of working and of hanging servers. Returns the time until all working servers
    /// are attached; for evenkeel, until an agent lists the tools of all.
    pub async fn start(
        (subject, program): (BenchSubject, Option<&Path>),
        era: Era,
        servers: usize,
        hanging: usize,
    ) -> Result<(Self, Duration)> {
        let upstream = HelperProcess::start_upstream().await?;
        let directory = BenchDirectory::new(upstream.address).await?;
        for number in 0..hanging {
            directory.declare("hang", number).await?;
        }
        directory.declare_many(era, servers).await?;
        let started = Instant::now();
        let (controller, elapsed) = match program {
            None => {
                let live = directory.declarations_dir().to_string_lossy().into_owned();
                let role = ["controller", "--directory", &live, "--era", era.name()].map(str::to_owned);
                let mut floor = HelperProcess::start_measured(&role).await?;
                let attached = async {
                    for _ in 0..servers {
                        floor.next_line().await?;
                    }
                    Result::Ok(())
                };
                timeout(ATTACH_TIMEOUT, attached).await??;
                (Controller::Floor(floor), started.elapsed())
            }
            Some(program) => {
                let mut process = EvenkeelProcess::start(program, &directory).await?;
                // Polls the servers, since polling evenkeel would slow it down.
                let listed = async {
                    while upstream.counts().await?.listed < servers as u64 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Result::Ok(())
                };
                timeout(ATTACH_TIMEOUT, listed)
                    .await
                    .map_err(|_| format!("{servers} servers: not attached"))??;
                let (agent, visible_at) = process.wait_for_tools(era, servers, ATTACH_TIMEOUT).await?;
                (Controller::Evenkeel { process, agent, notifications: None }, visible_at - started)
            }
        };
        Ok((Self { subject, controller, upstream, directory }, elapsed))
    }

    pub fn usage(&self) -> ProcessUsage {
        match &self.controller {
            Controller::Floor(floor) => floor.usage,
            Controller::Evenkeel { process, .. } => process.usage,
        }
    }

    /// Opens the agent's notification stream, and waits until it is quiet.
    pub async fn listen(&mut self) -> Result<()> {
        if let Controller::Evenkeel { agent, notifications, .. } = &mut self.controller {
            *notifications = Some(agent.notifications().await?);
        }
        self.wait_for_quiet().await.map(|_| ())
    }

    /// Waits until the controller reports an attached or removed server, by a notification or a line. Returns the time.
    pub async fn wait_for_change(&mut self) -> Result<i128> {
        match &mut self.controller {
            Controller::Floor(floor) => {
                timeout(ATTACH_TIMEOUT, floor.next_line()).await??;
                Ok(unix_nanos())
            }
            Controller::Evenkeel { notifications, .. } => {
                notifications
                    .as_mut()
                    .ok_or("no notification stream")?
                    .wait_for_list_changed(ATTACH_TIMEOUT)
                    .await
            }
        }
    }

    /// Waits until there has been no such report for [`QUIET_PERIOD`], and returns the number before.
    pub async fn wait_for_quiet(&mut self) -> Result<usize> {
        match &mut self.controller {
            Controller::Floor(floor) => {
                let mut count = 0;
                while let Ok(line) = timeout(QUIET_PERIOD, floor.next_line()).await {
                    line?;
                    count += 1;
                }
                Ok(count)
            }
            Controller::Evenkeel { notifications, .. } => {
                notifications.as_mut().ok_or("no notification stream")?.wait_for_quiet(QUIET_PERIOD).await
            }
        }
    }

    /// Fails if agents do not list the tool of this server.
    pub async fn expect_tool(&mut self, era: Era, number: usize) -> Result<()> {
        let Controller::Evenkeel { agent, .. } = &mut self.controller else { return Ok(()) };
        let name = tool_name(era, number);
        if agent.tool_names().await?.contains(&name) {
            Ok(())
        } else {
            Err(format!("a notification arrived, but {name} is not listed").into())
        }
    }

    /// Calls the tool of this server through evenkeel. Does nothing for the floor, which accepts no calls.
    pub async fn call(&mut self, era: Era, number: usize) -> Result<()> {
        if let Controller::Evenkeel { agent, .. } = &mut self.controller {
            let mut call = agent.prepare_call(&tool_name(era, number));
            agent.run_call(&mut call).await?;
        }
        Ok(())
    }

    /// Ends the controller.
    pub async fn stop(self) -> Result<()> {
        match self.controller {
            Controller::Floor(_) => Ok(()),
            Controller::Evenkeel { process, .. } => process.stop().await,
        }
    }
}
