//! Measures the cost of a call, through the floor and through each evenkeel: to a server over HTTP, and to a server
//! over stdio.

use std::time::Duration;

use super::BenchPlan;
use super::load::{CallRoute, many_callers, one_caller};
use crate::report::{BenchSubject, Report};
use crate::rig::agent::McpTarget;
use crate::rig::cores::load_core;
use crate::rig::directory::{BenchDirectory, role_args, tool_name};
use crate::rig::process::{EvenkeelProcess, HelperProcess};
use crate::rig::{Era, Result};

const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Measures one round of calls to a server over HTTP, in both eras.
pub async fn http(plan: &BenchPlan, report: &mut Report) -> Result<()> {
    let upstream = HelperProcess::start_upstream().await?;
    let floor = HelperProcess::start_measured(
        &["floor", "--upstream", &upstream.address.to_string()].map(str::to_owned),
    )
    .await?;
    let mut running = Vec::new();
    for (subject, program) in &plan.programs {
        let directory = BenchDirectory::new(upstream.address).await?;
        for era in Era::ALL {
            directory.declare(era.name(), 0).await?;
        }
        let mut evenkeel = EvenkeelProcess::start(program, &directory).await?;
        evenkeel.wait_for_tools(Era::Legacy, 2, STARTUP_TIMEOUT).await?;
        running.push((*subject, evenkeel, directory));
    }
    for era in Era::ALL {
        let path = format!("/{era}/0/mcp");
        let mut routes = vec![
            helper_route(BenchSubject::Direct, &upstream, &path, era),
            helper_route(BenchSubject::Floor, &floor, &path, era),
        ];
        routes.extend(running.iter().map(|(subject, evenkeel, _)| evenkeel_route(*subject, evenkeel, era)));
        one_caller(plan, era, "HTTP", &routes, report).await?;
        many_callers(plan, era, "HTTP", &routes, report).await?;
    }
    stop_all(running).await
}

/// Measures one round of calls to a server over stdio, in both eras.
pub async fn stdio(plan: &BenchPlan, report: &mut Report) -> Result<()> {
    for era in Era::ALL {
        let bridge = HelperProcess::start_measured(&role_args("bridge", era, load_core())).await?;
        let mut running = Vec::new();
        for (subject, program) in &plan.programs {
            let directory = BenchDirectory::new(bridge.address).await?;
            directory.declare_stdio(era).await?;
            let mut evenkeel = EvenkeelProcess::start(program, &directory).await?;
            evenkeel.wait_for_tools(era, 1, STARTUP_TIMEOUT).await?;
            running.push((*subject, evenkeel, directory));
        }
        let direct =
            CallRoute { subject: BenchSubject::Direct, target: None, tool: "echo".to_owned(), usage: None };
        let mut routes = vec![direct, helper_route(BenchSubject::Floor, &bridge, "/mcp", era)];
        routes.extend(running.iter().map(|(subject, evenkeel, _)| evenkeel_route(*subject, evenkeel, era)));
        one_caller(plan, era, "stdio", &routes, report).await?;
        // A stdio connection has one caller.
        routes.remove(0);
        many_callers(plan, era, "stdio", &routes, report).await?;
        stop_all(running).await?;
    }
    Ok(())
}

fn helper_route(subject: BenchSubject, helper: &HelperProcess, path: &str, era: Era) -> CallRoute {
    let target = McpTarget { address: helper.address, path: path.to_owned(), era };
    CallRoute { subject, target: Some(target), tool: "echo".to_owned(), usage: Some(helper.usage) }
}

fn evenkeel_route(subject: BenchSubject, evenkeel: &EvenkeelProcess, era: Era) -> CallRoute {
    let target = Some(evenkeel.target(era));
    CallRoute { subject, target, tool: tool_name(era, 0), usage: Some(evenkeel.usage) }
}

async fn stop_all(running: Vec<(BenchSubject, EvenkeelProcess, BenchDirectory)>) -> Result<()> {
    for (_, evenkeel, _directory) in running {
        evenkeel.stop().await?;
    }
    Ok(())
}
