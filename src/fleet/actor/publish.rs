//! What agents get to see of the server, with and without a connection.

use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::super::attach::timeout;
use super::super::listing::{ListResult, read_list, unavailable};
use super::super::refresh_schedule::RefreshSchedule;
use super::super::{CachedServer, LiveServer};
use super::{Actor, Offered};
use crate::net::jitter;
use crate::resource::{Activation, Endpoint, Problem, Reason};
use crate::upstream::Section;
use crate::wire::{ConnectionError, ListKind, ServerCapabilities};

impl Actor {
    /// Makes a section of what the server listed and publishes it, unless agents see just that already.
    pub(super) fn offer(&mut self, kept: Arc<CachedServer>) {
        let target = &self.target;
        if (self.asleep || self.is_current()) && !repeats_a_secret(&target.endpoint, &kept) {
            self.context.memory.keep_catalog(target.endpoint.digest(), kept.clone());
        }
        self.upstream.set_lists(kept.lists.clone());
        let section = Section::new(
            target,
            &kept.lists,
            kept.about.instructions.clone(),
            self.upstream.handle().clone(),
        );
        let section = Arc::new(section);
        let count = |list| u32::try_from(section.lists.of(list).len()).unwrap_or(u32::MAX);
        let listed = LiveServer {
            generation: self.live.as_ref().map_or(target.generation, |live| live.target.generation),
            about: kept.about.clone(),
            tools: count(ListKind::Tools),
            prompts: count(ListKind::Prompts),
            resources: count(ListKind::Resources),
            catalog_digest: kept.lists.digest(),
        };
        let published = self.offered.take().map(|offered| offered.section);
        let same = published.filter(|published| published.offers_the_same(&section));
        let section = same.unwrap_or_else(|| {
            self.context.catalog.publish(section.clone());
            section
        });
        self.offered = Some(Offered { kept, section, listed: Arc::new(listed) });
    }

    /// The server says that a list changed; with resources their templates may have.
    pub(super) fn changed(&mut self, list: ListKind) {
        for list in self.offered().filter(|other| other.told_as() == list) {
            self.stale.told(list);
        }
        self.refresh();
    }

    /// Somebody asks for all lists to be read again.
    pub(super) fn look_again(&mut self) {
        for list in self.offered() {
            self.stale.asked(list);
        }
        self.refresh();
    }

    /// The lists that the live server has.
    fn offered(&self) -> impl Iterator<Item = ListKind> + use<> {
        let capabilities = self.live.as_ref().map(|live| live.link.peer().capabilities);
        capabilities.into_iter().flat_map(ServerCapabilities::lists)
    }

    /// When the next stale list is to be read; while one is being read, after that.
    pub(super) fn refresh_due(&self) -> Option<Instant> {
        let live = self.live.as_ref().filter(|_| self.refresh.is_none())?;
        let due = self.stale.due(Instant::now())?;
        Some(live.link.paused_until().map_or(due, |pause| pause.max(due)))
    }

    /// Reads a stale list that is due, unless one is being read: each is replaced in one step.
    pub(super) fn refresh(&mut self) {
        let Some(live) =
            self.live.as_ref().filter(|live| self.refresh.is_none() && live.link.paused().is_none())
        else {
            return;
        };
        let Some(list) = self.stale.take(Instant::now()) else { return };
        let link = live.link.clone();
        let limit = self.target.spec.timeouts.connect.get();
        self.refresh = Some(Box::pin(async move {
            let late = || timeout(format!("{} was not answered within {limit:?}", list.method()));
            let read = tokio::time::timeout(limit, read_list(&link, list)).await;
            (list, read.unwrap_or_else(|_| Err(late())))
        }));
    }

    /// The connection is gone, or another: what was to be read again is read with the next.
    pub(super) fn forget_refresh(&mut self) {
        self.refresh = None;
        self.stale = RefreshSchedule::default();
    }

    pub(super) fn refreshed(&mut self, list: ListKind, result: Result<ListResult, ConnectionError>) {
        self.refresh = None;
        match result {
            Ok(ListResult { items, tolerated }) => {
                self.stale.was_read(list, Instant::now());
                if let (Some(live), Some(offered)) = (&mut self.live, &self.offered) {
                    match tolerated {
                        Some(problem) => drop(live.degraded.insert(list, problem)),
                        None => drop(live.degraded.remove(&list)),
                    }
                    let mut kept = offered.kept.clone();
                    let lists = &mut Arc::make_mut(&mut kept).lists;
                    *Arc::make_mut(lists).of_mut(list) = items;
                    self.offer(kept);
                }
            }
            Err(error) if error.problem.reason == Reason::PolicyDenied => {
                if let Some(live) = &self.live {
                    live.link.give_up(error);
                }
            }
            // It is as it was before, and still to be read.
            Err(error) => {
                if let Some(live) = &mut self.live {
                    live.degraded.insert(list, unavailable(list, &error));
                }
                self.stale.failed(list, Instant::now(), jitter());
            }
        }
        self.refresh();
    }

    pub(super) fn grace_over(&mut self) {
        self.grace_until = None;
        if self.live.is_none() {
            let lost = || Problem::new(Reason::Reconnecting, "the connection was lost");
            self.withdraw(&self.last.clone().unwrap_or_else(lost));
        }
    }

    /// Offers what the server listed at its last connection, if that is remembered: an `OnDemand` server until it is
    /// called, another until its first attempt has ended, and then for its grace period.
    pub(super) fn recall(&mut self) {
        let Some(kept) = self.context.memory.catalog(self.target.endpoint.digest()) else { return };
        let connect = self.target.spec.timeouts.connect.get();
        self.asleep = self.target.spec.activation == Activation::OnDemand;
        self.recalled = true;
        self.offer(kept);
        if self.asleep {
            self.upstream.sleep(connect);
        } else {
            self.upstream.pend(self.connecting(), Instant::now() + connect);
        }
    }

    /// When to look whether the live connection is still in use; never for one that is always held.
    pub(super) fn idle_due(&self) -> Option<Instant> {
        let spec = &self.target.spec;
        self.live.as_ref().filter(|_| spec.activation == Activation::OnDemand)?;
        let unused = self.upstream.handle().unused_for().unwrap_or_default();
        Some(Instant::now() + spec.timeouts.idle.get().saturating_sub(unused))
    }

    /// Lets go of a connection that nobody has used for long enough.
    pub(super) fn maybe_sleep(&mut self) {
        let idle = self.target.spec.timeouts.idle.get();
        if self.upstream.handle().unused_for().is_none_or(|unused| unused < idle) {
            self.idle_at = self.idle_due();
            return;
        }
        // Whose resources are watched is in use.
        let watched = !self.context.listeners.wanted(&self.target.key).uris.is_empty();
        if watched || !self.may_sleep() || !self.is_current() {
            self.idle_at = Some(Instant::now() + idle);
            return;
        }
        self.fall_asleep(idle, Problem::new(Reason::Idle, "the connection was let go"));
    }

    /// True if a call could make the connection as well as anything that is under way or due.
    pub(super) fn may_sleep(&self) -> bool {
        self.target.spec.activation == Activation::OnDemand
            && self.attempt.is_none()
            && self.retry_at.is_none()
    }

    /// Lets go of the connection until somebody calls; calls in flight may take so long.
    pub(super) fn fall_asleep(&mut self, limit: Duration, why: Problem) {
        self.idle_at = None;
        self.forget_refresh();
        self.live = None;
        self.asleep = true;
        if let Some(before) = self.upstream.sleep(self.target.spec.timeouts.connect.get()) {
            self.end(before, limit, why);
        }
    }

    /// Somebody called: connects.
    pub(super) fn wake(&mut self) {
        self.connect();
        if self.retry_at.is_none() {
            let limit = self.target.spec.timeouts.connect.get();
            self.upstream.pend(self.connecting(), Instant::now() + limit);
        }
    }
}

/// True if what a server lists holds a value that it was given by reference: such a list is not written down.
fn repeats_a_secret(endpoint: &Endpoint, kept: &CachedServer) -> bool {
    /// Shorter values are words of every text.
    const SHORTEST: usize = 4;
    let values = endpoint.referenced().iter().map(ExposeSecret::expose_secret);
    values.filter(|value| value.len() >= SHORTEST).any(|value| {
        let finder = memmem::Finder::new(value.as_bytes());
        let holds = |text: &str| finder.find(text.as_bytes()).is_some();
        ListKind::ALL.into_iter().flat_map(|list| kept.lists.of(list)).any(|item| holds(item.raw()))
    })
}
