use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::client::Client;
use super::which::Whose;
use super::{Failure, dirs, output};
use crate::admin::{DECLARED, Declaration, InForce};
use crate::plan::{Change, Parts};
use crate::resource::{Base, DigestKey, McpServerSpec, ObjectKey, Problem, Reason};
use crate::source::directory::{Against, Checked, check_directory};
use crate::source::{Declared, Origin, Policy};
use crate::state::StateDir;

/// The arguments of `evenkeel plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The declarations to plan for [default: $`XDG_CONFIG_HOME`/evenkeel]
    #[arg(env = "EVENKEEL_DIR")]
    dir: Option<PathBuf>,
    /// The directory that evenkeel runs on, if DIR is another copy of it
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// How the plan is printed
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints what the declarations would change in the fleet that runs, and changes nothing.
pub(super) fn plan(args: &Args) -> Result<(), Failure> {
    let dir = dirs::declarations(args.dir.clone())?;
    let running = match &args.against {
        Some(other) => dirs::spelled(other)?,
        None => dir.clone(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let (in_force, key) = match runtime.block_on(ask(&running))? {
        Some(in_force) => {
            let state = StateDir::open(&dirs::state_home()?, &running).map_err(Failure::failed)?;
            (Some(in_force), state.key("digests").map_err(Failure::failed)?.to_vec())
        }
        None => (None, Vec::new()),
    };
    let key = DigestKey::new(&key);
    let allowed = in_force.as_ref().and_then(|in_force| in_force.allowed.as_ref());
    let policy = allowed
        .map_or(Ok(Policy::everything()), |allowed| Policy::only(&allowed.commands, &allowed.variables));
    let policy = policy.map_err(Failure::failed)?;
    let root = in_force.as_ref().and_then(|in_force| in_force.root.clone());
    // Where the processes will run, not where this copy of the declarations is.
    let base = Base { root: root.unwrap_or_else(|| running.clone()), home: policy.home().map(Into::into) };
    let against = Against { secrets: None, environment: dirs::environment(), key: key.clone(), policy };
    let checked = check_directory(&dir, &against)
        .map_err(|error| Failure::Failed(format!("{}: {error}", dir.display())))?;
    let mut plan =
        Plan { against: in_force.is_some().then(|| running.display().to_string()), ..Plan::default() };
    plan.fill(&checked, in_force.unwrap_or_default(), &key, Some(&base));
    let text = match args.output {
        Format::Text => plan.text(&running),
        Format::Json => serde_json::to_string_pretty(&plan).map_err(Failure::failed)? + "\n",
    };
    output::print(&text).map_err(Failure::failed)
}

async fn ask(running: &Path) -> Result<Option<InForce>, Failure> {
    match Client::find(&Whose::Directory(running.to_path_buf())).await? {
        Some(mut daemon) => Ok(Some(daemon.get(DECLARED).await?)),
        None => Ok(None),
    }
}

/// What is printed; as JSON, part of the interface.
#[derive(Debug, Default, Serialize)]
struct Plan {
    against: Option<String>,
    add: usize,
    change: usize,
    remove: usize,
    unchanged: usize,
    held: usize,
    steps: Vec<Planned>,
}

/// What becomes of one object.
#[derive(Debug, Serialize)]
struct Planned {
    kind: &'static str,
    namespace: String,
    name: String,
    action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Plan {
    fn fill(&mut self, checked: &Checked, in_force: InForce, key: &DigestKey, base: Option<&Base>) {
        // What is in a file that cannot be read is not known, so it stays as it is.
        let unread =
            checked.findings.iter().filter(|finding| finding.fault.problem.reason == Reason::ParseError);
        let unread: HashSet<_> = unread
            .filter_map(|finding| match finding.fault.origin.as_ref()? {
                Origin::File { path, .. } => Some(path.display().to_string()),
                Origin::Cluster { .. } => None,
            })
            .collect();
        let desired = &checked.desired;
        let servers = desired.servers.iter().map(|(key, server)| (key.clone(), &**server));
        self.kind("McpServer", &servers.collect(), in_force.servers, &unread, |server| {
            let parts = || Parts::declared(server, base).map(|parts| parts.digests(key));
            unresolved(server).map_or_else(|| Ok(parts()), Err)
        });
        let skills = desired.skills.iter().map(|(key, skill)| (key.clone(), &**skill));
        self.kind("Skill", &skills.collect(), in_force.skills, &unread, |skill| {
            match desired.contents.get(&skill.meta.key) {
                Some(Err(problem)) => Err(problem.clone()),
                content => Ok(Parts::declared_skill(skill, content).map(|parts| parts.digests(key))),
            }
        });
    }

    fn kind<S>(
        &mut self,
        kind: &'static str,
        declared: &BTreeMap<ObjectKey, &Declared<S>>,
        in_force: Vec<Declaration>,
        unread: &HashSet<String>,
        parts: impl Fn(&Declared<S>) -> Result<Option<Parts>, Problem>,
    ) {
        let in_force: BTreeMap<_, _> = in_force.into_iter().map(|object| (object.key(), object)).collect();
        let mut keys: Vec<_> = declared.keys().chain(in_force.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let (now, new) = (in_force.get(&key), declared.get(&key));
            let missing = || {
                let file = now?.file.as_ref().filter(|file| new.is_none() && unread.contains(*file))?;
                Some(Problem::new(Reason::ParseError, format!("{file} cannot be read")))
            };
            let refused = new.and_then(|new| new.refused.clone()).or_else(missing);
            let step = refused.map_or_else(|| new.map_or(Ok(None), |new| parts(new)), Err).map(|after| {
                let before = Parts::presence(now.and_then(|now| now.parts.as_ref()));
                Change::between(before, Parts::presence(after.as_ref()), Parts::change)
            });
            self.add(kind, &key, step);
        }
    }

    fn add(&mut self, kind: &'static str, key: &ObjectKey, change: Result<Change, Problem>) {
        let count = match &change {
            Ok(Change::Attach(())) => &mut self.add,
            Ok(
                Change::Replace(..)
                | Change::Refilter(..)
                | Change::Refresh(())
                | Change::Detach(Reason::Suspended),
            ) => &mut self.change,
            Ok(Change::Detach(_)) => &mut self.remove,
            Ok(Change::Stay(())) => &mut self.unchanged,
            Err(_) => &mut self.held,
        };
        *count += 1;
        let action = change.as_ref().map_or("hold", Change::verb);
        let parts = change.as_ref().map(Change::parts).unwrap_or_default().to_vec();
        let (reason, message) = change.err().map(|Problem { reason, message }| (reason, message)).unzip();
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        self.steps.push(Planned { kind, namespace, name, action, parts, reason, message });
    }

    fn text(&self, running: &Path) -> String {
        let mut text = String::new();
        for Planned { kind, namespace, name, action, parts, message, .. } in &self.steps {
            let sign = match *action {
                "attach" => '+',
                "replace" | "refilter" | "refresh" | "suspend" => '~',
                "detach" => '-',
                "hold" => '!',
                _ => continue,
            };
            let why = if parts.is_empty() { message.clone().unwrap_or_default() } else { parts.join(", ") };
            let why = if why.is_empty() { why } else { format!(": {why}") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{sign} {action:<8} {kind} {namespace}/{name}{why}");
        }
        let Self { add, change, remove, unchanged, held, .. } = self;
        let held = if *held == 0 { String::new() } else { format!(", {held} held as it is") };
        let against = if self.against.is_some() { "against the evenkeel of" } else { "no evenkeel runs on" };
        let running = running.display();
        let _ = writeln!(
            text,
            "{add} to add, {change} to change, {remove} to remove, {unchanged} unchanged{held}; {against} {running}"
        );
        text
    }
}

/// Why no endpoint can be made of a declaration. What is not set here may be where evenkeel runs.
fn unresolved(declared: &Declared<McpServerSpec>) -> Option<Problem> {
    let problem = declared.endpoint.as_ref()?.as_ref().err()?;
    (problem.reason != Reason::VariableNotFound).then(|| problem.clone())
}
