use std::fmt::Write;

use tokio::time::timeout;

use super::super::client::{StatusClient, json};
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output;
use super::super::query::unknown_to;
use super::super::runtime::block_on;
use super::limit::WaitTimeout;
use crate::admin::{RELOAD_SKILLS, SkillReload};
use crate::report::ObjectKind;

/// The arguments of `evenkeel skill reload`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    within: NamespacedInstanceArgs,
    /// Only these skills
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    limit: WaitTimeout,
}

/// Asks for a look at the files of skills and tells what came of it.
pub(super) fn reload(args: &Args) -> Result<(), CommandError> {
    block_on(args.run())
}

impl Args {
    async fn run(&self) -> Result<(), CommandError> {
        let mut client = StatusClient::connect(&self.within.which.whose()?).await?;
        let asked = async {
            let answer = client.work(RELOAD_SKILLS).await?;
            json::<Vec<SkillReload>>(answer).await
        };
        let within = timeout(self.limit.timeout.get(), asked).await;
        let all =
            within.map_err(|_| CommandError::Failed(format!("not within {}", self.limit.timeout)))??;
        let skills: Vec<_> = all.iter().filter(|skill| skill.namespace == self.within.namespace).collect();
        if let Some(name) = self.names.iter().find(|name| skills.iter().all(|skill| skill.name != **name)) {
            return Err(unknown_to(&mut client, ObjectKind::Skill, name, Some(&self.within.namespace)).await);
        }
        let mut failed = 0;
        let mut text = String::new();
        for SkillReload { name, changed, problem, .. } in skills {
            if !self.names.is_empty() && !self.names.contains(name) {
                continue;
            }
            let told = match problem {
                Some(problem) => {
                    failed += 1;
                    format!("{}: {}", problem.reason, output::printable_lines(&problem.message))
                }
                None if *changed => "changed".to_owned(),
                None => "unchanged".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {told}");
        }
        output::print(&text).map_err(CommandError::failed)?;
        if failed > 0 { Err(CommandError::Failed(format!("{failed} not accepted"))) } else { Ok(()) }
    }
}
