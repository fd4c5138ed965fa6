//! Merges the declarations of all files into one set of objects. Pure.
//!
//! Promises that an object keeps its identity while any file declares it, keeps its last good declaration while the
//! latest one cannot be accepted, and keeps its `Arc` while nothing about it changes. The cost of a changed file is
//! proportional to its own objects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;

use super::next_state::{LatestDeclaration, MergeContext, next_object};
use super::problems::{duplicate_problem, in_file_order, is_in_agent_file};
use crate::resource::{
    Commit, DeclaredMeta, DeclaredObject, Digest, McpServerSpec, ObjectKey, Origin, Problem, SecretKeyRef,
    SkillSpec, SourceProblem, same_endpoint,
};
use crate::source::parse::{
    EndpointResolver, ObjectSpec, ParsedFile, ParsedObject, is_json, is_skill_file, referenced_env_file,
};
use crate::source::resolve::secret_references;

/// The accepted objects.
#[derive(Debug, Default)]
pub struct AcceptedObjects {
    pub servers: AcceptedKind<McpServerSpec>,
    pub skills: AcceptedKind<SkillSpec>,
    faults: BTreeMap<Arc<PathBuf>, Vec<SourceProblem>>,
    rejected_entries: BTreeMap<Arc<PathBuf>, Vec<SourceProblem>>,
    warnings: BTreeMap<Arc<PathBuf>, Vec<SourceProblem>>,
    foreign_documents: HashMap<Arc<PathBuf>, usize>,
}

impl AcceptedObjects {
    /// Records the current content of a file, which is empty if the file is gone. It takes effect in
    /// [`AcceptedObjects::apply`].
    pub fn record_file(&mut self, path: &Arc<PathBuf>, parsed: ParsedFile) {
        let (mut faults, mut warnings) = (parsed.faults, parsed.warnings);
        let unrecognized = parsed.unrecognized.map(|fault| {
            let message =
                format!("{}; the objects that this file declared stay in force", fault.problem.message);
            SourceProblem { problem: Problem::new(fault.problem.reason, message), ..*fault }
        });
        let to_problem = |fault: &SourceProblem| {
            let location = fault.location().map(|location| format!("{location}: ")).unwrap_or_default();
            Problem::new(fault.problem.reason, format!("{location}{}", fault.problem.message))
        };
        let unidentified = parsed.unidentified.or_else(|| unrecognized.as_ref().map(to_problem));
        // The file of an agent is written for another program, so a duplicate in it is no fault of the source.
        let duplicates = if is_json(path) { &mut warnings } else { &mut faults };
        let mut objects_kept =
            self.servers.record_file(path, parsed.servers, unidentified.as_ref(), duplicates);
        objects_kept |= self.skills.record_file(path, parsed.skills, unidentified.as_ref(), duplicates);
        // A file that declared nothing before does not concern evenkeel.
        faults.extend(unrecognized.filter(|_| objects_kept));
        let reports = [
            (&mut self.faults, faults),
            (&mut self.rejected_entries, parsed.rejected_entries),
            (&mut self.warnings, warnings),
        ];
        for (by_file, reports) in reports {
            by_file.remove(path);
            if !reports.is_empty() {
                by_file.insert(Arc::clone(path), reports);
            }
        }
        self.foreign_documents.remove(path);
        if parsed.foreign_documents > 0 {
            self.foreign_documents.insert(Arc::clone(path), parsed.foreign_documents);
        }
    }

    /// Records only the valid objects of a file whose names no file declares yet. Other changes of the file wait for
    /// [`AcceptedObjects::record_file`].
    pub fn record_new_objects(&mut self, path: &Arc<PathBuf>, parsed: &ParsedFile) {
        self.servers.record_new_objects(path, &parsed.servers);
        self.skills.record_new_objects(path, &parsed.skills);
    }

    /// Applies the recorded declarations. Returns the files whose objects, or the states of their objects, changed.
    pub fn apply(&mut self, context: &MergeContext<'_>) -> BTreeSet<Arc<PathBuf>> {
        let mut stale = self.servers.apply(context);
        stale.append(&mut self.skills.apply(context));
        stale
    }

    /// Resolves again the references of all servers that have any.
    pub fn resolve_references(&mut self, resolve: &EndpointResolver<'_>) {
        let changed = self.servers.objects.values().filter_map(|server| {
            let (spec, file) = (server.spec.as_ref()?, server.meta.file()?);
            secret_references(spec).next().map(drop).or(referenced_env_file(file, spec).map(drop))?;
            let endpoint = spec.endpoint(file, resolve);
            (!same_endpoint(server.endpoint.as_ref(), endpoint.as_ref())).then(|| DeclaredObject {
                meta: server.meta.clone(),
                spec: Some(spec.clone()),
                spec_digest: server.spec_digest,
                rejected: server.rejected.clone(),
                endpoint,
            })
        });
        for server in changed.collect::<Vec<_>>() {
            self.servers.objects.insert(server.meta.key.clone(), Arc::new(server));
        }
    }

    /// Returns the secrets that servers refer to, by name and key.
    pub fn secret_references(&self) -> HashSet<(String, String)> {
        let specs = self.servers.objects.values().filter_map(|server| server.spec.as_deref());
        let name_and_key = |reference: &SecretKeyRef| (reference.name.clone(), reference.key.clone());
        specs.flat_map(secret_references).map(name_and_key).collect()
    }

    /// Returns the files of variables that servers refer to.
    pub fn env_files(&self) -> HashSet<PathBuf> {
        let servers = self.servers.objects.values();
        servers.filter_map(|server| referenced_env_file(server.meta.file()?, server.spec.as_ref()?)).collect()
    }

    /// Returns the faults of the files and the duplicate declarations, in the order of the files. Those of the files of
    /// agents are not among them.
    pub fn faults(&self) -> Vec<SourceProblem> {
        let duplicates = self.duplicates().filter(|duplicate| !is_in_agent_file(duplicate));
        in_file_order(self.faults.values().flatten().chain(duplicates))
    }

    /// Returns the errors of the entries of agents' files, each of which is also on its object.
    pub fn rejected_entries(&self) -> Vec<SourceProblem> {
        self.rejected_entries.values().flatten().cloned().collect()
    }

    /// Returns the entries that have no effect, in the order of the files.
    pub fn warnings(&self) -> Vec<SourceProblem> {
        let duplicates = self.duplicates().filter(|duplicate| is_in_agent_file(duplicate));
        in_file_order(self.warnings.values().flatten().chain(duplicates))
    }

    fn duplicates(&self) -> impl Iterator<Item = &SourceProblem> {
        self.servers.duplicates.values().chain(self.skills.duplicates.values()).flatten()
    }

    /// True if nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.servers.objects.is_empty() && self.skills.objects.is_empty()
    }

    /// True if a file declares an accepted object.
    pub fn declares(&self, path: &Arc<PathBuf>) -> bool {
        self.servers.files.contains_key(path) || self.skills.files.contains_key(path)
    }

    /// Returns the number of documents of other API groups.
    pub fn foreign_documents(&self) -> usize {
        self.foreign_documents.values().sum()
    }
}

/// The objects of one kind.
#[derive(Debug)]
pub struct AcceptedKind<S> {
    /// The objects as the source publishes them.
    pub objects: OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    slots: HashMap<ObjectKey, DeclarationSlot<S>>,
    files: HashMap<Arc<PathBuf>, BTreeSet<ObjectKey>>,
    duplicates: BTreeMap<ObjectKey, Vec<SourceProblem>>,
    dirty_keys: BTreeSet<ObjectKey>,
}

/// The files that declare an object; the file in force is the first.
#[derive(Debug)]
struct DeclarationSlot<S> {
    claims: Vec<FileClaim<S>>,
    last_good_document: Option<Arc<str>>,
}

#[derive(Debug)]
struct FileClaim<S> {
    path: Arc<PathBuf>,
    line: u32,
    /// The declaration that is not applied yet. Boxed, since a claim mostly has none.
    pending: Option<Box<LatestDeclaration<S>>>,
}

/// An object that was restored from an earlier run.
#[derive(Debug)]
pub struct RestoredObject<S> {
    pub key: ObjectKey,
    pub line: u32,
    pub uid: Arc<str>,
    pub generation: i64,
    pub created_at: Timestamp,
    pub revision: Arc<str>,
    pub last_commit: Option<Arc<Commit>>,
    /// The last good declaration, if there was one.
    pub last_good: Option<ParsedObject<S>>,
}

impl<S> FileClaim<S> {
    /// True if this is a valid, explicit declaration.
    fn is_explicit(&self) -> bool {
        let is_valid = matches!(
            self.pending.as_deref(),
            Some(LatestDeclaration::Declared(ParsedObject { spec: Ok(_), .. }))
        );
        is_valid && !is_skill_file(&self.path)
    }
}

impl<S> Default for AcceptedKind<S> {
    fn default() -> Self {
        Self {
            objects: OrdMap::new(),
            slots: HashMap::new(),
            files: HashMap::new(),
            duplicates: BTreeMap::new(),
            dirty_keys: BTreeSet::new(),
        }
    }
}

impl<S: ObjectSpec> AcceptedKind<S> {
    /// Restores an object of an earlier run, as if `path` declared it.
    pub fn restore(
        &mut self,
        path: &Arc<PathBuf>,
        restored: RestoredObject<S>,
        resolve: &EndpointResolver<'_>,
    ) {
        let RestoredObject { key, line, .. } = restored;
        if self.slots.contains_key(&key) {
            return;
        }
        let (labels, annotations, text, spec) = match restored.last_good {
            Some(object) => {
                (object.labels, object.annotations, Some(object.document), object.spec.ok().map(Arc::new))
            }
            None => (BTreeMap::new(), BTreeMap::new(), None, None),
        };
        let declared = DeclaredObject {
            meta: DeclaredMeta {
                key: key.clone(),
                uid: restored.uid,
                generation: restored.generation,
                created_at: restored.created_at,
                labels,
                annotations,
                origin: Origin::File { path: Arc::clone(path), line },
                revision: restored.revision,
                last_commit: restored.last_commit,
            },
            spec_digest: spec.as_ref().map(Digest::of_json),
            endpoint: spec.as_ref().and_then(|spec| spec.endpoint(path, resolve)),
            spec,
            rejected: None,
        };
        let claim = FileClaim { path: Arc::clone(path), line, pending: None };
        let slot = DeclarationSlot { claims: vec![claim], last_good_document: text };
        self.objects.insert(key.clone(), Arc::new(declared));
        self.files.entry(Arc::clone(path)).or_default().insert(key.clone());
        self.slots.insert(key, slot);
    }

    /// Returns the objects that a file has in force: each with its line and its last good document.
    pub fn applied_objects(
        &self,
        path: &Arc<PathBuf>,
    ) -> impl Iterator<Item = (&DeclaredMeta, u32, Option<&Arc<str>>)> {
        let keys = self.files.get(path).into_iter().flatten();
        keys.filter_map(move |key| {
            let slot = self.slots.get(key)?;
            let claim = slot.claims.first().filter(|claim| claim.path == *path)?;
            Some((&self.objects.get(key)?.meta, claim.line, slot.last_good_document.as_ref()))
        })
    }

    /// Records the objects of a file. Returns true if objects that are not found in it are kept because of
    /// `unidentified`.
    fn record_file(
        &mut self,
        path: &Arc<PathBuf>,
        objects: Vec<ParsedObject<S>>,
        unidentified: Option<&Problem>,
        faults: &mut Vec<SourceProblem>,
    ) -> bool {
        let mut objects_kept = false;
        let missing = self.files.remove(path).unwrap_or_default();
        let mut claims = BTreeSet::new();
        for object in objects {
            if claims.insert(object.key.clone()) {
                self.add_claim(path, object);
            } else {
                faults.push(duplicate_problem::<S>(&object.key, path, object.line, path));
            }
        }
        for key in missing {
            if claims.contains(&key) {
                continue;
            }
            match unidentified {
                Some(problem) if self.freeze(path, &key, problem) => {
                    objects_kept = true;
                    claims.insert(key);
                }
                _ => self.remove_claim(path, key),
            }
        }
        if !claims.is_empty() {
            self.files.insert(Arc::clone(path), claims);
        }
        objects_kept
    }

    fn record_new_objects(&mut self, path: &Arc<PathBuf>, objects: &[ParsedObject<S>]) {
        for object in objects {
            if object.spec.is_ok() && !self.slots.contains_key(&object.key) {
                let claims = self.files.entry(Arc::clone(path)).or_default();
                claims.insert(object.key.clone());
                self.add_claim(path, object.clone());
            }
        }
    }

    fn add_claim(&mut self, path: &Arc<PathBuf>, object: ParsedObject<S>) {
        let key = object.key.clone();
        let claim = FileClaim {
            path: Arc::clone(path),
            line: object.line,
            pending: Some(Box::new(LatestDeclaration::Declared(object))),
        };
        let in_force_count = usize::from(self.objects.contains_key(&key));
        let slot = self
            .slots
            .entry(key.clone())
            .or_insert_with(|| DeclarationSlot { claims: Vec::new(), last_good_document: None });
        match slot.claims.iter_mut().find(|existing| existing.path == claim.path) {
            Some(existing) => *existing = claim,
            None => slot.claims.push(claim),
        }
        // The declaration in force stays first, whatever its path. Of the others, YAML precedes JSON, then they are
        // ordered by path. A skill that is declared by the location of its folder yields to an explicit declaration.
        if let Some(others) = slot.claims.get_mut(in_force_count..) {
            others.sort_by_cached_key(|claim| (is_json(&claim.path), Arc::clone(&claim.path)));
        }
        if slot.claims.first().is_some_and(|first| is_skill_file(&first.path))
            && let Some(explicit) = slot.claims.iter().position(FileClaim::is_explicit)
            && let Some(up_to_explicit) = slot.claims.get_mut(..=explicit)
        {
            up_to_explicit.rotate_right(1);
        }
        self.dirty_keys.insert(key);
    }

    /// Keeps an object whose latest declaration cannot be read. Returns false if this file does not have it in force.
    fn freeze(&mut self, path: &Arc<PathBuf>, key: &ObjectKey, problem: &Problem) -> bool {
        let is_accepted = self.objects.contains_key(key);
        let first = self.slots.get_mut(key).and_then(|slot| slot.claims.first_mut());
        let Some(first) = first.filter(|first| is_accepted && first.path == *path) else {
            return false;
        };
        first.pending = Some(Box::new(LatestDeclaration::Unreadable(problem.clone())));
        self.dirty_keys.insert(key.clone());
        true
    }

    fn remove_claim(&mut self, path: &Arc<PathBuf>, key: ObjectKey) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.claims.retain(|claim| claim.path != *path);
        }
        self.dirty_keys.insert(key);
    }

    fn apply(&mut self, context: &MergeContext<'_>) -> BTreeSet<Arc<PathBuf>> {
        let mut stale = BTreeSet::new();
        for key in std::mem::take(&mut self.dirty_keys) {
            let last = self.objects.get(&key);
            let before = last.and_then(|last| last.meta.file()).cloned();
            self.duplicates.remove(&key);
            let slot = self.slots.get_mut(&key);
            let Some((first, others)) = slot.and_then(|slot| slot.claims.split_first_mut()) else {
                self.slots.remove(&key);
                self.objects.remove(&key);
                stale.extend(before);
                continue;
            };
            let spec = match first.pending.as_deref() {
                Some(LatestDeclaration::Declared(ParsedObject { spec: Ok(spec), .. })) => Some(spec),
                _ => last.and_then(|last| last.spec.as_deref()),
            };
            let is_same_subject =
                |claim: &FileClaim<S>| spec.is_some_and(|spec| spec.refers_to_file(&first.path, &claim.path));
            let duplicates = others.iter().filter(|claim| !is_same_subject(claim));
            let duplicates: Vec<_> = duplicates
                .map(|claim| duplicate_problem::<S>(&key, &claim.path, claim.line, &first.path))
                .collect();
            if !duplicates.is_empty() {
                self.duplicates.insert(key.clone(), duplicates);
            }
            // A skill that is declared by the location of its folder may have to yield, and is restored later.
            let declaration =
                if is_skill_file(&first.path) { first.pending.clone() } else { first.pending.take() };
            let Some(declaration) = declaration else { continue };
            let path = Arc::clone(&first.path);
            let text = match &*declaration {
                LatestDeclaration::Declared(object) if object.spec.is_ok() => {
                    Some(Arc::clone(&object.document))
                }
                _ => None,
            };
            if let Some(updated) = next_object(last, &path, *declaration, context) {
                if let Some(slot) = self.slots.get_mut(&key)
                    && text.is_some()
                {
                    slot.last_good_document = text;
                }
                if last.is_none_or(|last| !Arc::ptr_eq(last, &updated)) {
                    stale.extend(before);
                    stale.insert(path);
                    self.objects.insert(key, updated);
                }
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests;
