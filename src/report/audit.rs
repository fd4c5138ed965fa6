use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{EventAction, ObjectKind, Occurrence};
use crate::resource::{Commit, Digest, Reason};

/// The folder of the audit log in the state directory.
const AUDIT_FOLDER: &str = "audit";
/// The file that records are appended to.
const AUDIT_FILE: &str = "audit.jsonl";
/// The `actor.source` of requests over the status API.
const STATUS_API_SOURCE: &str = "statusApi";
/// The size beyond which the file is rotated.
const MAX_FILE_BYTES: u64 = 10 << 20;
/// The number of rotated files that are kept.
const MAX_OLD_FILES: usize = 4;
/// The maximum number of records that wait for the disk. Further ones are dropped.
const MAX_QUEUED_RECORDS: usize = 10_000;

/// The metrics of the audit log.
#[derive(Clone, Debug, Default)]
pub struct AuditMetrics {
    written: Counter,
    lost: Counter,
}

impl AuditMetrics {
    /// Registers both counters in a registry with the prefix `evenkeel`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("audit_records", "Records written to the audit log", self.written.clone());
        registry.register("audit_records_lost", "Records that could not be written", self.lost.clone());
    }
}

/// Writes every occurrence to `audit/audit.jsonl` in the state directory, until the channel is closed.
///
/// Records that cannot be written are counted and the failure is logged; neither blocks the sender. `source` is the
/// kind of source that declarations come from.
pub async fn write_audit_log(
    state_dir: &Path,
    source: &'static str,
    mut occurrences: mpsc::UnboundedReceiver<Arc<Occurrence>>,
    metrics: AuditMetrics,
) {
    let mut idle_file = Some(AuditFile::new(state_dir.join(AUDIT_FOLDER), MAX_FILE_BYTES));
    let mut running: Option<JoinHandle<(AuditFile, usize, io::Result<()>)>> = None;
    let mut queued: Vec<Arc<Occurrence>> = Vec::new();
    let mut batch_size = 0;
    let mut channel_open = true;
    let mut is_failing = false;
    loop {
        if let Some(mut file) = idle_file.take_if(|_| !queued.is_empty()) {
            let batch = std::mem::take(&mut queued);
            batch_size = batch.len();
            running = Some(tokio::task::spawn_blocking(move || {
                let lines: Vec<u8> =
                    batch.iter().flat_map(|occurrence| encode_record(occurrence, source)).collect();
                let result = file.append(&lines);
                (file, batch.len(), result)
            }));
        }
        tokio::select! {
            occurrence = occurrences.recv(), if channel_open => match occurrence {
                Some(occurrence) if queued.len() < MAX_QUEUED_RECORDS => queued.push(occurrence),
                Some(_) => { metrics.lost.inc(); }
                None => channel_open = false,
            },
            Some(joined) = join_if_running(running.as_mut()) => {
                running = None;
                let (file, count, result) = joined.unwrap_or_else(|error| {
                    let file = AuditFile::new(state_dir.join(AUDIT_FOLDER), MAX_FILE_BYTES);
                    (file, batch_size, Err(io::Error::other(error)))
                });
                idle_file = Some(file);
                let count = u64::try_from(count).unwrap_or_default();
                match result {
                    Ok(()) => { metrics.written.inc_by(count); }
                    Err(_) => { metrics.lost.inc_by(count); }
                }
                log_write_result(&result, &mut is_failing, metrics.lost.get());
            }
            else => return,
        }
    }
}

async fn join_if_running<T>(task: Option<&mut JoinHandle<T>>) -> Option<Result<T, tokio::task::JoinError>> {
    Some(task?.await)
}

/// Logs when writing begins to fail and when it works again.
fn log_write_result(result: &io::Result<()>, is_failing: &mut bool, lost: u64) {
    match result {
        Err(error) if !*is_failing => {
            tracing::warn!(%error, "the audit log cannot be written; records are lost until writing succeeds");
        }
        Ok(()) if *is_failing => tracing::info!(lost, "the audit log can be written again"),
        _ => {}
    }
    *is_failing = result.is_err();
}

/// A record as it is serialized. `docs/audit.md` explains each field.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditRecord<'a> {
    time: jiff::Timestamp,
    actor: AuditActor<'a>,
    object: AuditObject<'a>,
    action: EventAction,
    reason: Reason,
    outcome: &'static str,
    message: &'a str,
    old_spec_digest: Option<Digest>,
    spec_digest: Option<Digest>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditActor<'a> {
    source: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    revision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a Commit>,
}

#[derive(Serialize)]
struct AuditObject<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    generation: i64,
}

fn encode_record(occurrence: &Occurrence, source: &'static str) -> Vec<u8> {
    let Occurrence { at, regarding, action, warning, reason, note, revision, commit, .. } = occurrence;
    let source = if *action == EventAction::Request { STATUS_API_SOURCE } else { source };
    let record = AuditRecord {
        time: *at,
        actor: AuditActor { source, revision, commit: commit.as_deref() },
        object: AuditObject {
            kind: ObjectKind::name(regarding.kind),
            namespace: &regarding.key.namespace,
            name: &regarding.key.name,
            uid: &regarding.uid,
            generation: regarding.generation,
        },
        action: *action,
        reason: *reason,
        outcome: if *warning { "failure" } else { "success" },
        message: note,
        old_spec_digest: occurrence.previous_digest,
        spec_digest: occurrence.digest,
    };
    // Serialization cannot fail: there is no map with non-string keys.
    let mut line = serde_json::to_vec(&record).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The audit file and its rotated predecessors. All methods block.
#[derive(Debug)]
struct AuditFile {
    folder: PathBuf,
    max_bytes: u64,
    /// The open file and its size; `None` before the first record and after a failure.
    file: Option<(File, u64)>,
}

impl AuditFile {
    fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes, file: None }
    }

    /// Appends whole lines. After a failure some of them may have been written.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let (file, size) = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let added = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let (mut file, size) = if size > 0 && size.saturating_add(added) > self.max_bytes {
            drop(file);
            self.rotate()?;
            self.open()?
        } else {
            (file, size)
        };
        file.write_all(lines)?;
        self.file = Some((file, size + added));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.folder.join(AUDIT_FILE);
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // A record was truncated by a full disk or a crash. The next record must begin on its own line.
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok((file, size))
    }

    /// Renames `audit.jsonl` to `audit.1.jsonl`, and so on; the oldest is overwritten.
    fn rotate(&self) -> io::Result<()> {
        let old_file = |number: usize| self.folder.join(format!("audit.{number}.jsonl"));
        for number in (1..MAX_OLD_FILES).rev() {
            match std::fs::rename(old_file(number), old_file(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(self.folder.join(AUDIT_FILE), old_file(1))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::report::Regarding;
    use crate::resource::ObjectKey;

    fn occurrence(name: &str) -> Arc<Occurrence> {
        Arc::new(Occurrence {
            at: Timestamp::UNIX_EPOCH,
            regarding: Regarding {
                kind: ObjectKind::McpServer,
                key: ObjectKey::new("default", name),
                uid: "u".into(),
                generation: 2,
            },
            action: EventAction::Update,
            warning: true,
            reason: Reason::Exited,
            note: "exited with code 3".into(),
            fixed_note: None,
            revision: "abc".into(),
            commit: Some(Arc::new(Commit {
                id: "abc".into(),
                author: "A <a@b>".into(),
                subject: "s".into(),
            })),
            previous_digest: Some(Digest::of(b"old")),
            digest: None,
        })
    }

    fn read_records(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!(line))).collect()
    }

    #[tokio::test]
    async fn occurrences_are_written_and_failures_counted() {
        let state = tempfile::tempdir().unwrap();
        let metrics = AuditMetrics::default();
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(occurrence("a")).unwrap();
        sender.send(occurrence("b")).unwrap();
        drop(sender);
        write_audit_log(state.path(), "directory", receiver, metrics.clone()).await;
        let records = read_records(&state.path().join("audit/audit.jsonl"));
        assert_eq!(records.len(), 2);
        assert_eq!(
            records[0],
            json!({
                "time": "1970-01-01T00:00:00Z",
                "actor": {
                    "source": "directory", "revision": "abc",
                    "commit": { "id": "abc", "author": "A <a@b>", "subject": "s" },
                },
                "object": { "kind": "McpServer", "namespace": "default", "name": "a", "uid": "u", "generation": 2 },
                "action": "update", "reason": "Exited", "outcome": "failure", "message": "exited with code 3",
                "oldSpecDigest": Digest::of(b"old").to_string(), "specDigest": null,
            })
        );
        assert_eq!((metrics.written.get(), metrics.lost.get()), (2, 0));

        // A state directory in which no folder can be created.
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(occurrence("a")).unwrap();
        drop(sender);
        write_audit_log(Path::new("/dev/null"), "directory", receiver, metrics.clone()).await;
        assert_eq!((metrics.written.get(), metrics.lost.get()), (2, 1));
    }

    #[test]
    fn files_rotate_and_a_truncated_record_is_isolated() {
        let folder = tempfile::tempdir().unwrap();
        let file = |number: usize| folder.path().join(format!("audit.{number}.jsonl"));
        let mut log = AuditFile::new(folder.path().to_owned(), 10);
        for number in 0..9 {
            log.append(format!("[{number}000000]\n").as_bytes()).unwrap();
        }
        assert_eq!(read_records(&folder.path().join(AUDIT_FILE)), [json!([8_000_000])]);
        assert_eq!(read_records(&file(MAX_OLD_FILES)), [json!([4_000_000])]);
        assert!(!file(MAX_OLD_FILES + 1).exists());

        std::fs::write(folder.path().join(AUDIT_FILE), "{\"hal").unwrap();
        let mut log = AuditFile::new(folder.path().to_owned(), 100);
        log.append(b"[1]\n").unwrap();
        assert_eq!(read_records(&folder.path().join(AUDIT_FILE)), [json!("{\"hal"), json!([1])]);
    }
}
