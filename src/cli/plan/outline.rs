//! What is printed of a plan. Pure.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use serde::Serialize;

use crate::admin::{Declaration, InForce};
use crate::plan::{Change, Parts};
use crate::resource::{Base, DigestKey, McpServerSpec, ObjectKey, Problem, Reason};
use crate::source::directory::Checked;
use crate::source::{Declared, Origin};

/// What is printed; as JSON, part of the interface.
#[derive(Debug, Default, Serialize)]
pub(super) struct Plan {
    pub against: Option<String>,
    add: usize,
    change: usize,
    remove: usize,
    unchanged: usize,
    held: usize,
    pub steps: Vec<Planned>,
}

/// What becomes of one object.
#[derive(Debug, Serialize)]
pub(super) struct Planned {
    pub kind: &'static str,
    namespace: String,
    pub name: String,
    pub action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Plan {
    /// One without steps; `against` is what is compared with, if anything.
    pub fn new(against: Option<String>) -> Self {
        Self { against, ..Self::default() }
    }

    /// Adds a step for each object that is declared or in force. `base` is where processes will run.
    pub fn fill(&mut self, checked: &Checked, in_force: InForce, key: &DigestKey, base: Option<&Base>) {
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

    /// Gives it for people; `place` ends the last line.
    pub fn text(&self, place: &str) -> String {
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
        let _ = writeln!(
            text,
            "{add} to add, {change} to change, {remove} to remove, {unchanged} unchanged{held}; {place}"
        );
        text
    }
}

/// Why no endpoint can be made of a declaration. What is not set here may be where evenkeel runs.
fn unresolved(declared: &Declared<McpServerSpec>) -> Option<Problem> {
    let problem = declared.endpoint.as_ref()?.as_ref().err()?;
    (problem.reason != Reason::VariableNotFound).then(|| problem.clone())
}
