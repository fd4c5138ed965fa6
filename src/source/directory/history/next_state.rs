//! Computes the next state of one object from its last state and the latest content of its file. Pure.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use crate::resource::{Commit, DeclaredMeta, DeclaredObject, Digest, Origin, Problem, same_endpoint};
use crate::source::parse::{EndpointResolver, ObjectSpec, ParsedObject};

/// The latest declaration of an object, as found by a scan.
#[derive(Clone, Debug)]
pub enum LatestDeclaration<S> {
    /// A declared object, whose spec may be invalid.
    Declared(ParsedObject<S>),
    /// Its document, or the file, cannot be read.
    Unreadable(Problem),
}

/// The context of a next state, in addition to the files.
pub struct MergeContext<'a> {
    pub now: Timestamp,
    pub revision: &'a Arc<str>,
    /// Returns the commit that last changed a file, if the observed content is that of the commit.
    pub last_commit: &'a dyn Fn(&Path) -> Option<Arc<Commit>>,
    pub new_uid: &'a dyn Fn() -> Arc<str>,
    pub resolve: &'a EndpointResolver<'a>,
}

/// Returns the next state of an object that `path` declares; `None` if the declaration cannot be read and there is no
/// last state.
///
/// Guarantees: the same `Arc` if nothing differs; the same uid and creation time as before; a generation that grows by
/// one if, and only if, the spec in force changes.
pub fn next_object<S: ObjectSpec>(
    last: Option<&Arc<DeclaredObject<S>>>,
    path: &Arc<PathBuf>,
    latest: LatestDeclaration<S>,
    context: &MergeContext<'_>,
) -> Option<Arc<DeclaredObject<S>>> {
    let next = match (latest, last) {
        (LatestDeclaration::Declared(object), last) => {
            let origin = Origin::File { path: Arc::clone(path), line: object.line };
            let meta = last
                .map_or_else(|| new_meta(&object, path, origin.clone(), context), |last| last.meta.clone());
            match object.spec {
                Ok(spec) => {
                    let meta = DeclaredMeta {
                        labels: object.labels,
                        annotations: object.annotations,
                        origin,
                        ..meta
                    };
                    accepted_object(last, meta, spec, path, context)
                }
                Err(problem) => rejected_object(last, DeclaredMeta { origin, ..meta }, problem),
            }
        }
        (LatestDeclaration::Unreadable(problem), Some(last)) => {
            rejected_object(Some(last), last.meta.clone(), problem)
        }
        (LatestDeclaration::Unreadable(_), None) => return None,
    };
    match last {
        Some(last) if is_unchanged(last, &next) => Some(Arc::clone(last)),
        _ => Some(Arc::new(next)),
    }
}

fn new_meta<S>(
    object: &ParsedObject<S>,
    path: &Path,
    origin: Origin,
    context: &MergeContext<'_>,
) -> DeclaredMeta {
    DeclaredMeta {
        key: object.key.clone(),
        uid: (context.new_uid)(),
        generation: 1,
        created_at: context.now,
        labels: object.labels.clone(),
        annotations: object.annotations.clone(),
        origin,
        revision: Arc::clone(context.revision),
        last_commit: (context.last_commit)(path),
    }
}

fn accepted_object<S: ObjectSpec>(
    last: Option<&Arc<DeclaredObject<S>>>,
    mut meta: DeclaredMeta,
    spec: S,
    path: &Path,
    context: &MergeContext<'_>,
) -> DeclaredObject<S> {
    let mut endpoint = None;
    if let Some(last) = last {
        let changed = last.spec.as_deref() != Some(&spec);
        if changed {
            meta.generation += 1;
        }
        if changed || meta.labels != last.meta.labels || meta.annotations != last.meta.annotations {
            meta.revision = Arc::clone(context.revision);
            meta.last_commit = (context.last_commit)(path);
        }
        let folder = |file: &Path| file.parent().map(Path::to_path_buf);
        let moved = last.meta.file().is_none_or(|file| folder(file) != folder(path));
        if !changed && !moved {
            endpoint.clone_from(&last.endpoint);
        }
    }
    DeclaredObject {
        spec_digest: Some(Digest::of_json(&spec)),
        endpoint: endpoint.or_else(|| spec.endpoint(path, context.resolve)),
        spec: Some(Arc::new(spec)),
        rejected: None,
        meta,
    }
}

/// Keeps the last good declaration, if there was one.
fn rejected_object<S: ObjectSpec>(
    last: Option<&Arc<DeclaredObject<S>>>,
    meta: DeclaredMeta,
    mut problem: Problem,
) -> DeclaredObject<S> {
    let spec = last.and_then(|last| last.spec.clone());
    if spec.is_some() {
        problem.message.push_str("; the last good declaration stays in force");
    }
    DeclaredObject {
        meta,
        spec_digest: last.and_then(|last| last.spec_digest),
        endpoint: last.and_then(|last| last.endpoint.clone()),
        spec,
        rejected: Some(problem),
    }
}

fn is_unchanged<S: PartialEq>(one: &DeclaredObject<S>, other: &DeclaredObject<S>) -> bool {
    let identity = |meta: &DeclaredMeta| (meta.generation, meta.origin.clone(), meta.revision.clone());
    one.spec == other.spec
        && one.rejected == other.rejected
        && identity(&one.meta) == identity(&other.meta)
        && one.meta.labels == other.meta.labels
        && one.meta.annotations == other.meta.annotations
        && same_endpoint(one.endpoint.as_ref(), other.endpoint.as_ref())
}
