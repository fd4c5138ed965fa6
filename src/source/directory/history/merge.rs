//! What the files declare, as one set of objects. Pure.
//!
//! Promises that an object keeps its identity while any file declares it, keeps its last good declaration
//! while the newest cannot be accepted, and keeps its `Arc` while nothing about it changes; and that a
//! changed file costs its own objects alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;

use super::next_state::{LatestDeclaration, MergeContext, next_object};
use crate::resource::{
    Commit, DeclaredMeta, DeclaredObject, Digest, McpServerSpec, ObjectKey, Origin, Problem, Reason,
    SecretKeyRef, SkillSpec, SourceProblem, same_endpoint,
};
use crate::source::parse::{
    EndpointResolver, ObjectSpec, ParsedFile, ParsedObject, display_path, is_json, is_skill_file,
};
use crate::source::resolve::secret_references;

/// All accepted declarations.
#[derive(Debug, Default)]
pub struct AcceptedObjects {
    pub servers: AcceptedKind<McpServerSpec>,
    pub skills: AcceptedKind<SkillSpec>,
    faults: BTreeMap<Arc<PathBuf>, Vec<SourceProblem>>,
    warnings: BTreeMap<Arc<PathBuf>, Vec<SourceProblem>>,
    foreign_documents: HashMap<Arc<PathBuf>, usize>,
}

impl AcceptedObjects {
    /// Notes what a file holds now: nothing, if it is gone. It is in force after [`AcceptedObjects::settle`].
    pub fn record_file(&mut self, path: &Arc<PathBuf>, parsed: ParsedFile) {
        let mut faults = parsed.faults;
        let unread = parsed.unrecognized.map(|fault| {
            let message = format!("{}; what was declared in this file stays in force", fault.problem.message);
            SourceProblem { problem: Problem::new(fault.problem.reason, message), ..*fault }
        });
        let told = |fault: &SourceProblem| {
            let place = fault.location().map(|place| format!("{place}: ")).unwrap_or_default();
            Problem::new(fault.problem.reason, format!("{place}{}", fault.problem.message))
        };
        let unnamed = parsed.unidentified.or_else(|| unread.as_ref().map(told));
        let mut frozen = self.servers.record_file(path, parsed.servers, unnamed.as_ref(), &mut faults);
        frozen |= self.skills.record_file(path, parsed.skills, unnamed.as_ref(), &mut faults);
        // Where nothing was declared before, it is none of our business.
        faults.extend(unread.filter(|_| frozen));
        self.faults.remove(path);
        if !faults.is_empty() {
            self.faults.insert(Arc::clone(path), faults);
        }
        self.warnings.remove(path);
        if !parsed.warnings.is_empty() {
            self.warnings.insert(Arc::clone(path), parsed.warnings);
        }
        self.foreign_documents.remove(path);
        if parsed.foreign_documents > 0 {
            self.foreign_documents.insert(Arc::clone(path), parsed.foreign_documents);
        }
    }

    /// Notes only the good objects of a file whose names nobody declares yet. What else is in it, or is no
    /// longer, waits for [`AcceptedObjects::note`].
    pub fn record_new_objects(&mut self, path: &Arc<PathBuf>, parsed: &ParsedFile) {
        self.servers.record_new_objects(path, &parsed.servers);
        self.skills.record_new_objects(path, &parsed.skills);
    }

    /// Puts what was noted in force, and gives the files whose objects are others, or have other states.
    pub fn apply(&mut self, context: &MergeContext<'_>) -> BTreeSet<Arc<PathBuf>> {
        let mut stale = self.servers.apply(context);
        stale.append(&mut self.skills.apply(context));
        stale
    }

    /// Resolves once more the references of the servers that have some.
    pub fn resolve_references(&mut self, resolve: &EndpointResolver<'_>) {
        let changed = self.servers.objects.values().filter_map(|server| {
            let spec = server.spec.as_ref()?;
            secret_references(spec).next()?;
            let endpoint = spec.endpoint(server.meta.file()?, resolve);
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

    /// The secrets that servers refer to, by name and key.
    pub fn secret_references(&self) -> HashSet<(String, String)> {
        let specs = self.servers.objects.values().filter_map(|server| server.spec.as_deref());
        let place = |reference: &SecretKeyRef| (reference.name.clone(), reference.key.clone());
        specs.flat_map(secret_references).map(place).collect()
    }

    /// What could not be read, and what lost to another of its name, in the order of the files.
    pub fn faults(&self) -> Vec<SourceProblem> {
        let lost = self.servers.duplicates.values().chain(self.skills.duplicates.values());
        let mut faults: Vec<_> = self.faults.values().chain(lost).flatten().cloned().collect();
        faults.sort_by_key(|fault| {
            let file = fault.origin.as_ref().and_then(Origin::file);
            file.map(|(path, line)| (Arc::clone(path), line))
        });
        faults
    }

    /// What was read and has no effect, in the order of the files.
    pub fn warnings(&self) -> Vec<SourceProblem> {
        self.warnings.values().flatten().cloned().collect()
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.servers.objects.is_empty() && self.skills.objects.is_empty()
    }

    /// Tells whether a file declares something that is in force.
    pub fn declares(&self, path: &Arc<PathBuf>) -> bool {
        self.servers.files.contains_key(path) || self.skills.files.contains_key(path)
    }

    /// Documents of other API groups.
    pub fn foreign_documents(&self) -> usize {
        self.foreign_documents.values().sum()
    }
}

/// The objects of one kind.
#[derive(Debug)]
pub struct AcceptedKind<S> {
    /// As the source gives them.
    pub objects: OrdMap<ObjectKey, Arc<DeclaredObject<S>>>,
    slots: HashMap<ObjectKey, DeclarationSlot<S>>,
    files: HashMap<Arc<PathBuf>, BTreeSet<ObjectKey>>,
    duplicates: BTreeMap<ObjectKey, Vec<SourceProblem>>,
    dirty_keys: BTreeSet<ObjectKey>,
}

/// Who declares an object: the file in force first.
#[derive(Debug)]
struct DeclarationSlot<S> {
    claims: Vec<FileClaim<S>>,
    /// The last good document.
    last_good_document: Option<Arc<str>>,
}

#[derive(Debug)]
struct FileClaim<S> {
    path: Arc<PathBuf>,
    line: u32,
    /// What is not in force yet.
    pending: Option<LatestDeclaration<S>>,
}

/// What is known of an object from an earlier run.
#[derive(Debug)]
pub struct RestoredObject<S> {
    pub key: ObjectKey,
    pub line: u32,
    pub uid: Arc<str>,
    pub generation: i64,
    pub created: Timestamp,
    pub revision: Arc<str>,
    pub change: Option<Arc<Commit>>,
    /// Its last good declaration, if it ever had one.
    pub last_good: Option<ParsedObject<S>>,
}

impl<S> FileClaim<S> {
    /// Whether an object is declared here, and well, in so many words.
    fn is_explicit(&self) -> bool {
        let good =
            matches!(&self.pending, Some(LatestDeclaration::Declared(ParsedObject { spec: Ok(_), .. })));
        good && !is_skill_file(&self.path)
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
    /// Takes up an object of an earlier run, as if `path` declared it.
    pub fn restore(
        &mut self,
        path: &Arc<PathBuf>,
        remembered: RestoredObject<S>,
        resolve: &EndpointResolver<'_>,
    ) {
        let RestoredObject { key, line, .. } = remembered;
        if self.slots.contains_key(&key) {
            return;
        }
        let (labels, annotations, text, spec) = match remembered.last_good {
            Some(object) => {
                (object.labels, object.annotations, Some(object.document), object.spec.ok().map(Arc::new))
            }
            None => (BTreeMap::new(), BTreeMap::new(), None, None),
        };
        let declared = DeclaredObject {
            meta: DeclaredMeta {
                key: key.clone(),
                uid: remembered.uid,
                generation: remembered.generation,
                created_at: remembered.created,
                labels,
                annotations,
                origin: Origin::File { path: Arc::clone(path), line },
                revision: remembered.revision,
                last_commit: remembered.change,
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

    /// What a file has in force: each object with the line and the last good document.
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

    /// Notes the objects of a file. True if some that are not found in it stay because of `unnamed`.
    fn record_file(
        &mut self,
        path: &Arc<PathBuf>,
        objects: Vec<ParsedObject<S>>,
        unnamed: Option<&Problem>,
        faults: &mut Vec<SourceProblem>,
    ) -> bool {
        let mut frozen = false;
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
            match unnamed {
                Some(problem) if self.freeze(path, &key, problem) => {
                    frozen = true;
                    claims.insert(key);
                }
                _ => self.remove_claim(path, key),
            }
        }
        if !claims.is_empty() {
            self.files.insert(Arc::clone(path), claims);
        }
        frozen
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
            pending: Some(LatestDeclaration::Declared(object)),
        };
        let incumbents = usize::from(self.objects.contains_key(&key));
        let slot = self
            .slots
            .entry(key.clone())
            .or_insert_with(|| DeclarationSlot { claims: Vec::new(), last_good_document: None });
        match slot.claims.iter_mut().find(|known| known.path == claim.path) {
            Some(known) => *known = claim,
            None => slot.claims.push(claim),
        }
        // The one in force stays first, whatever its path; of the others YAML comes before JSON, then the path
        // counts. A folder that is declared by where it is gives way to whoever declares it in so many words.
        if let Some(others) = slot.claims.get_mut(incumbents..) {
            others.sort_by_cached_key(|claim| (is_json(&claim.path), Arc::clone(&claim.path)));
        }
        if slot.claims.first().is_some_and(|first| is_skill_file(&first.path))
            && let Some(better) = slot.claims.iter().position(FileClaim::is_explicit)
            && let Some(until) = slot.claims.get_mut(..=better)
        {
            until.rotate_right(1);
        }
        self.dirty_keys.insert(key);
    }

    /// Leaves an object as it is whose newest form cannot be read; false if this file has it not in force.
    fn freeze(&mut self, path: &Arc<PathBuf>, key: &ObjectKey, problem: &Problem) -> bool {
        let known = self.objects.contains_key(key);
        let first = self.slots.get_mut(key).and_then(|slot| slot.claims.first_mut());
        let Some(first) = first.filter(|first| known && first.path == *path) else {
            return false;
        };
        first.pending = Some(LatestDeclaration::Unreadable(problem.clone()));
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
            let spec = match &first.pending {
                Some(LatestDeclaration::Declared(ParsedObject { spec: Ok(spec), .. })) => Some(spec),
                _ => last.and_then(|last| last.spec.as_deref()),
            };
            let same =
                |claim: &FileClaim<S>| spec.is_some_and(|spec| spec.refers_to_file(&first.path, &claim.path));
            let lost = others.iter().filter(|claim| !same(claim));
            let lost: Vec<_> = lost
                .map(|claim| duplicate_problem::<S>(&key, &claim.path, claim.line, &first.path))
                .collect();
            if !lost.is_empty() {
                self.duplicates.insert(key.clone(), lost);
            }
            // A folder that is declared by where it is may have to give way, and then comes back.
            let news = if is_skill_file(&first.path) { first.pending.clone() } else { first.pending.take() };
            let Some(news) = news else { continue };
            let path = Arc::clone(&first.path);
            let text = match &news {
                LatestDeclaration::Declared(object) if object.spec.is_ok() => {
                    Some(Arc::clone(&object.document))
                }
                _ => None,
            };
            if let Some(new) = next_object(last, &path, news, context) {
                if let Some(slot) = self.slots.get_mut(&key)
                    && text.is_some()
                {
                    slot.last_good_document = text;
                }
                if last.is_none_or(|last| !Arc::ptr_eq(last, &new)) {
                    stale.extend(before);
                    stale.insert(path);
                    self.objects.insert(key, new);
                }
            }
        }
        stale
    }
}

fn duplicate_problem<S: ObjectSpec>(
    key: &ObjectKey,
    path: &Arc<PathBuf>,
    line: u32,
    winner: &Arc<PathBuf>,
) -> SourceProblem {
    let message = format!(
        "{} {key} is declared in {} already, which stays in force; rename or remove one of them",
        S::KIND,
        display_path(winner)
    );
    let origin = Origin::File { path: Arc::clone(path), line };
    SourceProblem::new(Some(origin), Problem::new(Reason::DuplicateName, message))
}

#[cfg(test)]
mod tests;
