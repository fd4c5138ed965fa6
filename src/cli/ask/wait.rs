use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::client::Client;
use super::super::output::{self, Progress};
use super::super::which::{Which, Whose};
use super::super::{Failure, block_on};
use super::mirror::Mirror;
use super::target::{Target, at, conditions, name_of, text_at, unknown};
use crate::report::Kind;
use crate::resource::Bounded;

/// How long a name that is not declared is waited for: a file that was just written takes a moment to be seen.
const UNKNOWN: Duration = Duration::from_secs(3);
/// How often it is asked whether everything required is ready, and whether the daemon is there.
const PAUSE: Duration = Duration::from_millis(100);

/// `--timeout`: up to a day.
type Limit = Bounded<1, 86_400_000>;

/// The arguments of `evenkeel wait`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    which: Which,
    /// What is waited for: NAME is a server, KIND/NAME any object
    #[arg(value_name = "[KIND/]NAME", value_parser = Target::parse, required_unless_present_any = ["required", "all"])]
    targets: Vec<Target>,
    /// condition=TYPE, condition=TYPE=STATUS, or delete
    #[arg(long = "for", value_name = "WHAT", default_value = "condition=Ready", value_parser = Goal::parse)]
    goal: Goal,
    /// Until every server with `required: true` has been attached once, as /readyz tells it
    #[arg(long, conflicts_with_all = ["targets", "all", "goal"])]
    required: bool,
    /// For every server and skill that is not suspended
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Give up after this
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = Limit::parse)]
    timeout: Limit,
    /// In this namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    Condition { kind: String, status: String },
    Delete,
}

impl Goal {
    fn parse(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("delete") {
            return Ok(Self::Delete);
        }
        let wanted = text.strip_prefix("condition=").filter(|wanted| !wanted.is_empty());
        let wanted = wanted.ok_or("say condition=TYPE, condition=TYPE=STATUS or delete")?;
        let (kind, status) = wanted.split_once('=').unwrap_or((wanted, "True"));
        // As kubectl does it, large and small letters are alike.
        Ok(Self::Condition { kind: kind.to_owned(), status: status.to_owned() })
    }

    /// `None` if it is reached, else why not.
    fn misses(&self, target: &Target, object: Option<&Value>) -> Option<String> {
        let who = format!("{}/{}", target.kind.name(), target.name);
        match (self, object) {
            (Self::Delete, None) => None,
            (Self::Delete, Some(_)) => Some(format!("{who} is still declared")),
            (Self::Condition { .. }, None) => Some(format!("{who} is not declared")),
            (Self::Condition { kind, status }, Some(object)) => {
                // What was said of an earlier generation says nothing of this one.
                let generation = at(object, "/metadata/generation").as_i64();
                let found = conditions(object)
                    .iter()
                    .find(|found| text_at(found, "/type").eq_ignore_ascii_case(kind));
                let Some(found) = found else { return Some(format!("{who} has no condition {kind}")) };
                let is = text_at(found, "/status");
                let old = at(found, "/observedGeneration").as_i64() < generation;
                if is.eq_ignore_ascii_case(status) && !old {
                    return None;
                }
                let [kind, reason, message] = ["/type", "/reason", "/message"].map(|key| text_at(found, key));
                Some(format!("{who} is {kind}={is} ({reason}): {message}"))
            }
        }
    }
}

/// Waits until something holds.
pub(in crate::cli) fn wait(args: &Args) -> Result<(), Failure> {
    block_on(async {
        let whose = args.which.whose()?;
        let end = Instant::now() + args.timeout.get();
        daemon(&whose, end).await?;
        if args.required { args.required(&whose, end).await } else { args.conditions(&whose, end).await }
    })
}

/// Waits for the daemon itself: scripts start both at once.
async fn daemon(whose: &Whose, end: Instant) -> Result<(), Failure> {
    while Client::find(whose).await?.is_none() {
        if Instant::now() >= end {
            return Client::connect(whose).await.map(drop);
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

impl Args {
    async fn required(&self, whose: &Whose, end: Instant) -> Result<(), Failure> {
        let mut progress = Progress::default();
        let mut client = Client::connect(whose).await?;
        loop {
            let answer = client.ask(hyper::Method::GET, "/readyz", "text/plain", None).await?;
            let Err(refused) = answer else { return Ok(()) };
            if Instant::now() >= end {
                return Err(self.gave_up(refused.message.lines()));
            }
            progress.show(&format!("waiting for {}", refused.message.replace('\n', ", ")));
            sleep(PAUSE).await;
        }
    }

    async fn conditions(&self, whose: &Whose, end: Instant) -> Result<(), Failure> {
        let mut progress = Progress::default();
        let kinds: &[Kind] = if self.all { &[Kind::McpServer, Kind::Skill] } else { &Kind::ALL };
        let mut mirrors = Vec::new();
        for kind in kinds {
            if self.all || self.targets.iter().any(|target| target.kind == *kind) {
                let namespace = (!self.all).then_some(&*self.namespace);
                mirrors.push((*kind, Mirror::open(whose, *kind, namespace).await?));
            }
        }
        let patience = Instant::now() + UNKNOWN;
        let waits_for_names = matches!(self.goal, Goal::Condition { .. });
        loop {
            let missing = self.missing(&mirrors);
            if missing.is_empty() {
                return Ok(());
            }
            progress.show(&format!("waiting for {}", missing.join(", ")));
            let stranger = self.stranger(&mirrors).filter(|_| waits_for_names);
            let until = if stranger.is_some() { end.min(patience) } else { end };
            let changed = futures_util::future::select_all(
                mirrors.iter_mut().map(|(_, mirror)| Box::pin(mirror.changed())),
            );
            let Ok((changed, ..)) = timeout_at(until, changed).await else {
                drop(progress);
                return Err(stranger.unwrap_or_else(|| self.gave_up(missing.iter().map(String::as_str))));
            };
            changed?;
        }
    }

    /// What is not reached, a sentence for each object.
    fn missing(&self, mirrors: &[(Kind, Mirror)]) -> Vec<String> {
        if self.all {
            let objects =
                mirrors.iter().flat_map(|(kind, mirror)| mirror.objects().map(|object| (*kind, object)));
            let active = objects.filter(|(_, object)| *at(object, "/spec/suspend") != true);
            let missed = active.filter_map(|(kind, object)| {
                let target = Target { kind, name: name_of(object).to_owned() };
                self.goal.misses(&target, Some(object))
            });
            return missed.collect();
        }
        self.targets
            .iter()
            .filter_map(|target| self.goal.misses(target, self.find(target, mirrors)))
            .collect()
    }

    fn find<'a>(&self, target: &Target, mirrors: &'a [(Kind, Mirror)]) -> Option<&'a Value> {
        let namespace = if target.kind.namespaced() { &*self.namespace } else { "" };
        mirrors.iter().find(|(kind, _)| *kind == target.kind)?.1.get(namespace, &target.name)
    }

    /// The first that is not declared at all.
    fn stranger(&self, mirrors: &[(Kind, Mirror)]) -> Option<Failure> {
        let target = self.targets.iter().find(|target| self.find(target, mirrors).is_none())?;
        let (_, mirror) = mirrors.iter().find(|(kind, _)| *kind == target.kind)?;
        Some(unknown(target.kind, &target.name, &self.namespace, mirror.objects().map(name_of)))
    }

    fn gave_up<'a>(&self, missing: impl Iterator<Item = &'a str>) -> Failure {
        for line in missing {
            output::note(&super::table::printable(line));
        }
        Failure::Failed(format!("not within {}", self.timeout))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals_are_read_and_judged() {
        let ready = Goal::parse("condition=Ready").unwrap();
        let not = Goal::parse("condition=ready=false").unwrap();
        let gone = Goal::parse("delete").unwrap();
        for wrong in ["", "condition=", "Ready", "jsonpath=x"] {
            assert!(Goal::parse(wrong).is_err(), "{wrong}");
        }
        let object = |status: &str, generation: i64| {
            json!({ "metadata": { "generation": generation }, "status": { "conditions": [{
                "type": "Ready", "status": status, "reason": "Exited", "message": "m", "observedGeneration": 1,
            }] } })
        };
        let target = Target::parse("a").unwrap();
        for (goal, object, reached) in [
            (&ready, Some(object("True", 1)), true),
            (&ready, Some(object("True", 2)), false),
            (&ready, Some(object("False", 1)), false),
            (&ready, None, false),
            (&not, Some(object("False", 1)), true),
            (&gone, Some(object("True", 1)), false),
            (&gone, None, true),
        ] {
            assert_eq!(goal.misses(&target, object.as_ref()).is_none(), reached, "{goal:?} {object:?}");
        }
        let why = ready.misses(&target, Some(&object("False", 1))).unwrap();
        assert_eq!(why, "McpServer/a is Ready=False (Exited): m");
    }
}
