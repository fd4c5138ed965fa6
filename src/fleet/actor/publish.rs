//! What agents get to see of the server, with and without a connection.

use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::super::attach::timeout_error;
use super::super::listing::{ListResult, list_unavailable, read_list};
use super::super::refresh_schedule::RefreshSchedule;
use super::super::{CachedServer, LiveServer};
use super::{Actor, PublishedServer};
use crate::net::jitter;
use crate::resource::{Activation, Endpoint, Problem, Reason};
use crate::upstream::Section;
use crate::wire::{ConnectionError, ListKind, ServerCapabilities};

impl Actor {
    /// Makes a section of what the server listed and publishes it, unless agents see just that already.
    pub(super) fn publish_lists(&mut self, kept: Arc<CachedServer>) {
        let target = &self.target;
        if (self.idle || self.is_current()) && !contains_secret(&target.endpoint, &kept) {
            self.context.server_cache.store_catalog(target.endpoint.digest(), kept.clone());
        }
        self.upstream.set_lists(kept.lists.clone());
        let section = Section::new(
            target,
            &kept.lists,
            kept.description.instructions.clone(),
            self.upstream.handle().clone(),
        );
        let section = Arc::new(section);
        let count = |list| u32::try_from(section.lists.items(list).len()).unwrap_or(u32::MAX);
        let listed = LiveServer {
            generation: self.live.as_ref().map_or(target.generation, |live| live.target.generation),
            description: kept.description.clone(),
            tools: count(ListKind::Tools),
            prompts: count(ListKind::Prompts),
            resources: count(ListKind::Resources),
            catalog_digest: kept.lists.digest(),
        };
        let published = self.published.take().map(|offered| offered.section);
        let same = published.filter(|published| published.is_equivalent_to(&section));
        let section = same.unwrap_or_else(|| {
            self.context.publisher.publish(section.clone());
            section
        });
        self.published = Some(PublishedServer { cached: kept, section, live_server: Arc::new(listed) });
    }

    /// The server says that a list changed; with resources their templates may have.
    pub(super) fn on_list_changed(&mut self, list: ListKind) {
        for list in self.supported_lists().filter(|other| other.notified_as() == list) {
            self.refresh_schedule.mark_changed(list);
        }
        self.start_refresh();
    }

    /// Somebody asks for all lists to be read again.
    pub(super) fn refresh_all_lists(&mut self) {
        for list in self.supported_lists() {
            self.refresh_schedule.request_now(list);
        }
        self.start_refresh();
    }

    /// The lists that the live server has.
    fn supported_lists(&self) -> impl Iterator<Item = ListKind> + use<> {
        let capabilities = self.live.as_ref().map(|live| live.connection.handshake().capabilities);
        capabilities.into_iter().flat_map(ServerCapabilities::offered_lists)
    }

    /// When the next stale list is to be read; while one is being read, after that.
    pub(super) fn next_refresh_at(&self) -> Option<Instant> {
        let live = self.live.as_ref().filter(|_| self.refresh.is_none())?;
        let due = self.refresh_schedule.next_refresh_at(Instant::now())?;
        Some(live.connection.retry_after_until().map_or(due, |pause| pause.max(due)))
    }

    /// Reads a stale list that is due, unless one is being read: each is replaced in one step.
    pub(super) fn start_refresh(&mut self) {
        let Some(live) = self
            .live
            .as_ref()
            .filter(|live| self.refresh.is_none() && live.connection.retry_after_problem().is_none())
        else {
            return;
        };
        let Some(list) = self.refresh_schedule.take_due(Instant::now()) else { return };
        let link = live.connection.clone();
        let limit = self.target.spec.timeouts.connect.get();
        self.refresh = Some(Box::pin(async move {
            let late = || timeout_error(format!("{} was not answered within {limit:?}", list.method()));
            let read = tokio::time::timeout(limit, read_list(&link, list)).await;
            (list, read.unwrap_or_else(|_| Err(late())))
        }));
    }

    /// The connection is gone, or another: what was to be read again is read with the next.
    pub(super) fn cancel_refresh(&mut self) {
        self.refresh = None;
        self.refresh_schedule = RefreshSchedule::default();
    }

    pub(super) fn on_list_read(&mut self, list: ListKind, result: Result<ListResult, ConnectionError>) {
        self.refresh = None;
        match result {
            Ok(ListResult { items, tolerated_problem: tolerated }) => {
                self.refresh_schedule.record_read(list, Instant::now());
                if let (Some(live), Some(offered)) = (&mut self.live, &self.published) {
                    match tolerated {
                        Some(problem) => drop(live.degraded.insert(list, problem)),
                        None => drop(live.degraded.remove(&list)),
                    }
                    let mut kept = offered.cached.clone();
                    let lists = &mut Arc::make_mut(&mut kept).lists;
                    *Arc::make_mut(lists).items_mut(list) = items;
                    self.publish_lists(kept);
                }
            }
            Err(error) if error.problem.reason == Reason::PolicyDenied => {
                if let Some(live) = &self.live {
                    live.connection.mark_ended(error);
                }
            }
            // It is as it was before, and still to be read.
            Err(error) => {
                if let Some(live) = &mut self.live {
                    live.degraded.insert(list, list_unavailable(list, &error));
                }
                self.refresh_schedule.record_failure(list, Instant::now(), jitter());
            }
        }
        self.start_refresh();
    }

    pub(super) fn on_grace_expired(&mut self) {
        self.grace_ends_at = None;
        if self.live.is_none() {
            let lost = || Problem::new(Reason::Reconnecting, "the connection was lost");
            self.withdraw(&self.last_problem.clone().unwrap_or_else(lost));
        }
    }

    /// Offers what the server listed at its last connection, if that is remembered: an `OnDemand` server until it is
    /// called, another until its first attempt has ended, and then for its grace period.
    pub(super) fn restore_from_cache(&mut self) {
        let Some(kept) = self.context.server_cache.catalog(self.target.endpoint.digest()) else { return };
        let connect = self.target.spec.timeouts.connect.get();
        self.idle = self.target.spec.activation == Activation::OnDemand;
        self.from_cache = true;
        self.publish_lists(kept);
        if self.idle {
            self.upstream.set_idle(connect);
        } else {
            self.upstream.set_pending(self.connecting_problem(), Instant::now() + connect);
        }
    }

    /// When to look whether the live connection is still in use; never for one that is always held.
    pub(super) fn next_idle_check_at(&self) -> Option<Instant> {
        let spec = &self.target.spec;
        self.live.as_ref().filter(|_| spec.activation == Activation::OnDemand)?;
        let unused = self.upstream.handle().idle_for().unwrap_or_default();
        Some(Instant::now() + spec.timeouts.idle.get().saturating_sub(unused))
    }

    /// Lets go of a connection that nobody has used for long enough.
    pub(super) fn disconnect_if_idle(&mut self) {
        let idle = self.target.spec.timeouts.idle.get();
        if self.upstream.handle().idle_for().is_none_or(|unused| unused < idle) {
            self.idle_check_at = self.next_idle_check_at();
            return;
        }
        // Whose resources are watched is in use.
        let watched = !self.context.subscriptions.requested(&self.target.key).resource_uris.is_empty();
        if watched || !self.may_become_idle() || !self.is_current() {
            self.idle_check_at = Some(Instant::now() + idle);
            return;
        }
        self.become_idle(idle, Problem::new(Reason::Idle, "the connection was let go"));
    }

    /// True if a call could make the connection as well as anything that is under way or due.
    pub(super) fn may_become_idle(&self) -> bool {
        self.target.spec.activation == Activation::OnDemand
            && self.attempt.is_none()
            && self.retry_at.is_none()
    }

    /// Lets go of the connection until somebody calls; calls in flight may take so long.
    pub(super) fn become_idle(&mut self, limit: Duration, why: Problem) {
        self.idle_check_at = None;
        self.cancel_refresh();
        self.live = None;
        self.idle = true;
        if let Some(before) = self.upstream.set_idle(self.target.spec.timeouts.connect.get()) {
            self.drain_and_close(before, limit, why);
        }
    }

    /// Somebody called: connects.
    pub(super) fn connect_on_demand(&mut self) {
        self.connect();
        if self.retry_at.is_none() {
            let limit = self.target.spec.timeouts.connect.get();
            self.upstream.set_pending(self.connecting_problem(), Instant::now() + limit);
        }
    }
}

/// True if what a server lists holds a value that it was given by reference: such a list is not written down.
fn contains_secret(endpoint: &Endpoint, kept: &CachedServer) -> bool {
    /// Shorter values are words of every text.
    const MIN_SECRET_BYTES: usize = 4;
    let values = endpoint.referenced_values().iter().map(ExposeSecret::expose_secret);
    values.filter(|value| value.len() >= MIN_SECRET_BYTES).any(|value| {
        let finder = memmem::Finder::new(value.as_bytes());
        let holds = |text: &str| finder.find(text.as_bytes()).is_some();
        ListKind::ALL.into_iter().flat_map(|list| kept.lists.items(list)).any(|item| holds(item.raw()))
    })
}
