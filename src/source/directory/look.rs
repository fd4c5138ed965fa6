//! One look at the directory: from the files on the disk to the next [`Desired`]. Blocks.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::warn;

use super::Options;
use super::absence::{Absence, REST};
use super::commits::Commits;
use super::contents::Contents;
use super::expand::endpoint;
use super::files::{Blind, Files, Moment};
use super::git::Git;
use super::mailbox::Mailbox;
use super::merge::Book;
use super::next::Context;
use super::parse::shown;
use super::read::FileId;
use super::records::Records;
use super::removals;
use super::secrets::Secrets;
use super::walk::{Found, Root, Visitor, walk};
use super::watch::{Watcher, names_of};
use crate::resource::{
    Asked, Commit, Desired, Endpoint, Fault, McpServerSpec, Problem, Reason, SecretKeyRef, SourceState,
    Watching,
};
use crate::source::resolve::Sources;
use crate::state::{StateDir, StateError};

/// As long is waited for a git command that is at work; a lock that is older was left behind.
const GIT_PATIENCE: Duration = Duration::from_secs(10);
/// As often is looked again, within one look, for a root that is flipped meanwhile.
const FLIPS: usize = 3;
/// The name under which the last commit is remembered.
const COMMIT: &str = "commit";

/// Everything that is kept between two looks.
pub(super) struct Looker {
    options: Options,
    state: Arc<StateDir>,
    watcher: Watcher,
    files: Files,
    book: Book,
    secrets: Secrets,
    contents: Contents,
    records: Records,
    /// The commit at which some file was last there.
    commit: Option<String>,
    /// What git told of the commit that is checked out.
    commits: Option<Known>,
    /// Since when git has been at work.
    busy: Option<Instant>,
    /// Whether the root was away.
    absence: Absence,
    /// The tree was seen once.
    seen: bool,
    /// Somebody said that the emptiness which is held back is meant.
    prune: bool,
    desired: Arc<Desired>,
    /// What the last run had in force.
    remembered: Option<Arc<Desired>>,
    /// The last thing that went wrong with the state directory.
    trouble: Option<String>,
}

/// What a look gives.
pub(super) struct Outcome {
    pub desired: Arc<Desired>,
    /// Something waits for a second look.
    pub again: bool,
    /// Something that would be taken away is held back, which time may end.
    pub held: bool,
}

/// A commit, what git told of it, and whether the files of this version differ from it.
struct Known {
    head: String,
    commits: Option<Commits>,
    version: u64,
    dirty: bool,
}

/// What is at the root.
struct Tree {
    git: Option<Git>,
    /// False if it is not known what is there.
    seen: bool,
    faults: Vec<Fault>,
}

impl Looker {
    /// Takes up what the last run knew.
    pub fn new(options: Options, state: Arc<StateDir>, mailbox: Arc<Mailbox>, now: Instant) -> Self {
        let mut looker = Self {
            watcher: Watcher::new(mailbox, options.poll.is_some()),
            secrets: Secrets::new(options.secrets.clone()),
            options,
            state,
            files: Files::default(),
            book: Book::default(),
            contents: Contents::default(),
            records: Records::default(),
            commit: None,
            commits: None,
            busy: None,
            absence: Absence::default(),
            seen: false,
            desired: Arc::default(),
            remembered: None,
            prune: false,
            trouble: None,
        };
        let known = looker.restore(now);
        looker.complain(known.err());
        looker
    }

    /// Looks once: `settled` if the tree has been quiet for a while, `landed` what was told to be complete.
    pub fn look(&mut self, landed: &HashSet<PathBuf>, time: (Instant, Timestamp), settled: bool) -> Outcome {
        let (now, clock) = time;
        let moment = Moment { now, clock, first: !self.seen, settled, landed };
        let tree = self.see(&moment);
        let mut faults = tree.faults;
        let (mut again, mut held) = (false, false);
        let mut revision = Arc::clone(&self.desired.source.revision);
        if !tree.seen {
            if !self.book.is_empty() {
                self.absence.note(self.files.version(), now);
            }
        } else if self.git_is_at_work(tree.git.as_ref(), now) {
            again = true;
        } else {
            let commit = tree.git.as_ref().and_then(Git::head);
            revision = self.revision(commit.as_deref(), tree.git.as_ref());
            let hold = self.holds(commit.as_ref(), now);
            let took = self.files.take(&mut self.book, &moment, hold);
            (again, held) = (took.waits, took.held);
            self.records.outdate(took.changed);
            self.settle(&revision, &moment);
            // Told until it is gone, also where somebody has said that it is meant.
            if held || self.prune && !self.book.is_empty() {
                faults.push(source_fault(Reason::RemovalHeld, self.held()));
            }
            if !self.files.is_empty() && commit.is_some() {
                self.note_commit(commit);
            }
            self.seen = true;
        }
        for folder in self.secrets.folders() {
            self.watcher.folder(&folder);
        }
        if tree.seen {
            let skills = &self.book.skills.objects;
            let meet = &mut |real: &Path, id| self.watcher.met(real, id);
            let folders = self.contents.look(&self.options.root, skills, settled, clock, meet);
            again |= self.watcher.skills(folders);
        }
        let watching = self.watching();
        faults.extend(self.book.faults());
        let known = if self.seen { !again || settled } else { !self.book.is_empty() };
        self.publish(SourceState {
            synced: self.desired.source.synced || known,
            skills_synced: self.desired.source.synced || known,
            revision,
            watching,
            faults,
            warnings: self.book.warnings(),
            foreign: self.book.foreign(),
            nothing_in: None,
        });
        Outcome { desired: Arc::clone(&self.desired), again, held }
    }

    /// Takes the word of a person that the emptiness is meant, if it was told that it holds something back.
    pub fn confirm(&mut self) {
        let held = |fault: &Fault| fault.problem.reason == Reason::RemovalHeld;
        self.prune |= self.desired.source.faults.iter().any(held);
    }

    /// Writes down what the next run must know. Apart from [`Looker::look`], so that it delays nobody.
    pub fn remember(&mut self) {
        let written = self.records.write(&self.state, &self.book, &self.files);
        self.complain(written.err());
    }

    fn restore(&mut self, now: Instant) -> Result<(), StateError> {
        let resolve = resolver(&self.options, &self.secrets, Timestamp::now());
        self.records.restore(&self.state, &mut self.book, &mut self.files, &resolve, now)?;
        let (servers, skills) = (self.book.servers.objects.clone(), self.book.skills.objects.clone());
        self.remembered = Some(Arc::new(Desired { servers, skills, ..Desired::default() }));
        let commit = self.state.read(COMMIT)?;
        self.commit = commit.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(())
    }

    /// Walks the tree. The root may be flipped meanwhile: then it is walked again.
    fn see(&mut self, moment: &Moment<'_>) -> Tree {
        let given = self.options.root.clone();
        let unknown = |why: &str| Tree {
            git: None,
            seen: false,
            faults: vec![source_fault(Reason::SourceUnavailable, format!("{} {why}", shown(&given)))],
        };
        for _ in 0..FLIPS {
            // First the watches, then the look, so that nothing falls in between.
            let path = given.canonicalize().unwrap_or_else(|_| given.clone());
            let git = Git::of(&path);
            self.watch(&path, git.as_ref());
            let root = match Root::open(&given) {
                Ok(root) if root.path == path => root,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return unknown("does not exist; it is waited for");
                }
                Err(error) => {
                    return unknown(&format!("cannot be read: {error}; nothing changes until it can"));
                }
            };
            self.files.begin();
            let mut sight =
                Sight { files: &mut self.files, watcher: &mut self.watcher, moment, blind: Vec::new() };
            walk(&root, &mut sight);
            let blind = sight.blind;
            if Root::open(&given).is_ok_and(|after| after.is(&root)) {
                self.files.end(&blind, moment);
                let told = |(folder, why): &Blind| {
                    let message = format!("{} {why}", shown(&given.join(folder)));
                    source_fault(Reason::SourceUnavailable, message)
                };
                return Tree { git, seen: true, faults: blind.iter().map(told).collect() };
            }
        }
        unknown("leads elsewhere at every look; nothing changes until it rests")
    }

    fn watch(&mut self, root: &Path, git: Option<&Git>) {
        let secrets = self.secrets.root().to_path_buf();
        let mut names = names_of(&self.options.root);
        names.extend(names_of(&secrets));
        let mut folders: Vec<_> =
            names.iter().filter_map(|name| name.parent()).map(Path::to_path_buf).collect();
        if let Some(git) = git {
            names.extend(git.signs());
            folders.push(git.folder().to_path_buf());
        }
        self.watcher.begin(names, root.to_path_buf(), secrets);
        for folder in folders {
            self.watcher.folder(&folder);
        }
    }

    fn watching(&mut self) -> Watching {
        let Some(why) = self.watcher.end() else { return Watching::Events };
        if self.desired.source.watching == Watching::Events {
            let root = shown(&self.options.root);
            warn!("{root} is looked at by the clock, because file events are not heard: {why}");
        }
        Watching::Polling
    }

    /// The commit, `-dirty` if a declaration is not as it has it; without one a digest of all.
    fn revision(&mut self, head: Option<&str>, git: Option<&Git>) -> Arc<str> {
        let (Some(head), Some(_)) = (head, git) else {
            self.commits = None;
            return self.files.digest().to_string().into();
        };
        let version = self.files.version();
        let known = match self.commits.take().filter(|known| known.head == head) {
            Some(known) if known.version == version => known,
            earlier => {
                let ask = || Commits::of(&self.options.root, head);
                let commits = earlier.map_or_else(ask, |earlier| earlier.commits);
                let dirty = commits.as_ref().is_some_and(|commits| !self.files.are_committed(commits));
                Known { head: head.to_owned(), commits, version, dirty }
            }
        };
        let suffix = if known.dirty { "-dirty" } else { "" };
        self.commits = Some(known);
        format!("{head}{suffix}").into()
    }

    fn git_is_at_work(&mut self, git: Option<&Git>, now: Instant) -> bool {
        if !git.is_some_and(Git::is_busy) {
            self.busy = None;
            return false;
        }
        now < *self.busy.get_or_insert(now) + GIT_PATIENCE
    }

    /// Whether nothing may be taken away, because all of it would be, or because it may be on its way back.
    fn holds(&mut self, commit: Option<&String>, now: Instant) -> bool {
        let empty = self.files.is_unclear(&self.book) && !self.book.is_empty();
        let committed = commit.is_some() && commit != self.commit.as_ref();
        let emptied = empty && !committed && !self.prune && !self.options.prune_empty;
        let whole = self.prune || self.is_committed();
        let version = self.files.version();
        let away = self.absence.lasts(version, now, whole);
        if away && emptied {
            // A root that is made anew is empty at first.
            self.absence.note(version, now);
        }
        // One word is about one emptiness.
        self.prune &= empty;
        emptied || away
    }

    /// Whether the files are those of the commit that is checked out.
    fn is_committed(&self) -> bool {
        self.commits.as_ref().is_some_and(|known| known.commits.is_some() && !known.dirty)
    }

    fn held(&self) -> String {
        let root = shown(&self.options.root);
        let prune = "say evenkeel mcp reload --prune-empty";
        if !self.files.is_empty() && self.files.is_unclear(&self.book) {
            return format!(
                "the files of {root} that declared something are gone, and what is left is not understood; nothing is \
                 taken away. If that is meant, commit it, leave one file that holds no objects, or {prune}"
            );
        }
        if self.files.is_empty() {
            return format!(
                "the last files of {root} are gone; nothing is taken away. If that is meant, commit it, leave one \
                 file that holds no objects, or {prune}"
            );
        }
        format!(
            "{root} was away and came back without some of its files: they are waited for until nothing more has \
             come for {} s. If they are meant to be gone, {prune}",
            REST.as_secs()
        )
    }

    fn settle(&mut self, revision: &Arc<str>, moment: &Moment<'_>) {
        if moment.settled && !self.secrets.is_empty() {
            let used = self.book.references();
            if self.secrets.refresh(&used, moment.clock) {
                let resolve = resolver(&self.options, &self.secrets, moment.clock);
                self.book.resolve_again(&resolve);
            }
        }
        let resolve = resolver(&self.options, &self.secrets, moment.clock);
        let stale = self.book.settle(&Context {
            now: moment.clock,
            revision,
            change: &|path| last_change(self.commits.as_ref(), &self.files, path),
            uid: &|| uuid::Uuid::new_v4().to_string().into(),
            resolve: &resolve,
        });
        self.records.outdate(stale);
    }

    fn note_commit(&mut self, commit: Option<String>) {
        if self.commit == commit {
            return;
        }
        let written = self.state.write(COMMIT, commit.as_deref().unwrap_or_default().as_bytes());
        self.commit = commit;
        self.complain(written.err());
    }

    /// Makes a new [`Desired`] only if it differs.
    fn publish(&mut self, source: SourceState) {
        let servers = &self.book.servers.objects;
        let skills = &self.book.skills.objects;
        let contents = &self.contents.all;
        let last = &self.desired;
        let same =
            last.servers.ptr_eq(servers) && last.skills.ptr_eq(skills) && last.contents.ptr_eq(contents);
        if *last.source == source && same {
            return;
        }
        let source = if *last.source == source { Arc::clone(&last.source) } else { Arc::new(source) };
        let mut removals = last.removals.clone();
        let change = |path: &Path| last_change(self.commits.as_ref(), &self.files, path);
        if let Some(before) = if last.source.synced { Some(last) } else { self.remembered.as_ref() } {
            removals::note(&mut removals, &before.servers, servers, &change);
            removals::note(&mut removals, &before.skills, skills, &change);
        }
        let (servers, skills, contents) = (servers.clone(), skills.clone(), contents.clone());
        let remembered = self.remembered.clone();
        let number = last.number + 1;
        let asked = Asked::default();
        self.desired =
            Arc::new(Desired { servers, skills, contents, source, remembered, asked, removals, number });
    }

    /// Tells of the state directory once, not at every look.
    fn complain(&mut self, error: Option<StateError>) {
        let trouble = error.map(|error| error.to_string());
        if let Some(trouble) = &trouble
            && self.trouble.as_ref() != Some(trouble)
        {
            warn!("{trouble}; objects may get new identities at the next start");
        }
        self.trouble = trouble;
    }
}

/// What a walk does to the files and the watches.
struct Sight<'a> {
    files: &'a mut Files,
    watcher: &'a mut Watcher,
    moment: &'a Moment<'a>,
    blind: Vec<Blind>,
}

impl Visitor for Sight<'_> {
    fn folder(&mut self, real: &Path, id: FileId) {
        self.watcher.met(real, id);
    }

    fn file(&mut self, file: &Found<'_>) {
        self.files.met(file, self.moment);
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        self.files.unreadable(&path.to_path_buf(), why.to_owned(), self.moment);
    }

    fn blind(&mut self, path: &Path, why: &str) {
        self.blind.push((path.to_path_buf(), why.to_owned()));
    }
}

/// The commit that changed a file last, or took it away, if what is seen of the file is what that commit says.
fn last_change(known: Option<&Known>, files: &Files, path: &Path) -> Option<Arc<Commit>> {
    let commits = known?.commits.as_ref()?;
    commits.last(path).filter(|_| files.is_committed(path, commits)).cloned()
}

fn resolver<'a>(
    options: &'a Options,
    secrets: &'a Secrets,
    clock: Timestamp,
) -> impl Fn(&McpServerSpec, &Path) -> Result<Arc<Endpoint>, Problem> + 'a {
    move |spec, file| {
        let sources = Sources {
            place: &|SecretKeyRef { name, key, .. }| {
                secrets.root().join(name).join(key).display().to_string()
            },
            environment: &options.environment,
            policy: &options.policy,
            secret: &|reference| secrets.get(reference, clock),
            key: &options.key,
        };
        endpoint(&sources, &options.root, spec, file)
    }
}

fn source_fault(reason: Reason, message: String) -> Fault {
    Fault::new(None, Problem::new(reason, message))
}

#[cfg(test)]
mod tests;
