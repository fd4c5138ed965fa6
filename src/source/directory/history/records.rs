//! What is remembered of the declarations from one run to the next, in the state directory: one record per
//! declaring file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use super::files::DeclarationFiles;
use super::merge::{AcceptedKind, AcceptedObjects, RestoredObject};
use crate::resource::{Commit, DeclaredMeta, Digest, McpServerSpec, ObjectKey, SkillSpec};
use crate::source::parse::{EndpointResolver, ObjectSpec, ParsedObject, parse};
use crate::state_dir::{StateDir, StateError};

const RECORDS_FOLDER: &str = "declarations";

/// A file and the objects it has in force.
#[derive(Debug, Serialize, Deserialize)]
struct FileRecord {
    path: PathBuf,
    /// Of its content; absent if it could not be read.
    digest: Option<Digest>,
    objects: Vec<ObjectRecord>,
}

/// An object. Its document may hold secrets that are written out in it, as the file does; never resolved ones.
#[derive(Debug, Serialize, Deserialize)]
struct ObjectRecord {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    generation: i64,
    created: Timestamp,
    revision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<Arc<Commit>>,
    line: u32,
    /// The last good one.
    document: Option<String>,
}

/// The records on the disk: in at most 256 files, by digest of the path, so that a change costs little and
/// a first start few files.
#[derive(Debug, Default)]
pub struct DeclarationRecords {
    paths_by_record: BTreeMap<String, BTreeSet<Arc<PathBuf>>>,
    /// The ones that are no longer true.
    stale_records: BTreeSet<String>,
}

impl DeclarationRecords {
    /// Takes up what the last run knew. What cannot be read is left out: its objects will be new.
    pub fn restore(
        &mut self,
        state: &StateDir,
        book: &mut AcceptedObjects,
        files: &mut DeclarationFiles,
        resolve: &EndpointResolver<'_>,
        now: Instant,
    ) -> Result<(), StateError> {
        for name in state.list(RECORDS_FOLDER)? {
            let Some(bytes) = state.read(&name)? else { continue };
            let records: Vec<FileRecord> = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!("{}: no record of declarations: {error}", state.path().join(&name).display());
                Vec::new()
            });
            for record in records {
                let path = Arc::new(record.path);
                for entry in record.objects {
                    entry.restore(book, &path, resolve);
                }
                files.restore(&path, record.digest, now);
                self.paths_by_record.entry(record_name(&path)).or_default().insert(path);
            }
        }
        Ok(())
    }

    /// The records of these files are no longer true.
    pub fn mark_stale(&mut self, paths: BTreeSet<Arc<PathBuf>>) {
        for path in paths {
            let name = record_name(&path);
            self.paths_by_record.entry(name.clone()).or_default().insert(path);
            self.stale_records.insert(name);
        }
    }

    /// Writes them anew. What cannot be written is tried again at the next call.
    pub fn write(
        &mut self,
        state: &StateDir,
        book: &AcceptedObjects,
        files: &DeclarationFiles,
    ) -> Result<(), StateError> {
        while let Some(name) = self.stale_records.first() {
            let mut records = Vec::new();
            if let Some(paths) = self.paths_by_record.get_mut(name) {
                paths.retain(|path| {
                    let record = FileRecord::for_file(path, book, files);
                    let keep = record.is_some();
                    records.extend(record);
                    keep
                });
            }
            match serde_json::to_vec(&records) {
                Ok(bytes) if !records.is_empty() => state.write(name, &bytes)?,
                _ => state.remove(name)?,
            }
            self.stale_records.pop_first();
        }
        Ok(())
    }
}

/// The name of the file that a record is in.
fn record_name(path: &Path) -> String {
    format!("{RECORDS_FOLDER}/{}", Digest::of(path.as_os_str().as_encoded_bytes()).hex_prefix(2))
}

impl FileRecord {
    /// `None` if nothing of the file is in force, or if its path is not UTF-8: then its objects will be new
    /// after a restart.
    fn for_file(path: &Arc<PathBuf>, book: &AcceptedObjects, files: &DeclarationFiles) -> Option<Self> {
        let mut objects = object_records(&book.servers, path);
        objects.append(&mut object_records(&book.skills, path));
        let known = !objects.is_empty() && path.to_str().is_some();
        known.then(|| Self { path: path.to_path_buf(), digest: files.applied_digest(path), objects })
    }
}

fn object_records<S: ObjectSpec>(shelf: &AcceptedKind<S>, path: &Arc<PathBuf>) -> Vec<ObjectRecord> {
    let entry = |(meta, line, text): (&DeclaredMeta, u32, Option<&Arc<str>>)| ObjectRecord {
        kind: S::KIND.to_owned(),
        namespace: meta.key.namespace.to_string(),
        name: meta.key.name.to_string(),
        uid: meta.uid.to_string(),
        generation: meta.generation,
        created: meta.created_at,
        revision: meta.revision.to_string(),
        change: meta.last_commit.clone(),
        line,
        document: text.map(ToString::to_string),
    };
    shelf.applied_objects(path).map(entry).collect()
}

impl ObjectRecord {
    fn restore(self, book: &mut AcceptedObjects, path: &Arc<PathBuf>, resolve: &EndpointResolver<'_>) {
        let parsed = parse(path, self.document.as_deref().unwrap_or_default().as_bytes());
        match self.kind.as_str() {
            McpServerSpec::KIND => book.servers.restore(path, self.into_restored(parsed.servers), resolve),
            SkillSpec::KIND => book.skills.restore(path, self.into_restored(parsed.skills), resolve),
            _ => {}
        }
    }

    fn into_restored<S>(self, objects: Vec<ParsedObject<S>>) -> RestoredObject<S> {
        let key = ObjectKey::new(self.namespace, self.name);
        RestoredObject {
            last_good: objects.into_iter().find(|object| object.key == key),
            key,
            line: self.line,
            uid: self.uid.into(),
            generation: self.generation,
            created: self.created,
            revision: self.revision.into(),
            change: self.change,
        }
    }
}
