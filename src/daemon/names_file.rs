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

const FILE: &str = "names.jsonl";
/// How long changes are collected before they are written.
const PAUSE: Duration = Duration::from_millis(5);
/// A smaller file is not written anew before the next start.
const SMALL: u64 = 1 << 20;
/// No name is kept for longer once its server is gone, whatever the clock says.
const LONGEST: Duration = Duration::from_hours(1);
/// So many names are written at most.
const MOST: usize = 131_072;

/// One line: all names of one server, none if there are none any more.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    name: String,
    #[serde(flatten)]
    names: Names,
    /// What the server gave up itself.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    given_up: Names,
}

/// Some names, and how long the last of them is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Names {
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
    written: HashMap<ObjectKey, Digest>,
    size: u64,
    /// The size of the file when it was written anew.
    least: u64,
    /// The file may end in the middle of a line.
    torn: bool,
}

impl NamesFile {
    /// Reads what was written down by earlier runs. Blocks.
    ///
    /// What cannot be read is left out, and said: then names go to whoever asks first.
    pub(super) fn open(state: &Arc<StateDir>, now: Timestamp) -> (Self, ReservedNames) {
        let mut file = Self { state: state.clone(), written: HashMap::new(), size: 0, least: 0, torn: false };
        let mut kept = ReservedNames::default();
        let lines = file.compact(now).unwrap_or_else(|error| {
            tracing::warn!(%error, "which names tools had before is not known");
            BTreeMap::new()
        });
        let start = Instant::now();
        for (server, line) in lines {
            let until = |names: &Names| names.until.map(|until| start + left(until, now));
            for own in line.names.read() {
                kept.keep(
                    &server,
                    own,
                    until(&line.names).map_or(ReservedUntil::Removed, ReservedUntil::Time),
                );
            }
            for own in line.given_up.read() {
                kept.keep(&server, own, ReservedUntil::GivenUp(until(&line.given_up).unwrap_or(start)));
            }
            file.written.insert(server, line.digest());
        }
        (file, kept)
    }

    /// Writes down what changes, until it is stopped.
    pub(super) async fn keep(
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
            stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
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
        if self.torn {
            text.push('\n');
        }
        for names in batch {
            let line = Line::of(&names, now);
            let digest = line.digest();
            let same = match self.written.get(&names.server) {
                Some(written) => *written == digest,
                None => names.names.is_empty(),
            };
            if same {
                continue;
            }
            push(&mut text, &line);
            self.written.insert(names.server, digest);
        }
        if text.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.state.append(FILE, text.as_bytes()) {
            self.torn = true;
            self.written.clear();
            return Err(error);
        }
        self.torn = false;
        self.size += text.len() as u64;
        if self.size > SMALL.max(2 * self.least) {
            self.compact(now)?;
        }
        Ok(())
    }

    /// Writes the lines that are in force, and no others; gives them.
    fn compact(&mut self, now: Timestamp) -> Result<BTreeMap<ObjectKey, Line>, StateError> {
        let bytes = self.state.read(FILE)?.unwrap_or_default();
        let mut lines = BTreeMap::new();
        // A line that a crash cut short is no JSON: it was told to nobody.
        let read = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        for line in read {
            let line: Line = line;
            lines.insert(ObjectKey::new(&*line.namespace, &*line.name), line);
        }
        let mut count = 0;
        lines.retain(|_, line| {
            for names in [&mut line.names, &mut line.given_up] {
                if names.until.is_some_and(|until| until <= now) {
                    *names = Names::default();
                }
                count += names.read().len();
            }
            count <= MOST && !(line.names.is_empty() && line.given_up.is_empty())
        });
        let mut text = String::new();
        for line in lines.values() {
            push(&mut text, line);
        }
        if text.as_bytes() != bytes {
            self.state.write(FILE, text.as_bytes())?;
        }
        self.written.retain(|server, _| lines.contains_key(server));
        (self.size, self.least) = (text.len() as u64, text.len() as u64);
        Ok(lines)
    }
}

impl Line {
    fn of(names: &ServerNames, now: Timestamp) -> Self {
        let ServerNames { server, names } = names;
        let given_up = |until: ReservedUntil| matches!(until, ReservedUntil::GivenUp(_));
        let [names, given_up] = [false, true].map(|wanted| {
            Names::of(names.iter().filter(|(_, until)| given_up(*until) == wanted).copied().collect(), now)
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

impl Names {
    fn of(mut names: Vec<(ReservedName, ReservedUntil)>, now: Timestamp) -> Self {
        let declared = names.iter().any(|(_, until)| *until == ReservedUntil::Removed);
        let last = names.iter().filter_map(|(_, until)| until.time()).max().filter(|_| !declared);
        let left = last.map(|last| last.saturating_duration_since(Instant::now()));
        names.sort_unstable_by_key(|(own, _)| *own);
        names.dedup_by_key(|(own, _)| *own);
        let numbers = names.iter().flat_map(|(own, _)| [own.name.number(), own.item]);
        let bytes: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
        let until = left.and_then(|left| now.checked_add(SignedDuration::try_from(left).ok()?).ok());
        Self { names: STANDARD_NO_PAD.encode(bytes), until }
    }

    fn read(&self) -> Vec<ReservedName> {
        let bytes = STANDARD_NO_PAD.decode(&self.names).unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<8>();
        let (pairs, _) = numbers.as_chunks::<2>();
        let own = |[name, item]: &[[u8; 8]; 2]| ReservedName {
            name: NameId::from_number(u64::from_be_bytes(*name)),
            item: u64::from_be_bytes(*item),
        };
        pairs.iter().map(own).collect()
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

fn push(text: &mut String, line: &Line) {
    if let Ok(json) = serde_json::to_string(line) {
        text.push_str(&json);
        text.push('\n');
    }
}

/// Tells how long a name is still kept: never longer than the whole time, should the clock have been set back.
fn left(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default().min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(number: u64) -> ReservedName {
        ReservedName { name: NameId::from_number(number), item: number + 1 }
    }

    fn names(server: &str, numbers: std::ops::Range<u64>, until: ReservedUntil) -> ServerNames {
        let names = numbers.map(|number| (own(number), until)).collect();
        ServerNames { server: ObjectKey::new("default", server), names }
    }

    /// What the next run knows of a server: its names, and how long they are kept.
    fn read(state: &Arc<StateDir>, server: &str, now: Timestamp) -> Vec<(ReservedName, Option<Duration>)> {
        let (_, kept) = NamesFile::open(state, now);
        let left = |until: ReservedUntil| Some(until.time()?.saturating_duration_since(Instant::now()));
        kept.of(&ObjectKey::new("default", server)).map(|(own, until)| (own, left(until))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_known_at_the_next_start_as_long_as_they_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let (tell, news) = mpsc::unbounded_channel();
        let hour = Duration::from_hours(1);
        let mut some = names("a", 0..3, ReservedUntil::Removed);
        some.names.push((own(7), ReservedUntil::GivenUp(Instant::now() + hour)));
        for told in [
            names("a", 0..2, ReservedUntil::Removed),
            names("b", 10..11, ReservedUntil::Time(Instant::now() + hour)),
            names("none", 0..0, ReservedUntil::Removed),
            some,
        ] {
            tell.send(told).unwrap();
        }
        // What was told before the end is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        NamesFile::open(&state, Timestamp::now()).0.keep(news, stop).await;
        let text = String::from_utf8(state.read(FILE).unwrap().unwrap()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");

        let now = Timestamp::now();
        let of_a = read(&state, "a", now);
        let lasting = (0..3).map(|number| (own(number), None)).collect::<Vec<_>>();
        assert_eq!(of_a[..3], lasting);
        let soon = |left: Option<Duration>| left.is_some_and(|left| left <= hour && !left.is_zero());
        assert!(of_a.len() == 4 && of_a[3].0 == own(7) && soon(of_a[3].1), "{of_a:?}");
        let of_b = read(&state, "b", now);
        assert!(of_b.len() == 1 && of_b[0].0 == own(10) && soon(of_b[0].1), "{of_b:?}");
        let earlier = now - SignedDuration::from_hours(100);
        assert_eq!(read(&state, "b", earlier)[0].1, Some(hour), "the clock was set back");
        // A line that was cut short takes nothing with it.
        state.append(FILE, br#"{"namespace":"default","na"#).unwrap();
        assert_eq!(read(&state, "a", now), of_a);
        assert_eq!(read(&state, "b", now + SignedDuration::from_hours(1)), []);
        assert_eq!(read(&state, "a", now), lasting, "what it gave up is free by now");
    }

    #[test]
    fn the_file_is_bounded_and_says_nothing_twice() {
        let home = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), std::path::Path::new("/fleet")).unwrap());
        let now = Timestamp::now();
        let (mut file, _) = NamesFile::open(&state, now);
        let size = || state.read(FILE).unwrap().unwrap().len() as u64;
        file.append([names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        let once = size();
        file.append([names("a", 0..1_000, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(size(), once);
        for number in 0..200 {
            file.append([names("a", number..number + 1_000, ReservedUntil::Removed)].into_iter(), now)
                .unwrap();
            assert!(size() <= SMALL + once, "{}", size());
        }
        let (mut again, kept) = NamesFile::open(&state, now);
        assert_eq!((size(), kept.of(&ObjectKey::new("default", "a")).count()), (once, 1_000));
        again.append([names("a", 199..1_199, ReservedUntil::Removed)].into_iter(), now).unwrap();
        assert_eq!(size(), once, "what is as it was before the restart is not written");
    }
}
