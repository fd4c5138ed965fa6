//! The names of tools, prompts and resources that are kept over a restart, in one file of the state directory.
//!
//! Each line holds all names of one server; of several the last counts. What changes is appended, so that it costs what
//! changed, and the file is written anew once half of it is out of date. Names are written as digests: a URI may hold a
//! secret.

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
/// How long changes are collected before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(5);
/// A smaller file is not written anew before the next start.
const MIN_COMPACTION_BYTES: u64 = 1 << 20;
/// No name is kept for longer once its server is gone, whatever the clock says.
const MAX_RESERVATION: Duration = Duration::from_hours(1);
/// So many names are written at most.
const MAX_NAMES: usize = 131_072;

/// One line: all names of one server, none if there are none any more.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamesLine {
    namespace: String,
    name: String,
    #[serde(flatten)]
    names: EncodedNames,
    /// What the server gave up itself.
    #[serde(default, skip_serializing_if = "EncodedNames::is_empty")]
    given_up: EncodedNames,
}

/// Some names, and how long the last of them is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct EncodedNames {
    /// Pairs of numbers of 64 bits, a name and the item that it is of, in base64.
    names: String,
    /// `None` while the server is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Writes names down as they change.
#[derive(Debug)]
pub(super) struct NamesFile {
    state: Arc<StateDir>,
    /// Digests of the lines that are in force, so that what is written already is not written again.
    written_digests: HashMap<ObjectKey, Digest>,
    size: u64,
    /// The size of the file when it was written anew.
    compacted_size: u64,
    /// The file may end in the middle of a line.
    may_end_mid_line: bool,
}

impl NamesFile {
    /// Reads what was written down by earlier runs. Blocks.
    ///
    /// What cannot be read is left out, and said: then names go to whoever asks first.
    pub(super) fn open(state: &Arc<StateDir>, now: Timestamp) -> (Self, ReservedNames) {
        let mut file = Self {
            state: state.clone(),
            written_digests: HashMap::new(),
            size: 0,
            compacted_size: 0,
            may_end_mid_line: false,
        };
        let mut kept = ReservedNames::default();
        let lines = file.compact(now).unwrap_or_else(|error| {
            tracing::warn!(%error, "which names tools had before is not known");
            BTreeMap::new()
        });
        let start = Instant::now();
        for (server, line) in lines {
            let until = |names: &EncodedNames| names.until.map(|until| start + time_left(until, now));
            for own in line.names.decode() {
                kept.reserve(
                    &server,
                    own,
                    until(&line.names).map_or(ReservedUntil::Removed, ReservedUntil::Time),
                );
            }
            for own in line.given_up.decode() {
                kept.reserve(&server, own, ReservedUntil::Released(until(&line.given_up).unwrap_or(start)));
            }
            file.written_digests.insert(server, line.digest());
        }
        (file, kept)
    }

    /// Writes down what changes, until it is stopped.
    pub(super) async fn run(
        mut self,
        mut news: mpsc::UnboundedReceiver<ServerNames>,
        stop: CancellationToken,
    ) {
        loop {
            let first = tokio::select! {
                first = news.recv() => first,
                () = stop.cancelled() => news.try_recv().ok(),
            };
            let Some(first) = first else { return };
            stop.run_until_cancelled(tokio::time::sleep(WRITE_DELAY)).await;
            let mut batch = BTreeMap::from([(first.server.clone(), first)]);
            while let Ok(next) = news.try_recv() {
                batch.insert(next.server.clone(), next);
            }
            let written = tokio::task::spawn_blocking(move || {
                let done = self.append(batch.into_values(), Timestamp::now());
                (self, done)
            });
            match written.await {
                Ok((file, done)) => {
                    self = file;
                    if let Err(error) = done {
                        tracing::warn!(%error, "the names of tools are not kept over a restart");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the names of tools are not kept over a restart any more");
                    return;
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
            let same = match self.written_digests.get(&names.server) {
                Some(written) => *written == digest,
                None => names.names.is_empty(),
            };
            if same {
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

    /// Writes the lines that are in force, and no others; gives them.
    fn compact(&mut self, now: Timestamp) -> Result<BTreeMap<ObjectKey, NamesLine>, StateError> {
        let bytes = self.state.read(NAMES_FILE)?.unwrap_or_default();
        let mut lines = BTreeMap::new();
        // A line that a crash cut short is no JSON: it was told to nobody.
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
        let [names, given_up] = [false, true].map(|wanted| {
            EncodedNames::encode(
                names.iter().filter(|(_, until)| given_up(*until) == wanted).copied().collect(),
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
        let left = last.map(|last| last.saturating_duration_since(Instant::now()));
        names.sort_unstable_by_key(|(own, _)| *own);
        names.dedup_by_key(|(own, _)| *own);
        let numbers = names.iter().flat_map(|(own, _)| [own.name.number(), own.item_digest]);
        let bytes: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
        let until = left.and_then(|left| now.checked_add(SignedDuration::try_from(left).ok()?).ok());
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

/// Tells how long a name is still kept: never longer than the whole time, should the clock have been set back.
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

    /// What the next run knows of a server: its names, and how long they are kept.
    fn reopen(state: &Arc<StateDir>, server: &str, now: Timestamp) -> Vec<(ReservedName, Option<Duration>)> {
        let (_, kept) = NamesFile::open(state, now);
        let left = |until: ReservedUntil| Some(until.time()?.saturating_duration_since(Instant::now()));
        kept.names_of(&ObjectKey::new("default", server)).map(|(own, until)| (own, left(until))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn names_survive_a_restart_until_they_expire() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (tell, news) = mpsc::unbounded_channel();
        let hour = Duration::from_hours(1);
        let mut some = server_names("a", 0..3, ReservedUntil::Removed);
        some.names.push((reserved_name(7), ReservedUntil::Released(Instant::now() + hour)));
        for told in [
            server_names("a", 0..2, ReservedUntil::Removed),
            server_names("b", 10..11, ReservedUntil::Time(Instant::now() + hour)),
            server_names("none", 0..0, ReservedUntil::Removed),
            some,
        ] {
            tell.send(told).unwrap();
        }
        // What was told before the end is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        NamesFile::open(&state, Timestamp::now()).0.run(news, stop).await;
        let text = String::from_utf8(state.read(NAMES_FILE).unwrap().unwrap()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");

        let now = Timestamp::now();
        let of_a = reopen(&state, "a", now);
        let lasting = (0..3).map(|number| (reserved_name(number), None)).collect::<Vec<_>>();
        assert_eq!(of_a[..3], lasting);
        let soon = |left: Option<Duration>| left.is_some_and(|left| left <= hour && !left.is_zero());
        assert!(of_a.len() == 4 && of_a[3].0 == reserved_name(7) && soon(of_a[3].1), "{of_a:?}");
        let of_b = reopen(&state, "b", now);
        assert!(of_b.len() == 1 && of_b[0].0 == reserved_name(10) && soon(of_b[0].1), "{of_b:?}");
        let earlier = now - SignedDuration::from_hours(100);
        assert_eq!(reopen(&state, "b", earlier)[0].1, Some(hour), "the clock was set back");
        // A line that was cut short takes nothing with it.
        state.append(NAMES_FILE, br#"{"namespace":"default","na"#).unwrap();
        assert_eq!(reopen(&state, "a", now), of_a);
        assert_eq!(reopen(&state, "b", now + SignedDuration::from_hours(1)), []);
        assert_eq!(reopen(&state, "a", now), lasting, "what it gave up is free by now");
    }

    #[test]
    fn file_is_bounded_and_skips_unchanged_names() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let now = Timestamp::now();
        let (mut file, _) = NamesFile::open(&state, now);
        let size = || state.read(NAMES_FILE).unwrap().unwrap().len() as u64;
        file.append([server_names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        let once = size();
        file.append([server_names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(size(), once);
        for number in 0..200 {
            file.append([server_names("a", number..number + 1_000, ReservedUntil::Removed)].into_iter(), now)
                .unwrap();
            assert!(size() <= MIN_COMPACTION_BYTES + once, "{}", size());
        }
        let (mut again, kept) = NamesFile::open(&state, now);
        assert_eq!((size(), kept.names_of(&ObjectKey::new("default", "a")).count()), (once, 1_000));
        again.append([server_names("a", 199..1_199, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(size(), once, "what is as it was before the restart is not written");
    }
}
