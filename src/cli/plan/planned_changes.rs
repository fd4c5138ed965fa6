//! Computes and formats a plan. Pure.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use serde::Serialize;

use crate::admin::{Declaration, DeclaredState};
use crate::plan::{DeclarationChange, DeclarationParts};
use crate::resource::{
    DeclaredObject, Desired, DigestKey, McpServerSpec, ObjectKey, Problem, Reason, WorkingDirectory,
};
use crate::source::directory::Finding;

/// The declarations to plan for.
#[derive(Clone, Copy)]
pub(super) struct PlanInput<'a> {
    pub desired: &'a Desired,
    /// The findings in the files.
    pub findings: &'a [Finding],
    /// The directory in which processes will run, if files declare them.
    pub working_directory: Option<&'a WorkingDirectory>,
    /// True if these are all declarations: objects in force that are not declared are then removed.
    pub complete: bool,
}

/// The treatment of objects that are in force but not declared.
struct UndeclaredObjects {
    /// True if they are removed; otherwise they stay untouched.
    removed: bool,
    /// Files that could not be read. Objects in force from one of them stay.
    unreadable_files: HashSet<String>,
}

/// A plan. Its JSON form is part of the interface.
#[derive(Debug, Default, Serialize)]
pub(super) struct Plan {
    pub against: Option<String>,
    add: usize,
    change: usize,
    remove: usize,
    unchanged: usize,
    untouched: usize,
    held: usize,
    pub steps: Vec<PlannedChange>,
}

/// The planned change of one object.
#[derive(Debug, Serialize)]
pub(super) struct PlannedChange {
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

impl PlannedChange {
    fn new(kind: &'static str, key: &ObjectKey, action: &'static str) -> Self {
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        Self { kind, namespace, name, action, parts: Vec::new(), reason: None, message: None }
    }
}

impl Plan {
    /// Creates an empty plan. `against` is what the declarations are compared with, if anything.
    pub fn new(against: Option<String>) -> Self {
        Self { against, ..Self::default() }
    }

    /// Adds a change for each object that is declared or in force.
    pub fn add_all(&mut self, declarations: &PlanInput<'_>, in_force: DeclaredState, key: &DigestKey) {
        // The content of an unreadable file is unknown, so its objects stay as they are.
        let findings = declarations.findings.iter();
        let unreadable = findings.filter(|finding| finding.fault.problem.reason == Reason::ParseError);
        let unreadable: HashSet<_> = unreadable
            .filter_map(|finding| Some(finding.fault.origin.as_ref()?.file()?.0.display().to_string()))
            .collect();
        let PlanInput { desired, findings: _, working_directory: base, complete } = *declarations;
        let undeclared = UndeclaredObjects { removed: complete, unreadable_files: unreadable };
        let servers = desired.servers.iter().map(|(key, server)| (key.clone(), &**server));
        self.add_kind("McpServer", &servers.collect(), in_force.servers, &undeclared, |server| {
            let parts = || DeclarationParts::declared(server, base).map(|parts| parts.into_digests(key));
            endpoint_problem(server).map_or_else(|| Ok(parts()), Err)
        });
        let skills = desired.skills.iter().map(|(key, skill)| (key.clone(), &**skill));
        self.add_kind("Skill", &skills.collect(), in_force.skills, &undeclared, |skill| {
            match desired.skill_contents.get(&skill.meta.key) {
                Some(Err(problem)) => Err(problem.clone()),
                content => {
                    Ok(DeclarationParts::declared_skill(skill, content).map(|parts| parts.into_digests(key)))
                }
            }
        });
    }

    fn add_kind<S>(
        &mut self,
        kind: &'static str,
        declared: &BTreeMap<ObjectKey, &DeclaredObject<S>>,
        in_force: Vec<Declaration>,
        undeclared: &UndeclaredObjects,
        parts: impl Fn(&DeclaredObject<S>) -> Result<Option<DeclarationParts>, Problem>,
    ) {
        let in_force: BTreeMap<_, _> = in_force.into_iter().map(|object| (object.key(), object)).collect();
        let mut keys: Vec<_> = declared.keys().chain(in_force.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let (current, declaration) = (in_force.get(&key), declared.get(&key));
            if declaration.is_none() && !undeclared.removed {
                self.add_untouched(kind, &key);
                continue;
            }
            let unreadable = || {
                let file = current?.file.as_ref();
                let file =
                    file.filter(|file| declaration.is_none() && undeclared.unreadable_files.contains(*file))?;
                Some(Problem::new(Reason::ParseError, format!("{file} cannot be read")))
            };
            let problem =
                declaration.and_then(|declaration| declaration.rejected.clone()).or_else(unreadable);
            let change = problem
                .map_or_else(|| declaration.map_or(Ok(None), |declaration| parts(declaration)), Err)
                .map(|after| {
                    let before =
                        DeclarationParts::presence(current.and_then(|current| current.parts.as_ref()));
                    DeclarationChange::between(
                        before,
                        DeclarationParts::presence(after.as_ref()),
                        DeclarationParts::change_to,
                    )
                });
            self.add_change(kind, &key, change);
        }
    }

    /// Adds an object that is in force and stays untouched.
    fn add_untouched(&mut self, kind: &'static str, key: &ObjectKey) {
        self.untouched += 1;
        self.steps.push(PlannedChange::new(kind, key, "untouched"));
    }

    fn add_change(
        &mut self,
        kind: &'static str,
        key: &ObjectKey,
        change: Result<DeclarationChange, Problem>,
    ) {
        let count = match &change {
            Ok(DeclarationChange::Attach(())) => &mut self.add,
            Ok(
                DeclarationChange::Replace(..)
                | DeclarationChange::Refilter(..)
                | DeclarationChange::Refresh(())
                | DeclarationChange::Detach(Reason::Suspended),
            ) => &mut self.change,
            Ok(DeclarationChange::Detach(_)) => &mut self.remove,
            Ok(DeclarationChange::Stay(())) => &mut self.unchanged,
            Err(_) => &mut self.held,
        };
        *count += 1;
        let mut step =
            PlannedChange::new(kind, key, change.as_ref().map_or("hold", DeclarationChange::action));
        match change {
            Ok(change) => step.parts = change.changed_parts().to_vec(),
            Err(Problem { reason, message }) => {
                (step.reason, step.message) = (Some(reason), Some(message));
            }
        }
        self.steps.push(step);
    }

    /// Formats the plan as text. `target` ends the last line.
    pub fn to_text(&self, target: &str) -> String {
        let mut text = String::new();
        for PlannedChange { kind, namespace, name, action, parts, message, .. } in &self.steps {
            let sign = match *action {
                "attach" => '+',
                "replace" | "refilter" | "refresh" | "suspend" => '~',
                "detach" => '-',
                "hold" => '!',
                _ => continue,
            };
            let detail =
                if parts.is_empty() { message.clone().unwrap_or_default() } else { parts.join(", ") };
            let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{sign} {action:<8} {kind} {namespace}/{name}{detail}");
        }
        let Self { add, change, remove, unchanged, untouched, held, .. } = self;
        let untouched =
            if *untouched == 0 { String::new() } else { format!(", {untouched} not in the manifests") };
        let held = if *held == 0 { String::new() } else { format!(", {held} on hold") };
        let _ = writeln!(
            text,
            "{add} to add, {change} to change, {remove} to remove, {unchanged} unchanged{untouched}{held}; {target}"
        );
        text
    }
}

/// Returns the problem that prevents an endpoint for a declaration that is not suspended.
///
/// A variable that is not set here may be set where evenkeel runs, so it is not a problem.
fn endpoint_problem(declared: &DeclaredObject<McpServerSpec>) -> Option<Problem> {
    declared.spec.as_ref().filter(|spec| !spec.suspend)?;
    let problem = declared.endpoint.as_ref()?.as_ref().err()?;
    (!matches!(problem.reason, Reason::VariableNotFound | Reason::EnvFileNotFound)).then(|| problem.clone())
}
