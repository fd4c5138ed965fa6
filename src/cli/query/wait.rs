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

/// The time to wait for a name that is not declared: a new file takes a moment to be read.
const UNKNOWN_NAME_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval of requests to /readyz, and of attempts to connect to the instance.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The time after the timeout for reading which objects are not ready.
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// `--timeout`: up to a day.
type WaitDuration = BoundedDuration<1, 86_400_000>;

/// The arguments of `evenkeel wait`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Objects to wait for: NAME for a server, KIND/NAME for any object
    #[arg(
        value_name = "[KIND/]NAME",
        value_parser = ObjectArg::parse,
        required_unless_present_any = ["required", "all"],
    )]
    targets: Vec<ObjectArg>,
    /// Condition to wait for: condition=TYPE, condition=TYPE=STATUS, or delete
    #[arg(long = "for", value_name = "WHAT", default_value = "condition=Ready", value_parser = Goal::parse)]
    goal: Goal,
    /// Wait until every server with `required: true` has been attached once, as reported by /readyz
    #[arg(long, conflicts_with_all = ["targets", "all", "goal"])]
    required: bool,
    /// Wait for every server and skill that is not suspended, and that can be used: an entry of .mcp.json may be of use
    /// to its agent only
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Maximum time to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = WaitDuration::parse)]
    timeout: WaitDuration,
    /// Namespace of the objects [default: default; with --all: all namespaces]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// The state to wait for.
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
        let condition = text.strip_prefix("condition=").filter(|condition| !condition.is_empty());
        let condition = condition.ok_or("expected condition=TYPE, condition=TYPE=STATUS or delete")?;
        let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
        // As in kubectl, the comparison ignores case.
        Ok(Self::Condition { kind: kind.to_owned(), status: status.to_owned() })
    }

    /// Returns the reason why an object has not reached this state; `None` if it has.
    fn unmet_reason(&self, target: &ObjectArg, object: Option<&Value>) -> Option<String> {
        let name_text = format!("{}/{}", target.kind.name(), target.name);
        match (self, object) {
            (Self::Delete, None) => None,
            (Self::Delete, Some(_)) => Some(format!("{name_text} is still declared")),
            (Self::Condition { .. }, None) => Some(format!("{name_text} is not declared")),
            (Self::Condition { kind, status }, Some(object)) => {
                let found = conditions(object)
                    .iter()
                    .find(|found| text_at(found, "/type").eq_ignore_ascii_case(kind));
                let Some(found) = found else {
                    // These two conditions exist only while they are true.
                    let absent =
                        ["Stalled", "Reconciling"].iter().any(|name| name.eq_ignore_ascii_case(kind));
                    let is_false = absent && status.eq_ignore_ascii_case("False");
                    let is_current = is_current(object, value_at(object, "/status"));
                    return (!is_false || !is_current)
                        .then(|| format!("{name_text} has no condition {kind}"));
                };
                let actual = text_at(found, "/status");
                if actual.eq_ignore_ascii_case(status) && is_current(object, found) {
                    return None;
                }
                let [kind, reason, message] = ["/type", "/reason", "/message"].map(|key| text_at(found, key));
                Some(format!("{name_text} is {kind}={actual} ({reason}): {message}"))
            }
        }
    }
}

/// Waits until all objects reach a state.
pub(in crate::cli) fn wait(args: &Args) -> Result<(), CommandError> {
    block_on(async {
        let instance = args.instance.resolve()?;
        let end = Instant::now() + args.timeout.get();
        let mut unresponsive = None;
        let result_or_timeout = timeout_at(end + FINAL_REPORT_TIMEOUT, async {
            loop {
                unresponsive = Some(connect_when_running(&instance, end).await?.unresponsive_error());
                let result = if args.required {
                    args.wait_until_ready(&instance, end).await
                } else {
                    args.wait_for_conditions(&instance, end).await
                };
                match result {
                    // The instance may be restarting.
                    Err(CommandError::Interrupted(_)) if Instant::now() < end => sleep(POLL_INTERVAL).await,
                    result => return result,
                }
            }
        });
        result_or_timeout.await.unwrap_or_else(|_| {
            unresponsive.iter().for_each(output::print_note);
            Err(args.timeout_error(std::iter::empty()))
        })
    })
}

/// Waits until the instance is running: scripts start both at once.
async fn connect_when_running(instance: &Instance, end: Instant) -> Result<StatusClient, CommandError> {
    loop {
        match StatusClient::connect_if_running(instance).await {
            Ok(Some(client)) => return Ok(client),
            Ok(None) | Err(CommandError::Interrupted(_)) if Instant::now() < end => {
                sleep(POLL_INTERVAL).await;
            }
            Ok(None) => return StatusClient::connect(instance).await,
            Err(failure) => return Err(failure),
        }
    }
}

impl Args {
    /// Returns the namespace; `None` for all namespaces.
    fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().or((!self.all).then_some("default"))
    }

    async fn wait_until_ready(&self, instance: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        let mut client = StatusClient::connect(instance).await?;
        loop {
            let response = client
                .request(hyper::Method::GET, "/readyz?exclude=first-attempts", "text/plain", None)
                .await?;
            let Err(not_ready) = response else { return Ok(()) };
            if Instant::now() >= end {
                return Err(self.timeout_error(not_ready.message.lines()));
            }
            progress.show(&format!("waiting: {}", not_ready.message.replace('\n', ", ")));
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn wait_for_conditions(&self, instance: &Instance, end: Instant) -> Result<(), CommandError> {
        let mut progress = ProgressLine::default();
        progress.show("waiting for a scan of the files");
        // Scan first: the status may be that of a file before its last edit.
        let scan_result = timeout_at(end, StatusClient::connect(instance).await?.scan()).await;
        let not_scanned = match scan_result {
            Ok(result) => result.map(|()| None)?,
            Err(_) => Some("evenkeel has not scanned the files yet".to_owned()),
        };
        let mut caches = Vec::new();
        for kind in ObjectKind::ALL {
            let is_selected = if self.all {
                kind != ObjectKind::Source
            } else {
                self.targets.iter().any(|target| target.kind == kind)
            };
            if is_selected || kind == ObjectKind::Source {
                caches.push((kind, WatchCache::open(instance, kind, self.namespace()).await?));
            }
        }
        let needs_declaration = matches!(self.goal, Goal::Condition { .. });
        let mut unknown_name_deadline = None;
        loop {
            let sources = || {
                all_objects(&caches).filter(|(kind, _)| *kind == ObjectKind::Source).map(|(_, source)| source)
            };
            let blockers: Vec<_> = sources().filter_map(|source| self.source_blocker(source)).collect();
            let unmet: Vec<_> =
                not_scanned.iter().cloned().chain(blockers).chain(self.unmet_reasons(&caches)).collect();
            if unmet.is_empty() {
                drop(progress);
                let unusable = all_objects(&caches).filter(|(kind, object)| is_unusable(*kind, object));
                for (kind, object) in unusable.filter(|_| self.all) {
                    let accepted = condition(object, "Accepted").cloned().unwrap_or_default();
                    let (kind, name, reason) =
                        (kind.name(), object_name(object), text_at(&accepted, "/reason"));
                    output::print_note(&format!(
                        "{kind}/{name} cannot be used ({reason}); it is not waited for"
                    ));
                }
                return Ok(());
            }
            progress.show(&format!("waiting: {}", unmet.join(", ")));
            let undeclared = self.first_undeclared(&caches).filter(|_| needs_declaration);
            if undeclared.is_some() && unknown_name_deadline.is_none() && sources().all(is_scanned) {
                unknown_name_deadline = Some(Instant::now() + UNKNOWN_NAME_TIMEOUT);
            }
            let deadline = unknown_name_deadline
                .filter(|_| undeclared.is_some())
                .map_or(end, |deadline| deadline.min(end));
            let changed = futures_util::future::select_all(
                caches.iter_mut().map(|(_, cache)| Box::pin(cache.changed())),
            );
            let Ok((changed, ..)) = timeout_at(deadline, changed).await else {
                drop(progress);
                let Some(ObjectArg { kind, name }) = undeclared else {
                    return Err(self.timeout_error(unmet.iter().map(String::as_str)));
                };
                let mut client = StatusClient::connect(instance).await?;
                return Err(report_unknown_name(&mut client, *kind, name, self.namespace()).await);
            };
            changed?;
        }
    }

    /// Returns the reason why a source blocks the wait: it is not read yet, or not completely.
    fn source_blocker(&self, source: &Value) -> Option<String> {
        let ready = condition(source, "Ready").cloned().unwrap_or_default();
        let [status, reason, message] = ["/status", "/reason", "/message"].map(|key| text_at(&ready, key));
        let is_blocker = match status {
            "True" => false,
            "False" => {
                let unavailable = reason == Reason::SourceUnavailable.to_string();
                self.all || unavailable && self.goal == Goal::Delete
            }
            _ => true,
        };
        is_blocker.then(|| format!("Source/{} is Ready={status} ({reason}): {message}", object_name(source)))
    }

    /// Returns the reason for each object that has not reached the state.
    fn unmet_reasons(&self, caches: &[(ObjectKind, WatchCache)]) -> Vec<String> {
        if self.all {
            let declared = all_objects(caches).filter(|(kind, _)| *kind != ObjectKind::Source);
            let active = declared.filter(|(kind, object)| {
                *value_at(object, "/spec/suspend") != true && !is_unusable(*kind, object)
            });
            let unmet = active.filter_map(|(kind, object)| {
                let target = ObjectArg { kind, name: object_name(object).to_owned() };
                self.goal.unmet_reason(&target, Some(object))
            });
            return unmet.collect();
        }
        self.targets
            .iter()
            .filter_map(|target| self.goal.unmet_reason(target, self.find(target, caches)))
            .collect()
    }

    fn find<'a>(&self, target: &ObjectArg, caches: &'a [(ObjectKind, WatchCache)]) -> Option<&'a Value> {
        let namespace = self.namespace().filter(|_| target.kind.is_namespaced()).unwrap_or_default();
        caches.iter().find(|(kind, _)| *kind == target.kind)?.1.get(namespace, &target.name)
    }

    /// Returns the first target that is not declared.
    fn first_undeclared<'a>(&'a self, caches: &[(ObjectKind, WatchCache)]) -> Option<&'a ObjectArg> {
        self.targets.iter().find(|target| self.find(target, caches).is_none())
    }

    fn timeout_error<'a>(&self, unmet: impl Iterator<Item = &'a str>) -> CommandError {
        for line in unmet {
            output::print_note(&output::sanitize(line));
        }
        CommandError::Failed(format!("timed out after {}", self.timeout))
    }
}

fn all_objects(caches: &[(ObjectKind, WatchCache)]) -> impl Iterator<Item = (ObjectKind, &Value)> {
    caches.iter().flat_map(|(kind, cache)| cache.objects().map(|object| (*kind, object)))
}

/// True for a server whose declaration cannot be used. If that is a fault of its file, the source is not ready; the file
/// of an agent may hold entries that only the agent can use.
fn is_unusable(kind: ObjectKind, object: &Value) -> bool {
    let unusable = [Reason::InvalidSpec, Reason::UnsupportedTransport].map(|reason| reason.to_string());
    kind == ObjectKind::McpServer
        && condition(object, "Accepted").is_some_and(|accepted| {
            text_at(accepted, "/status") == "False"
                && unusable.iter().any(|reason| reason == text_at(accepted, "/reason"))
        })
}

/// True once a source has been read, or has failed to be read.
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
        let deleted = Goal::parse("delete").unwrap();
        for invalid in ["", "condition=", "Ready", "jsonpath=x"] {
            assert!(Goal::parse(invalid).is_err(), "{invalid}");
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
            (&deleted, Some(object("True", 1)), false),
            (&deleted, None, true),
        ] {
            assert_eq!(goal.unmet_reason(&target, object.as_ref()).is_none(), reached, "{goal:?} {object:?}");
        }
        // Conditions that exist only while they are true.
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
        let reason_text = ready.unmet_reason(&target, Some(&object("False", 1))).unwrap();
        assert_eq!(reason_text, "McpServer/a is Ready=False (Exited): m");
    }
}
