//! Measures what a call costs: through the floor and through each evenkeel, in front of a server that speaks
//! HTTP and in front of one that is started and spoken to over stdin and stdout.

use std::time::Duration;

use super::Plan;
use super::load::{Way, many_callers, one_caller};
use crate::report::{Report, Subject};
use crate::rig::agent::Target;
use crate::rig::cores::load_core;
use crate::rig::directory::{Directory, stdio_role, tool};
use crate::rig::process::{Evenkeel, Helper};
use crate::rig::{Era, Result};

const PATIENCE: Duration = Duration::from_secs(30);

/// Measures one round of calls to a server over HTTP, in both eras.
pub async fn http(plan: &Plan, report: &mut Report) -> Result<()> {
    let upstream = Helper::upstream().await?;
    let floor =
        Helper::measured(&["floor", "--upstream", &upstream.address.to_string()].map(str::to_owned)).await?;
    let mut running = Vec::new();
    for (subject, program) in &plan.programs {
        let directory = Directory::new(upstream.address).await?;
        for era in Era::BOTH {
            directory.declare(era.name(), 0).await?;
        }
        let mut evenkeel = Evenkeel::start(program, &directory).await?;
        evenkeel.usable(Era::Legacy, 2, PATIENCE).await?;
        running.push((*subject, evenkeel, directory));
    }
    for era in Era::BOTH {
        let path = format!("/{era}/0/mcp");
        let mut ways = vec![
            helper_way(Subject::Direct, &upstream, &path, era),
            helper_way(Subject::Floor, &floor, &path, era),
        ];
        ways.extend(running.iter().map(|(subject, evenkeel, _)| evenkeel_way(*subject, evenkeel, era)));
        one_caller(plan, era, "HTTP", &ways, report).await?;
        many_callers(plan, era, "HTTP", &ways, report).await?;
    }
    stop(running).await
}

/// Measures one round of calls to a server over its stdin and stdout, in both eras.
pub async fn stdio(plan: &Plan, report: &mut Report) -> Result<()> {
    for era in Era::BOTH {
        let bridge = Helper::measured(&stdio_role("bridge", era, load_core())).await?;
        let mut running = Vec::new();
        for (subject, program) in &plan.programs {
            let directory = Directory::new(bridge.address).await?;
            directory.declare_stdio(era).await?;
            let mut evenkeel = Evenkeel::start(program, &directory).await?;
            evenkeel.usable(era, 1, PATIENCE).await?;
            running.push((*subject, evenkeel, directory));
        }
        let pipe = Way { subject: Subject::Direct, target: None, tool: "echo".to_owned(), usage: None };
        let mut ways = vec![pipe, helper_way(Subject::Floor, &bridge, "/mcp", era)];
        ways.extend(running.iter().map(|(subject, evenkeel, _)| evenkeel_way(*subject, evenkeel, era)));
        one_caller(plan, era, "stdio", &ways, report).await?;
        // One pipe has one caller.
        ways.remove(0);
        many_callers(plan, era, "stdio", &ways, report).await?;
        stop(running).await?;
    }
    Ok(())
}

fn helper_way(subject: Subject, helper: &Helper, path: &str, era: Era) -> Way {
    let target = Target { address: helper.address, path: path.to_owned(), era };
    Way { subject, target: Some(target), tool: "echo".to_owned(), usage: Some(helper.usage) }
}

fn evenkeel_way(subject: Subject, evenkeel: &Evenkeel, era: Era) -> Way {
    let target = Some(evenkeel.target(era));
    Way { subject, target, tool: tool(era, 0), usage: Some(evenkeel.usage) }
}

async fn stop(running: Vec<(Subject, Evenkeel, Directory)>) -> Result<()> {
    for (_, evenkeel, _directory) in running {
        evenkeel.stop().await?;
    }
    Ok(())
}
