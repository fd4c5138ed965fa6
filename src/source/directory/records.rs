//! What is remembered of the declarations from one run to the next: one record per file, in the state
//! directory, so that a change costs one record.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use super::files::Files;
use super::merge::{Book, Remembered, Shelf};
use super::parse::{Kind, Object, Resolve, parse};
use crate::resource::{Digest, McpServerSpec, ObjectKey, SkillSpec};
use crate::state::{StateDir, StateError};

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
    line: u32,
    /// The last good one.
    document: Option<String>,
}

/// The records that are no longer true.
#[derive(Debug, Default)]
pub(super) struct Stale(BTreeSet<Arc<PathBuf>>);

impl Stale {
    pub fn extend(&mut self, paths: BTreeSet<Arc<PathBuf>>) {
        self.0.extend(paths);
    }

    /// Writes them anew. What cannot be written is tried again at the next call.
    pub fn write(&mut self, state: &StateDir, book: &Book, files: &Files) -> Result<(), StateError> {
        while let Some(path) = self.0.first() {
            put(state, path, book, files)?;
            self.0.pop_first();
        }
        Ok(())
    }
}

/// Takes up what the last run knew. A record that cannot be read is left out: its objects will be new.
pub(super) fn restore(
    state: &StateDir,
    book: &mut Book,
    files: &mut Files,
    resolve: &Resolve<'_>,
    now: Instant,
) -> Result<(), StateError> {
    for name in state.list(FOLDER)? {
        let Some(bytes) = state.read(&name)? else { continue };
        let record: Record = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(error) => {
                warn!("{}: not a record of declarations: {error}", state.path().join(&name).display());
                continue;
            }
        };
        let path = Arc::new(record.path);
        for entry in record.objects {
            let parsed = parse(&path, entry.document.as_deref().unwrap_or_default().as_bytes());
            match entry.kind.as_str() {
                McpServerSpec::NAME => {
                    let remembered = entry.remembered(parsed.servers);
                    book.servers.restore(&path, remembered, resolve);
                }
                SkillSpec::NAME => {
                    let remembered = entry.remembered(parsed.skills);
                    book.skills.restore(&path, remembered, resolve);
                }
                _ => {}
            }
        }
        files.remember(&path, record.digest, now);
    }
    Ok(())
}

fn put(state: &StateDir, path: &Arc<PathBuf>, book: &Book, files: &Files) -> Result<(), StateError> {
    let name = format!("{FOLDER}/{}", Digest::of(path.as_os_str().as_encoded_bytes()).short(32));
    let mut objects = entries(&book.servers, path);
    objects.append(&mut entries(&book.skills, path));
    if objects.is_empty() {
        return state.remove(&name);
    }
    let record = Record { path: path.to_path_buf(), digest: files.taken(path), objects };
    match serde_json::to_vec(&record) {
        Ok(bytes) => state.write(&name, &bytes),
        // A path that is not UTF-8: its objects will be new after a restart.
        Err(_) => Ok(()),
    }
}

fn entries<S: Kind>(shelf: &Shelf<S>, path: &Arc<PathBuf>) -> Vec<Entry> {
    let entry = |(meta, line, text): (&crate::source::Meta, u32, Option<&Arc<str>>)| Entry {
        kind: S::NAME.to_owned(),
        namespace: meta.key.namespace.to_string(),
        name: meta.key.name.to_string(),
        uid: meta.uid.to_string(),
        generation: meta.generation,
        created: meta.created,
        revision: meta.revision.to_string(),
        line,
        document: text.map(ToString::to_string),
    };
    shelf.in_force(path).map(entry).collect()
}

impl Entry {
    fn remembered<S>(self, objects: Vec<Object<S>>) -> Remembered<S> {
        let key = ObjectKey::new(self.namespace, self.name);
        Remembered {
            object: objects.into_iter().find(|object| object.key == key),
            key,
            line: self.line,
            uid: self.uid.into(),
            generation: self.generation,
            created: self.created,
            revision: self.revision.into(),
        }
    }
}
