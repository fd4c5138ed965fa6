use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, test_kill_process_group};
use tokio::process::{Child, Command};
use tracing::{debug, warn};

use super::process::{group, signal};

/// How long process groups have between SIGTERM and SIGKILL once evenkeel is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// A small process that ends our children's process groups when evenkeel dies without doing so.
///
/// It holds the read end of a pipe; the kernel closes the write end with evenkeel, however that ends.
/// Parent-death signals would not do: they follow the spawning thread and miss grandchildren. Promises that
/// a killed guard is replaced at once. A process that left its group on purpose (`setsid`) is out of reach.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    args: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The write end; `None` while there is no guard.
    pipe: Option<File>,
    groups: BTreeSet<u32>,
}

impl Guard {
    /// Starts the guard: `program` with `args` must call [`watch`] on its stdin. The future replaces it
    /// whenever it ends; it must be driven for as long as evenkeel runs.
    pub fn start(program: PathBuf, args: Vec<String>) -> std::io::Result<(Self, impl Future<Output = ()>)> {
        let guard = Self(Arc::new(Shared { program, args, state: Mutex::new(State::default()) }));
        let mut child = guard.spawn()?;
        let keeper = guard.clone();
        let keep = async move {
            loop {
                let ended = child.wait().await;
                warn!(?ended, "the guard process ended; starting another");
                keeper.lock().pipe = None;
                child = loop {
                    match keeper.spawn() {
                        Ok(child) => break child,
                        Err(error) => warn!(%error, "the guard process could not be started"),
                    }
                    tokio::time::sleep(PATIENCE).await;
                };
            }
        };
        Ok((guard, keep))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut child = Command::new(&self.0.program)
            .args(&self.0.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of Ctrl-C in the terminal.
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
        let mut pipe = File::from(stdin.into_owned_fd()?);
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::empty())?;
        let mut state = self.lock();
        for group in &state.groups {
            writeln!(pipe, "+{group}")?;
        }
        state.pipe = Some(pipe);
        Ok(child)
    }

    /// Puts a process group under guard.
    pub(super) fn add(&self, group: u32) {
        let mut state = self.lock();
        state.groups.insert(group);
        state.tell(format_args!("+{group}\n"));
    }

    /// Takes out a process group that has ended.
    pub(super) fn remove(&self, group: u32) {
        let mut state = self.lock();
        state.groups.remove(&group);
        state.tell(format_args!("-{group}\n"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A few bytes into a pipe that is always read: written at once, so that no moment is lost.
    fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        let written = self.pipe.as_mut().map(|pipe| pipe.write_all(line.to_string().as_bytes()));
        if let Some(Err(error)) = written {
            // Its successor is told everything.
            debug!(%error, "the guard process does not listen");
        }
    }
}

/// The guard's own work: keeps the list of process groups, and ends them when `input` closes.
pub fn watch(input: impl BufRead) {
    let mut groups = BTreeSet::new();
    for line in input.lines().map_while(Result::ok) {
        match (line.get(..1), line.get(1..).and_then(|number| number.parse::<u32>().ok())) {
            (Some("+"), Some(group)) => {
                groups.insert(group);
            }
            (Some("-"), Some(group)) => {
                groups.remove(&group);
            }
            _ => {}
        }
    }
    let left =
        || groups.iter().filter_map(|pid| group(*pid)).any(|group| test_kill_process_group(group).is_ok());
    for group in &groups {
        signal(*group, Signal::TERM);
    }
    for _ in 0..20 {
        if !left() {
            return;
        }
        pause(PATIENCE / 20);
    }
    for group in &groups {
        signal(*group, Signal::KILL);
    }
}

#[expect(clippy::disallowed_methods, reason = "the guard is a process of its own, without a runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
