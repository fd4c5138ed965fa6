use std::fmt::Write;

use tokio::time::timeout;

use super::super::client::{StatusClient, read_json};
use super::super::error::CommandError;
use super::super::instance::NamespacedInstanceArgs;
use super::super::output;
use super::super::query::report_unknown_name;
use super::super::runtime::block_on;
use super::wait_timeout::WaitTimeout;
use crate::admin::{RELOAD_SKILLS_PATH, SkillReload};
use crate::report::ObjectKind;

/// The arguments of `evenkeel skill reload`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: NamespacedInstanceArgs,
    /// Only these skills
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    wait: WaitTimeout,
}

/// Asks for a look at the files of skills and tells what came of it.
pub(super) fn reload(args: &Args) -> Result<(), CommandError> {
    block_on(args.run())
}

impl Args {
    async fn run(&self) -> Result<(), CommandError> {
        let mut client = StatusClient::connect(&self.target.instance.resolve()?).await?;
        let asked = async {
            let answer = client.post_and_wait(RELOAD_SKILLS_PATH).await?;
            read_json::<Vec<SkillReload>>(answer).await
        };
        let within = timeout(self.wait.timeout.get(), asked).await;
        let all = within.map_err(|_| CommandError::Failed(format!("not within {}", self.wait.timeout)))??;
        let skills: Vec<_> = all.iter().filter(|skill| skill.namespace == self.target.namespace).collect();
        if let Some(name) = self.names.iter().find(|name| skills.iter().all(|skill| skill.name != **name)) {
            return Err(report_unknown_name(
                &mut client,
                ObjectKind::Skill,
                name,
                Some(&self.target.namespace),
            )
            .await);
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
                    format!("{}: {}", problem.reason, output::sanitize_lines(&problem.message))
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
