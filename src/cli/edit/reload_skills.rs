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
    /// Skills to reload [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    wait: WaitTimeout,
}

/// Requests a scan of the files of skills and prints the result of each.
pub(super) fn reload(args: &Args) -> Result<(), CommandError> {
    block_on(args.run())
}

impl Args {
    async fn run(&self) -> Result<(), CommandError> {
        let mut client = StatusClient::connect(&self.target.instance.resolve()?).await?;
        let request = async {
            let response = client.post_and_wait(RELOAD_SKILLS_PATH).await?;
            read_json::<Vec<SkillReload>>(response).await
        };
        let scanned = timeout(self.wait.timeout.get(), request).await;
        let all =
            scanned.map_err(|_| CommandError::Failed(format!("timed out after {}", self.wait.timeout)))??;
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
        let (mut failed, mut total) = (0, 0);
        let mut text = String::new();
        for SkillReload { name, changed, problem, .. } in skills {
            if !self.names.is_empty() && !self.names.contains(name) {
                continue;
            }
            total += 1;
            let result = match problem {
                Some(problem) => {
                    failed += 1;
                    format!("{}: {}", problem.reason, output::sanitize_lines(&problem.message))
                }
                None if *changed => "changed".to_owned(),
                None => "unchanged".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {result}");
        }
        output::print(&text).map_err(CommandError::failed)?;
        if failed > 0 {
            Err(CommandError::Failed(format!("{failed} of {total} skills not accepted")))
        } else {
            Ok(())
        }
    }
}
