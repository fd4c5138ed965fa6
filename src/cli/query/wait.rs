use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::{Instance, InstanceArgs};
use super::super::output::{self, ProgressLine};
use super::super::runtime::block_on;
use super::object_arg::{ObjectArg, at, condition, conditions, is_current, name_of, text_at, unknown_to};
use super::watch_cache::WatchCache;
use crate::report::ObjectKind;
use crate::resource::{BoundedDuration, Reason};

/// How long a name that is not declared is waited for: a file that was just written takes a moment to be seen.
const UNKNOWN: Duration = Duration::from_secs(3);
/// How often it is asked whether everything required is ready, and whether the daemon is there.
const PAUSE: Duration = Duration::from_millis(100);
/// How long evenkeel may take, when the time is up, to say what is missing.
const LAST_WORD: Duration = Duration::from_secs(2);

/// `--timeout`: up to a day.
type Limit = BoundedDuration<1, 86_400_000>;

/// The arguments of `evenkeel wait`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    which: InstanceArgs,
    /// What is waited for: NAME is a server, KIND/NAME any object
    #[arg(value_name = "[KIND/]NAME", value_parser = ObjectArg::parse, required_unless_present_any = ["required", "all"])]
    targets: Vec<ObjectArg>,
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
    /// In this namespace [default: `default`; of --all, every one]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
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
    fn misses(&self, target: &ObjectArg, object: Option<&Value>) -> Option<String> {
        let who = format!("{}/{}", target.kind.name(), target.name);
        match (self, object) {
            (Self::Delete, None) => None,
            (Self::Delete, Some(_)) => Some(format!("{who} is still declared")),
            (Self::Condition { .. }, None) => Some(format!("{who} is not declared")),
            (Self::Condition { kind, status }, Some(object)) => {
                let found = conditions(object)
                    .iter()
                    .find(|found| text_at(found, "/type").eq_ignore_ascii_case(kind));
                let Some(found) = found else {
                    // These two are there while they are true.
                    let absent =
                        ["Stalled", "Reconciling"].iter().any(|name| name.eq_ignore_ascii_case(kind));
                    let is_false = absent && status.eq_ignore_ascii_case("False");
                    let is_current = is_current(object, at(object, "/status"));
                    return (!is_false || !is_current).then(|| format!("{who} has no condition {kind}"));
                };
                let is = text_at(found, "/status");
                if is.eq_ignore_ascii_case(status) && is_current(object, found) {
                    return None;
                }
                let [kind, reason, message] = ["/type", "/reason", "/message"].map(|key| text_at(found, key));
                Some(format!("{who} is {kind}={is} ({reason}): {message}"))
            }
        }
    }
}

/// Waits until something holds.
pub(in crate::cli) fn wait(args: &Args) -> Result<(), CommandError> {
    block_on(async {
        let whose = args.which.whose()?;
        let end = Instant::now() + args.timeout.get();
        let mut silence = None;
        let waited = timeout_at(end + LAST_WORD, async {
            loop {
                silence = Some(daemon(&whose, end).await?.silence());
                let told = if args.required {
                    args.required(&whose, end).await
                } else {
                    args.conditions(&whose, end).await
                };
                match told {
                    // It may be starting again.
                    Err(CommandError::Interrupted(_)) if Instant::now() < end => sleep(PAUSE).await,
                    told => return told,
                }
            }
        });
        waited.await.unwrap_or_else(|_| {
            silence.iter().for_each(output::note);
            Err(args.gave_up(std::iter::empty()))
        })
    })
}

/// Waits for the daemon itself: scripts start both at once.
async fn daemon(whose: &Instance, end: Instant) -> Result<StatusClient, CommandError> {
    loop {
        match StatusClient::find(whose).await {
            Ok(Some(client)) => return Ok(client),
            Ok(None) | Err(CommandError::Interrupted(_)) if Instant::now() < end => sleep(PAUSE).await,
            Ok(None) => return StatusClient::connect(whose).await,
            Err(failure) => return Err(failure),
        }
    }
}

impl Args {
    /// `None` means every namespace.
    fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().or((!self.all).then_some("default"))
    }

    async fn required(&self, whose: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        let mut client = StatusClient::connect(whose).await?;
        loop {
            let answer =
                client.ask(hyper::Method::GET, "/readyz?exclude=first-attempts", "text/plain", None).await?;
            let Err(refused) = answer else { return Ok(()) };
            if Instant::now() >= end {
                return Err(self.gave_up(refused.message.lines()));
            }
            progress.show(&format!("waiting: {}", refused.message.replace('\n', ", ")));
            sleep(PAUSE).await;
        }
    }

    async fn conditions(&self, whose: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        progress.show("waiting for a look at the files");
        // What a file said before it was edited a moment ago is not what is waited for.
        let looked = timeout_at(end, StatusClient::connect(whose).await?.look()).await;
        let unseen = match looked {
            Ok(looked) => looked.map(|()| None)?,
            Err(_) => Some("evenkeel has not looked at the files yet".to_owned()),
        };
        let mut mirrors = Vec::new();
        for kind in ObjectKind::ALL {
            let is_asked = if self.all {
                kind != ObjectKind::Source
            } else {
                self.targets.iter().any(|target| target.kind == kind)
            };
            if is_asked || kind == ObjectKind::Source {
                mirrors.push((kind, WatchCache::open(whose, kind, self.namespace()).await?));
            }
        }
        let waits_for_names = matches!(self.goal, Goal::Condition { .. });
        let mut patience = None;
        loop {
            let sources = || {
                objects(&mirrors).filter(|(kind, _)| *kind == ObjectKind::Source).map(|(_, source)| source)
            };
            let in_the_way: Vec<_> = sources().filter_map(|source| self.in_the_way(source)).collect();
            let missing: Vec<_> =
                unseen.iter().cloned().chain(in_the_way).chain(self.missing(&mirrors)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            progress.show(&format!("waiting: {}", missing.join(", ")));
            let stranger = self.stranger(&mirrors).filter(|_| waits_for_names);
            if stranger.is_some() && patience.is_none() && sources().all(is_known) {
                patience = Some(Instant::now() + UNKNOWN);
            }
            let until = patience.filter(|_| stranger.is_some()).map_or(end, |patience| patience.min(end));
            let changed = futures_util::future::select_all(
                mirrors.iter_mut().map(|(_, mirror)| Box::pin(mirror.changed())),
            );
            let Ok((changed, ..)) = timeout_at(until, changed).await else {
                drop(progress);
                let Some(ObjectArg { kind, name }) = stranger else {
                    return Err(self.gave_up(missing.iter().map(String::as_str)));
                };
                let mut client = StatusClient::connect(whose).await?;
                return Err(unknown_to(&mut client, *kind, name, self.namespace()).await);
            };
            changed?;
        }
    }

    /// Why a source stands in the way: nothing is known of what it declares, or not all that is declared.
    fn in_the_way(&self, source: &Value) -> Option<String> {
        let ready = condition(source, "Ready").cloned().unwrap_or_default();
        let [is, reason, message] = ["/status", "/reason", "/message"].map(|key| text_at(&ready, key));
        let is_in_the_way = match is {
            "True" => false,
            "False" => {
                let unavailable = reason == Reason::SourceUnavailable.to_string();
                self.all || unavailable && self.goal == Goal::Delete
            }
            _ => true,
        };
        is_in_the_way.then(|| format!("Source/{} is Ready={is} ({reason}): {message}", name_of(source)))
    }

    /// What is not reached, a sentence for each object.
    fn missing(&self, mirrors: &[(ObjectKind, WatchCache)]) -> Vec<String> {
        if self.all {
            let declared = objects(mirrors).filter(|(kind, _)| *kind != ObjectKind::Source);
            let active = declared.filter(|(_, object)| *at(object, "/spec/suspend") != true);
            let missed = active.filter_map(|(kind, object)| {
                let target = ObjectArg { kind, name: name_of(object).to_owned() };
                self.goal.misses(&target, Some(object))
            });
            return missed.collect();
        }
        self.targets
            .iter()
            .filter_map(|target| self.goal.misses(target, self.find(target, mirrors)))
            .collect()
    }

    fn find<'a>(&self, target: &ObjectArg, mirrors: &'a [(ObjectKind, WatchCache)]) -> Option<&'a Value> {
        let namespace = self.namespace().filter(|_| target.kind.namespaced()).unwrap_or_default();
        mirrors.iter().find(|(kind, _)| *kind == target.kind)?.1.get(namespace, &target.name)
    }

    /// The first that is not declared at all.
    fn stranger<'a>(&'a self, mirrors: &[(ObjectKind, WatchCache)]) -> Option<&'a ObjectArg> {
        self.targets.iter().find(|target| self.find(target, mirrors).is_none())
    }

    fn gave_up<'a>(&self, missing: impl Iterator<Item = &'a str>) -> CommandError {
        for line in missing {
            output::note(&output::printable(line));
        }
        CommandError::Failed(format!("not within {}", self.timeout))
    }
}

fn objects(mirrors: &[(ObjectKind, WatchCache)]) -> impl Iterator<Item = (ObjectKind, &Value)> {
    mirrors.iter().flat_map(|(kind, mirror)| mirror.objects().map(|object| (*kind, object)))
}

/// True once a source has been read, or cannot be.
fn is_known(source: &Value) -> bool {
    condition(source, "Ready").is_some_and(|ready| text_at(ready, "/status") != "Unknown")
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
        let target = ObjectArg::parse("a").unwrap();
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
        // What is absent while it is not true.
        for (goal, generation, reached) in [
            ("condition=Stalled=False", 1, true),
            ("condition=reconciling=false", 1, true),
            ("condition=Stalled=False", 2, false),
            ("condition=Stalled", 1, false),
            ("condition=Attached=False", 1, false),
        ] {
            let mut object = object("True", generation);
            object["status"]["observedGeneration"] = 1.into();
            let misses = Goal::parse(goal).unwrap().misses(&target, Some(&object));
            assert_eq!(misses.is_none(), reached, "{goal} {generation}: {misses:?}");
        }
        let why = ready.misses(&target, Some(&object("False", 1))).unwrap();
        assert_eq!(why, "McpServer/a is Ready=False (Exited): m");
    }
}
