use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::client::StatusClient;
use super::super::error::CommandError;
use super::super::instance::{Instance, InstanceArgs};
use super::super::output::{self, ProgressLine};
use super::super::runtime::block_on;
use super::object_arg::{
    ObjectArg, condition, conditions, is_current, object_name, report_unknown_name, text_at, value_at,
};
use super::watch_cache::WatchCache;
use crate::report::ObjectKind;
use crate::resource::{BoundedDuration, Reason};

/// How long a name that is not declared is waited for: a file that was just written takes a moment to be seen.
const UNKNOWN_NAME_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is asked whether everything required is ready, and whether the daemon is there.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long evenkeel may take, when the time is up, to say what is missing.
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// `--timeout`: up to a day.
type WaitDuration = BoundedDuration<1, 86_400_000>;

/// The arguments of `evenkeel wait`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    instance: InstanceArgs,
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
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = WaitDuration::parse)]
    timeout: WaitDuration,
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
    fn unmet_reason(&self, target: &ObjectArg, object: Option<&Value>) -> Option<String> {
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
                    let is_current = is_current(object, value_at(object, "/status"));
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
        let whose = args.instance.resolve()?;
        let end = Instant::now() + args.timeout.get();
        let mut silence = None;
        let waited = timeout_at(end + FINAL_REPORT_TIMEOUT, async {
            loop {
                silence = Some(connect_when_running(&whose, end).await?.unresponsive_error());
                let told = if args.required {
                    args.wait_until_ready(&whose, end).await
                } else {
                    args.wait_for_conditions(&whose, end).await
                };
                match told {
                    // It may be starting again.
                    Err(CommandError::Interrupted(_)) if Instant::now() < end => sleep(POLL_INTERVAL).await,
                    told => return told,
                }
            }
        });
        waited.await.unwrap_or_else(|_| {
            silence.iter().for_each(output::print_note);
            Err(args.timeout_error(std::iter::empty()))
        })
    })
}

/// Waits for the daemon itself: scripts start both at once.
async fn connect_when_running(whose: &Instance, end: Instant) -> Result<StatusClient, CommandError> {
    loop {
        match StatusClient::connect_if_running(whose).await {
            Ok(Some(client)) => return Ok(client),
            Ok(None) | Err(CommandError::Interrupted(_)) if Instant::now() < end => {
                sleep(POLL_INTERVAL).await
            }
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

    async fn wait_until_ready(&self, whose: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        let mut client = StatusClient::connect(whose).await?;
        loop {
            let answer = client
                .request(hyper::Method::GET, "/readyz?exclude=first-attempts", "text/plain", None)
                .await?;
            let Err(refused) = answer else { return Ok(()) };
            if Instant::now() >= end {
                return Err(self.timeout_error(refused.message.lines()));
            }
            progress.show(&format!("waiting: {}", refused.message.replace('\n', ", ")));
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn wait_for_conditions(&self, whose: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        progress.show("waiting for a look at the files");
        // What a file said before it was edited a moment ago is not what is waited for.
        let looked = timeout_at(end, StatusClient::connect(whose).await?.scan()).await;
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
                all_objects(&mirrors)
                    .filter(|(kind, _)| *kind == ObjectKind::Source)
                    .map(|(_, source)| source)
            };
            let in_the_way: Vec<_> = sources().filter_map(|source| self.source_blocker(source)).collect();
            let missing: Vec<_> =
                unseen.iter().cloned().chain(in_the_way).chain(self.unmet_reasons(&mirrors)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            progress.show(&format!("waiting: {}", missing.join(", ")));
            let stranger = self.first_undeclared(&mirrors).filter(|_| waits_for_names);
            if stranger.is_some() && patience.is_none() && sources().all(is_scanned) {
                patience = Some(Instant::now() + UNKNOWN_NAME_TIMEOUT);
            }
            let until = patience.filter(|_| stranger.is_some()).map_or(end, |patience| patience.min(end));
            let changed = futures_util::future::select_all(
                mirrors.iter_mut().map(|(_, mirror)| Box::pin(mirror.changed())),
            );
            let Ok((changed, ..)) = timeout_at(until, changed).await else {
                drop(progress);
                let Some(ObjectArg { kind, name }) = stranger else {
                    return Err(self.timeout_error(missing.iter().map(String::as_str)));
                };
                let mut client = StatusClient::connect(whose).await?;
                return Err(report_unknown_name(&mut client, *kind, name, self.namespace()).await);
            };
            changed?;
        }
    }

    /// Why a source stands in the way: nothing is known of what it declares, or not all that is declared.
    fn source_blocker(&self, source: &Value) -> Option<String> {
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
        is_in_the_way.then(|| format!("Source/{} is Ready={is} ({reason}): {message}", object_name(source)))
    }

    /// What is not reached, a sentence for each object.
    fn unmet_reasons(&self, mirrors: &[(ObjectKind, WatchCache)]) -> Vec<String> {
        if self.all {
            let declared = all_objects(mirrors).filter(|(kind, _)| *kind != ObjectKind::Source);
            let active = declared.filter(|(_, object)| *value_at(object, "/spec/suspend") != true);
            let missed = active.filter_map(|(kind, object)| {
                let target = ObjectArg { kind, name: object_name(object).to_owned() };
                self.goal.unmet_reason(&target, Some(object))
            });
            return missed.collect();
        }
        self.targets
            .iter()
            .filter_map(|target| self.goal.unmet_reason(target, self.find(target, mirrors)))
            .collect()
    }

    fn find<'a>(&self, target: &ObjectArg, mirrors: &'a [(ObjectKind, WatchCache)]) -> Option<&'a Value> {
        let namespace = self.namespace().filter(|_| target.kind.is_namespaced()).unwrap_or_default();
        mirrors.iter().find(|(kind, _)| *kind == target.kind)?.1.get(namespace, &target.name)
    }

    /// The first that is not declared at all.
    fn first_undeclared<'a>(&'a self, mirrors: &[(ObjectKind, WatchCache)]) -> Option<&'a ObjectArg> {
        self.targets.iter().find(|target| self.find(target, mirrors).is_none())
    }

    fn timeout_error<'a>(&self, missing: impl Iterator<Item = &'a str>) -> CommandError {
        for line in missing {
            output::print_note(&output::sanitize(line));
        }
        CommandError::Failed(format!("not within {}", self.timeout))
    }
}

fn all_objects(mirrors: &[(ObjectKind, WatchCache)]) -> impl Iterator<Item = (ObjectKind, &Value)> {
    mirrors.iter().flat_map(|(kind, mirror)| mirror.objects().map(|object| (*kind, object)))
}

/// True once a source has been read, or cannot be.
fn is_scanned(source: &Value) -> bool {
    condition(source, "Ready").is_some_and(|ready| text_at(ready, "/status") != "Unknown")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goal_parses_and_evaluates_conditions() {
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
            assert_eq!(goal.unmet_reason(&target, object.as_ref()).is_none(), reached, "{goal:?} {object:?}");
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
            let misses = Goal::parse(goal).unwrap().unmet_reason(&target, Some(&object));
            assert_eq!(misses.is_none(), reached, "{goal} {generation}: {misses:?}");
        }
        let why = ready.unmet_reason(&target, Some(&object("False", 1))).unwrap();
        assert_eq!(why, "McpServer/a is Ready=False (Exited): m");
    }
}
