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

const FOLDER: &str = "declarations";

/// A file and the objects it has in force.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    /// Of its content; absent if it could not be read.
    digest: Option<Digest>,
    objects: Vec<Entry>,
}

/// An object. Its document may hold secrets that are written out in it, as the file does; never resolved ones.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
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
    files: BTreeMap<String, BTreeSet<Arc<PathBuf>>>,
    /// The ones that are no longer true.
    stale: BTreeSet<String>,
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
        for name in state.list(FOLDER)? {
            let Some(bytes) = state.read(&name)? else { continue };
            let records: Vec<Record> = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!("{}: no record of declarations: {error}", state.path().join(&name).display());
                Vec::new()
            });
            for record in records {
                let path = Arc::new(record.path);
                for entry in record.objects {
                    entry.restore(book, &path, resolve);
                }
                files.remember(&path, record.digest, now);
                self.files.entry(file_of(&path)).or_default().insert(path);
            }
        }
        Ok(())
    }

    /// The records of these files are no longer true.
    pub fn outdate(&mut self, paths: BTreeSet<Arc<PathBuf>>) {
        for path in paths {
            let name = file_of(&path);
            self.files.entry(name.clone()).or_default().insert(path);
            self.stale.insert(name);
        }
    }

    /// Writes them anew. What cannot be written is tried again at the next call.
    pub fn write(
        &mut self,
        state: &StateDir,
        book: &AcceptedObjects,
        files: &DeclarationFiles,
    ) -> Result<(), StateError> {
        while let Some(name) = self.stale.first() {
            let mut records = Vec::new();
            if let Some(paths) = self.files.get_mut(name) {
                paths.retain(|path| {
                    let record = Record::of(path, book, files);
                    let keep = record.is_some();
                    records.extend(record);
                    keep
                });
            }
            match serde_json::to_vec(&records) {
                Ok(bytes) if !records.is_empty() => state.write(name, &bytes)?,
                _ => state.remove(name)?,
            }
            self.stale.pop_first();
        }
        Ok(())
    }
}

/// The name of the file that a record is in.
fn file_of(path: &Path) -> String {
    format!("{FOLDER}/{}", Digest::of(path.as_os_str().as_encoded_bytes()).short(2))
}

impl Record {
    /// `None` if nothing of the file is in force, or if its path is not UTF-8: then its objects will be new
    /// after a restart.
    fn of(path: &Arc<PathBuf>, book: &AcceptedObjects, files: &DeclarationFiles) -> Option<Self> {
        let mut objects = entries(&book.servers, path);
        objects.append(&mut entries(&book.skills, path));
        let known = !objects.is_empty() && path.to_str().is_some();
        known.then(|| Self { path: path.to_path_buf(), digest: files.taken(path), objects })
    }
}

fn entries<S: ObjectSpec>(shelf: &AcceptedKind<S>, path: &Arc<PathBuf>) -> Vec<Entry> {
    let entry = |(meta, line, text): (&DeclaredMeta, u32, Option<&Arc<str>>)| Entry {
        kind: S::NAME.to_owned(),
        namespace: meta.key.namespace.to_string(),
        name: meta.key.name.to_string(),
        uid: meta.uid.to_string(),
        generation: meta.generation,
        created: meta.created,
        revision: meta.revision.to_string(),
        change: meta.change.clone(),
        line,
        document: text.map(ToString::to_string),
    };
    shelf.in_force(path).map(entry).collect()
}

impl Entry {
    fn restore(self, book: &mut AcceptedObjects, path: &Arc<PathBuf>, resolve: &EndpointResolver<'_>) {
        let parsed = parse(path, self.document.as_deref().unwrap_or_default().as_bytes());
        match self.kind.as_str() {
            McpServerSpec::NAME => book.servers.restore(path, self.remembered(parsed.servers), resolve),
            SkillSpec::NAME => book.skills.restore(path, self.remembered(parsed.skills), resolve),
            _ => {}
        }
    }

    fn remembered<S>(self, objects: Vec<ParsedObject<S>>) -> RestoredObject<S> {
        let key = ObjectKey::new(self.namespace, self.name);
        RestoredObject {
            object: objects.into_iter().find(|object| object.key == key),
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
