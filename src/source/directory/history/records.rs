//! Saves the declarations in the state directory for the next run: one record per declaring file.

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

/// A file and the objects that it has in force.
#[derive(Debug, Serialize, Deserialize)]
struct FileRecord {
    path: PathBuf,
    /// The digest of its content; absent if the file could not be read.
    digest: Option<Digest>,
    objects: Vec<ObjectRecord>,
}

/// An object. Its document may contain secrets that are written literally in the file, but never resolved ones.
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
    /// The last good document.
    document: Option<String>,
}

/// The saved records, in at most 256 files that are chosen by the digest of the path: a change costs little, and a
/// first start writes few files.
#[derive(Debug, Default)]
pub struct DeclarationRecords {
    paths_by_record: BTreeMap<String, BTreeSet<Arc<PathBuf>>>,
    /// The record files that must be written again.
    stale_records: BTreeSet<String>,
}

impl DeclarationRecords {
    /// Restores the records of the last run. A record that cannot be read is skipped: its objects will be new.
    ///
    /// Errors: the state directory cannot be read.
    pub fn restore(
        &mut self,
        state_dir: &StateDir,
        accepted: &mut AcceptedObjects,
        files: &mut DeclarationFiles,
        resolve: &EndpointResolver<'_>,
        now: Instant,
    ) -> Result<(), StateError> {
        for name in state_dir.list(RECORDS_FOLDER)? {
            let Some(bytes) = state_dir.read(&name)? else { continue };
            let records: Vec<FileRecord> = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(
                    "{}: invalid record of declarations; it is ignored: {error}",
                    state_dir.path().join(&name).display()
                );
                Vec::new()
            });
            for record in records {
                let path = Arc::new(record.path);
                for object in record.objects {
                    object.restore(accepted, &path, resolve);
                }
                files.restore(&path, record.digest, now);
                self.paths_by_record.entry(record_name(&path)).or_default().insert(path);
            }
        }
        Ok(())
    }

    /// Marks the records of these files as stale.
    pub fn mark_stale(&mut self, paths: BTreeSet<Arc<PathBuf>>) {
        for path in paths {
            let name = record_name(&path);
            self.paths_by_record.entry(name.clone()).or_default().insert(path);
            self.stale_records.insert(name);
        }
    }

    /// Writes the stale records. A record that cannot be written is retried on the next call.
    pub fn write(
        &mut self,
        state_dir: &StateDir,
        accepted: &AcceptedObjects,
        files: &DeclarationFiles,
    ) -> Result<(), StateError> {
        while let Some(name) = self.stale_records.first() {
            let mut records = Vec::new();
            if let Some(paths) = self.paths_by_record.get_mut(name) {
                paths.retain(|path| {
                    let record = FileRecord::for_file(path, accepted, files);
                    let has_record = record.is_some();
                    records.extend(record);
                    has_record
                });
            }
            match serde_json::to_vec(&records) {
                Ok(bytes) if !records.is_empty() => state_dir.write(name, &bytes)?,
                _ => state_dir.remove(name)?,
            }
            self.stale_records.pop_first();
        }
        Ok(())
    }
}

/// Returns the name of the file that contains a record.
fn record_name(path: &Path) -> String {
    format!("{RECORDS_FOLDER}/{}", Digest::of(path.as_os_str().as_encoded_bytes()).hex_prefix(2))
}

impl FileRecord {
    /// Returns the record of a file; `None` if nothing of the file is in force, or if its path is not UTF-8: its
    /// objects will then be new after a restart.
    fn for_file(path: &Arc<PathBuf>, accepted: &AcceptedObjects, files: &DeclarationFiles) -> Option<Self> {
        let mut objects = object_records(&accepted.servers, path);
        objects.append(&mut object_records(&accepted.skills, path));
        let is_recorded = !objects.is_empty() && path.to_str().is_some();
        is_recorded.then(|| Self { path: path.to_path_buf(), digest: files.applied_digest(path), objects })
    }
}

fn object_records<S: ObjectSpec>(kind: &AcceptedKind<S>, path: &Arc<PathBuf>) -> Vec<ObjectRecord> {
    let record = |(meta, line, text): (&DeclaredMeta, u32, Option<&Arc<str>>)| ObjectRecord {
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
    kind.applied_objects(path).map(record).collect()
}

impl ObjectRecord {
    fn restore(self, accepted: &mut AcceptedObjects, path: &Arc<PathBuf>, resolve: &EndpointResolver<'_>) {
        let parsed = parse(path, self.document.as_deref().unwrap_or_default().as_bytes());
        match self.kind.as_str() {
            McpServerSpec::KIND => {
                accepted.servers.restore(path, self.into_restored(parsed.servers), resolve)
            }
            SkillSpec::KIND => accepted.skills.restore(path, self.into_restored(parsed.skills), resolve),
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
            created_at: self.created,
            revision: self.revision.into(),
            last_commit: self.change,
        }
    }
}
