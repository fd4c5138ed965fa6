//! Keeps the reserved names of tools, prompts and resources across restarts, in one file of the state directory.
//!
//! Each line holds all names of one server; of several lines, the last counts. Changes are appended, so that a write
//! costs what changed, and the file is compacted once half of it is out of date. Names are stored as digests: a URI
//! may hold a secret.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::{NameId, ReservedName, ReservedNames, ReservedUntil, ServerNames};
use crate::resource::{Digest, ObjectKey};
use crate::state_dir::{StateDir, StateError};

const NAMES_FILE: &str = "names.jsonl";
/// The time for which changes are collected before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(5);
/// The minimum file size for compaction, in bytes. A smaller file is compacted at the next start.
const MIN_COMPACTION_BYTES: u64 = 1 << 20;
/// The longest time for which a name is reserved after its server is removed, even if the clock was set back.
const MAX_RESERVATION: Duration = Duration::from_hours(1);
/// The maximum number of names in the file.
const MAX_NAMES: usize = 131_072;

/// One line: all names of one server; none if it has no names any more.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamesLine {
    namespace: String,
    name: String,
    #[serde(flatten)]
    names: EncodedNames,
    /// The names that the server itself no longer offers.
    #[serde(default, skip_serializing_if = "EncodedNames::is_empty")]
    given_up: EncodedNames,
}

/// A set of names, and the time until which the last of them is reserved.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct EncodedNames {
    /// Pairs of 64-bit numbers, a name and its item, in base64.
    names: String,
    /// `None` while the server is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Writes names to the file as they change.
#[derive(Debug)]
pub(super) struct NamesFile {
    state: Arc<StateDir>,
    /// Digests of the lines in force, so that unchanged names are not written again.
    written_digests: HashMap<ObjectKey, Digest>,
    size: u64,
    /// The size of the file after its last compaction, in bytes.
    compacted_size: u64,
    /// True after a failed write: the file may end in the middle of a line.
    may_end_mid_line: bool,
}

impl NamesFile {
    /// Reads the names of earlier runs. Blocks.
    ///
    /// Names that cannot be read are logged and left out. They are then assigned to the first server that offers them.
    pub(super) fn open(state: &Arc<StateDir>, now: Timestamp) -> (Self, ReservedNames) {
        let mut file = Self {
            state: state.clone(),
            written_digests: HashMap::new(),
            size: 0,
            compacted_size: 0,
            may_end_mid_line: false,
        };
        let mut reserved = ReservedNames::default();
        let lines = file.compact(now).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the reserved names; names are assigned anew");
            BTreeMap::new()
        });
        let start = Instant::now();
        for (server, line) in lines {
            let until = |names: &EncodedNames| names.until.map(|until| start + time_left(until, now));
            for own in line.names.decode() {
                reserved.reserve(
                    &server,
                    own,
                    until(&line.names).map_or(ReservedUntil::Removed, ReservedUntil::Time),
                );
            }
            for own in line.given_up.decode() {
                reserved.reserve(
                    &server,
                    own,
                    ReservedUntil::Released(until(&line.given_up).unwrap_or(start)),
                );
            }
            file.written_digests.insert(server, line.digest());
        }
        (file, reserved)
    }

    /// Writes changes to the file until `stop` is cancelled, then the changes received before that.
    pub(super) async fn run(
        mut self,
        mut updates: mpsc::UnboundedReceiver<ServerNames>,
        stop: CancellationToken,
    ) {
        loop {
            let first = tokio::select! {
                first = updates.recv() => first,
                () = stop.cancelled() => updates.try_recv().ok(),
            };
            let Some(first) = first else { return };
            stop.run_until_cancelled(tokio::time::sleep(WRITE_DELAY)).await;
            let mut batch = BTreeMap::from([(first.server.clone(), first)]);
            while let Ok(next) = updates.try_recv() {
                batch.insert(next.server.clone(), next);
            }
            let state = self.state.clone();
            let write_task = tokio::task::spawn_blocking(move || {
                let result = self.append(batch.into_values(), Timestamp::now());
                (self, result)
            });
            let reopen = || tokio::task::spawn_blocking(move || Self::open(&state, Timestamp::now()).0);
            match write_task.await {
                Ok((file, result)) => {
                    self = file;
                    if let Err(error) = result {
                        tracing::warn!(%error, "cannot write the reserved names; they may change at the next restart");
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "writing the reserved names failed; some may change at the next restart; please report this"
                    );
                    // An error ends the task, and with it the process.
                    let Ok(file) = reopen().await else { return };
                    self = file;
                }
            }
        }
    }

    fn append(&mut self, batch: impl Iterator<Item = ServerNames>, now: Timestamp) -> Result<(), StateError> {
        let mut text = String::new();
        if self.may_end_mid_line {
            text.push('\n');
        }
        for names in batch {
            let line = NamesLine::from_server(&names, now);
            let digest = line.digest();
            let unchanged = match self.written_digests.get(&names.server) {
                Some(written) => *written == digest,
                None => names.names.is_empty(),
            };
            if unchanged {
                continue;
            }
            push_line(&mut text, &line);
            self.written_digests.insert(names.server, digest);
        }
        if text.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.state.append(NAMES_FILE, text.as_bytes()) {
            self.may_end_mid_line = true;
            self.written_digests.clear();
            return Err(error);
        }
        self.may_end_mid_line = false;
        self.size += text.len() as u64;
        if self.size > MIN_COMPACTION_BYTES.max(2 * self.compacted_size) {
            self.compact(now)?;
        }
        Ok(())
    }

    /// Rewrites the file with only the lines in force, and returns these.
    fn compact(&mut self, now: Timestamp) -> Result<BTreeMap<ObjectKey, NamesLine>, StateError> {
        let bytes = self.state.read(NAMES_FILE)?.unwrap_or_default();
        let mut lines = BTreeMap::new();
        // A line that a crash truncated is not JSON. Its names were not published yet.
        let read = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        for line in read {
            let line: NamesLine = line;
            lines.insert(ObjectKey::new(&*line.namespace, &*line.name), line);
        }
        let mut count = 0;
        lines.retain(|_, line| {
            for names in [&mut line.names, &mut line.given_up] {
                if names.until.is_some_and(|until| until <= now) {
                    *names = EncodedNames::default();
                }
                count += names.decode().len();
            }
            count <= MAX_NAMES && !(line.names.is_empty() && line.given_up.is_empty())
        });
        let mut text = String::new();
        for line in lines.values() {
            push_line(&mut text, line);
        }
        if text.as_bytes() != bytes {
            self.state.write(NAMES_FILE, text.as_bytes())?;
        }
        self.written_digests.retain(|server, _| lines.contains_key(server));
        (self.size, self.compacted_size) = (text.len() as u64, text.len() as u64);
        Ok(lines)
    }
}

impl NamesLine {
    fn from_server(names: &ServerNames, now: Timestamp) -> Self {
        let ServerNames { server, names } = names;
        let given_up = |until: ReservedUntil| matches!(until, ReservedUntil::Released(_));
        let [names, given_up] = [false, true].map(|is_given_up| {
            EncodedNames::encode(
                names.iter().filter(|(_, until)| given_up(*until) == is_given_up).copied().collect(),
                now,
            )
        });
        Self { namespace: server.namespace.to_string(), name: server.name.to_string(), names, given_up }
    }

    fn digest(&self) -> Digest {
        let until = [&self.names, &self.given_up].map(|names| format!("{:?}", names.until));
        let [until, given_up_until] = &until;
        let parts = [&self.names.names, until, &self.given_up.names, given_up_until];
        Digest::of_parts(parts.into_iter().flat_map(|part| [part.as_bytes(), b"\n"]))
    }
}

impl EncodedNames {
    fn encode(mut names: Vec<(ReservedName, ReservedUntil)>, now: Timestamp) -> Self {
        let declared = names.iter().any(|(_, until)| *until == ReservedUntil::Removed);
        let last = names.iter().filter_map(|(_, until)| until.time()).max().filter(|_| !declared);
        let time_left = last.map(|last| last.saturating_duration_since(Instant::now()));
        names.sort_unstable_by_key(|(own, _)| *own);
        names.dedup_by_key(|(own, _)| *own);
        let numbers = names.iter().flat_map(|(own, _)| [own.name.number(), own.item_digest]);
        let bytes: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
        let until =
            time_left.and_then(|time_left| now.checked_add(SignedDuration::try_from(time_left).ok()?).ok());
        Self { names: STANDARD_NO_PAD.encode(bytes), until }
    }

    fn decode(&self) -> Vec<ReservedName> {
        let bytes = STANDARD_NO_PAD.decode(&self.names).unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<8>();
        let (pairs, _) = numbers.as_chunks::<2>();
        let own = |[name, item]: &[[u8; 8]; 2]| ReservedName {
            name: NameId::from_number(u64::from_be_bytes(*name)),
            item_digest: u64::from_be_bytes(*item),
        };
        pairs.iter().map(own).collect()
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

fn push_line(text: &mut String, line: &NamesLine) {
    if let Ok(json) = serde_json::to_string(line) {
        text.push_str(&json);
        text.push('\n');
    }
}

/// Returns the time for which a name stays reserved: at most [`MAX_RESERVATION`], even if the clock was set back.
fn time_left(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default().min(MAX_RESERVATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved_name(number: u64) -> ReservedName {
        ReservedName { name: NameId::from_number(number), item_digest: number + 1 }
    }

    fn server_names(server: &str, numbers: std::ops::Range<u64>, until: ReservedUntil) -> ServerNames {
        let names = numbers.map(|number| (reserved_name(number), until)).collect();
        ServerNames { server: ObjectKey::new("default", server), names }
    }

    /// Returns the names of a server that the next run reads, and the time for which they stay reserved.
    fn reopen(state: &Arc<StateDir>, server: &str, now: Timestamp) -> Vec<(ReservedName, Option<Duration>)> {
        let (_, reserved) = NamesFile::open(state, now);
        let remaining = |until: ReservedUntil| Some(until.time()?.saturating_duration_since(Instant::now()));
        reserved
            .names_of(&ObjectKey::new("default", server))
            .map(|(own, until)| (own, remaining(until)))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn names_survive_a_restart_until_they_expire() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (sender, updates) = mpsc::unbounded_channel();
        let hour = Duration::from_hours(1);
        let mut some = server_names("a", 0..3, ReservedUntil::Removed);
        some.names.push((reserved_name(7), ReservedUntil::Released(Instant::now() + hour)));
        for update in [
            server_names("a", 0..2, ReservedUntil::Removed),
            server_names("b", 10..11, ReservedUntil::Time(Instant::now() + hour)),
            server_names("none", 0..0, ReservedUntil::Removed),
            some,
        ] {
            sender.send(update).unwrap();
        }
        // Updates sent before `stop` are written.
        let stop = CancellationToken::new();
        stop.cancel();
        NamesFile::open(&state, Timestamp::now()).0.run(updates, stop).await;
        let text = String::from_utf8(state.read(NAMES_FILE).unwrap().unwrap()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");

        let now = Timestamp::now();
        let of_a = reopen(&state, "a", now);
        let without_expiry = (0..3).map(|number| (reserved_name(number), None)).collect::<Vec<_>>();
        assert_eq!(of_a[..3], without_expiry);
        let expires_within_the_hour = |remaining: Option<Duration>| {
            remaining.is_some_and(|remaining| remaining <= hour && !remaining.is_zero())
        };
        assert!(
            of_a.len() == 4 && of_a[3].0 == reserved_name(7) && expires_within_the_hour(of_a[3].1),
            "{of_a:?}"
        );
        let of_b = reopen(&state, "b", now);
        assert!(
            of_b.len() == 1 && of_b[0].0 == reserved_name(10) && expires_within_the_hour(of_b[0].1),
            "{of_b:?}"
        );
        let earlier = now - SignedDuration::from_hours(100);
        assert_eq!(reopen(&state, "b", earlier)[0].1, Some(hour), "the clock was set back");
        // A truncated line affects no other line.
        state.append(NAMES_FILE, br#"{"namespace":"default","na"#).unwrap();
        assert_eq!(reopen(&state, "a", now), of_a);
        assert_eq!(reopen(&state, "b", now + SignedDuration::from_hours(1)), []);
        assert_eq!(reopen(&state, "a", now), without_expiry, "the name that it gave up has expired");
    }

    #[test]
    fn file_is_bounded_and_skips_unchanged_names() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let now = Timestamp::now();
        let (mut file, _) = NamesFile::open(&state, now);
        let size = || state.read(NAMES_FILE).unwrap().unwrap().len() as u64;
        file.append([server_names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        let initial_size = size();
        file.append([server_names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(size(), initial_size);
        for number in 0..200 {
            file.append([server_names("a", number..number + 1_000, ReservedUntil::Removed)].into_iter(), now)
                .unwrap();
            assert!(size() <= MIN_COMPACTION_BYTES + initial_size, "{}", size());
        }
        let (mut reopened, reserved) = NamesFile::open(&state, now);
        assert_eq!(
            (size(), reserved.names_of(&ObjectKey::new("default", "a")).count()),
            (initial_size, 1_000)
        );
        reopened.append([server_names("a", 199..1_199, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(
            size(),
            initial_size,
            "names that did not change since before the restart are not written"
        );
    }
}
