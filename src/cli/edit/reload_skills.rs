use std::fmt::Write;

use tokio::time::timeout;

use super::super::ask::unknown_to;
use super::super::client::{Client, json};
use super::super::failure::Failure;
use super::super::output;
use super::super::runtime::block_on;
use super::super::which::Within;
use super::limit::Limit;
use crate::admin::{RELOAD_SKILLS, Reloaded};
use crate::report::Kind;

/// The arguments of `evenkeel skill reload`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    within: Within,
    /// Only these skills
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    limit: Limit,
}

/// Asks for a look at the files of skills and tells what came of it.
pub(super) fn reload(args: &Args) -> Result<(), Failure> {
    block_on(args.run())
}

impl Args {
    async fn run(&self) -> Result<(), Failure> {
        let mut client = Client::connect(&self.within.which.whose()?).await?;
        let asked = async {
            let answer = client.work(RELOAD_SKILLS).await?;
            json::<Vec<Reloaded>>(answer).await
        };
        let within = timeout(self.limit.timeout.get(), asked).await;
        let all = within.map_err(|_| Failure::Failed(format!("not within {}", self.limit.timeout)))??;
        let skills: Vec<_> = all.iter().filter(|skill| skill.namespace == self.within.namespace).collect();
        if let Some(name) = self.names.iter().find(|name| skills.iter().all(|skill| skill.name != **name)) {
            return Err(unknown_to(&mut client, Kind::Skill, name, Some(&self.within.namespace)).await);
        }
        let mut failed = 0;
        let mut text = String::new();
        for Reloaded { name, changed, problem, .. } in skills {
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
        output::print(&text).map_err(Failure::failed)?;
        if failed > 0 { Err(Failure::Failed(format!("{failed} not accepted"))) } else { Ok(()) }
    }
}
