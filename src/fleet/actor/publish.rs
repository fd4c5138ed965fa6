//! Publishing the server's lists, with and without a connection.

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
    /// Builds a section from the server's lists and publishes it, unless an equivalent one is published already.
    pub(super) fn publish_lists(&mut self, cached: Arc<CachedServer>) {
        let target = &self.target;
        if (self.idle || self.is_current()) && !contains_secret(&target.endpoint, &cached) {
            self.context.server_cache.store_catalog(target.endpoint.digest(), cached.clone());
        }
        self.upstream.set_lists(cached.lists.clone());
        let section = Section::new(
            target,
            &cached.lists,
            cached.description.instructions.clone(),
            self.upstream.handle().clone(),
        );
        let section = Arc::new(section);
        let count = |list| u32::try_from(section.lists.items(list).len()).unwrap_or(u32::MAX);
        let live_server = LiveServer {
            generation: self.live.as_ref().map_or(target.generation, |live| live.target.generation),
            description: cached.description.clone(),
            tools: count(ListKind::Tools),
            prompts: count(ListKind::Prompts),
            resources: count(ListKind::Resources),
            catalog_digest: cached.lists.digest(),
        };
        let previous = self.published.take().map(|published| published.section);
        let unchanged = previous.filter(|previous| previous.is_equivalent_to(&section));
        let section = unchanged.unwrap_or_else(|| {
            self.context.publisher.publish(section.clone());
            section
        });
        self.published = Some(PublishedServer { cached, section, live_server: Arc::new(live_server) });
    }

    /// Handles a list-changed notification; the one for resources covers resource templates too.
    pub(super) fn on_list_changed(&mut self, list: ListKind) {
        for list in self.supported_lists().filter(|other| other.notified_as() == list) {
            self.refresh_schedule.mark_changed(list);
        }
        self.start_refresh();
    }

    /// Refreshes all lists, on a user's request.
    pub(super) fn refresh_all_lists(&mut self) {
        for list in self.supported_lists() {
            self.refresh_schedule.request_now(list);
        }
        self.start_refresh();
    }

    /// Returns the lists that the live server supports.
    fn supported_lists(&self) -> impl Iterator<Item = ListKind> + use<> {
        let capabilities = self.live.as_ref().map(|live| live.connection.handshake().capabilities);
        capabilities.into_iter().flat_map(ServerCapabilities::offered_lists)
    }

    /// Returns when the next list is to be refreshed; `None` while a refresh is in progress.
    pub(super) fn next_refresh_at(&self) -> Option<Instant> {
        let live = self.live.as_ref().filter(|_| self.refresh.is_none())?;
        let due = self.refresh_schedule.next_refresh_at(Instant::now())?;
        Some(live.connection.retry_after_until().map_or(due, |retry_at| retry_at.max(due)))
    }

    /// Starts a refresh of a list that is due, unless one is in progress. A refreshed list is replaced in one step.
    pub(super) fn start_refresh(&mut self) {
        let Some(live) = self
            .live
            .as_ref()
            .filter(|live| self.refresh.is_none() && live.connection.retry_after_problem().is_none())
        else {
            return;
        };
        let Some(list) = self.refresh_schedule.take_due(Instant::now()) else { return };
        let connection = live.connection.clone();
        let limit = self.target.spec.timeouts.connect.get();
        self.refresh = Some(Box::pin(async move {
            let timed_out = || timeout_error(format!("{} timed out after {limit:?}", list.method()));
            let read = tokio::time::timeout(limit, read_list(&connection, list)).await;
            (list, read.unwrap_or_else(|_| Err(timed_out())))
        }));
    }

    /// Cancels pending refreshes: the connection ended or was replaced, and the next one reads all lists anyway.
    pub(super) fn cancel_refresh(&mut self) {
        self.refresh = None;
        self.refresh_schedule = RefreshSchedule::default();
    }

    pub(super) fn on_list_read(&mut self, list: ListKind, result: Result<ListResult, ConnectionError>) {
        self.refresh = None;
        match result {
            Ok(ListResult { items, tolerated_problem }) => {
                self.refresh_schedule.record_read(list, Instant::now());
                if let (Some(live), Some(published)) = (&mut self.live, &self.published) {
                    match tolerated_problem {
                        Some(problem) => drop(live.degraded.insert(list, problem)),
                        None => drop(live.degraded.remove(&list)),
                    }
                    let mut cached = published.cached.clone();
                    let lists = &mut Arc::make_mut(&mut cached).lists;
                    *Arc::make_mut(lists).items_mut(list) = items;
                    self.publish_lists(cached);
                }
            }
            Err(error) if error.problem.reason == Reason::PolicyDenied => {
                if let Some(live) = &self.live {
                    live.connection.mark_ended(error);
                }
            }
            // The published list stays as it was, and the refresh is retried.
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

    /// Publishes the cached lists of the server's last connection, if there are any.
    ///
    /// They stay published until the first call for an `OnDemand` server; for another server until its first attempt
    /// has ended, and then for its grace period.
    pub(super) fn restore_from_cache(&mut self) {
        let Some(cached) = self.context.server_cache.catalog(self.target.endpoint.digest()) else { return };
        let connect = self.target.spec.timeouts.connect.get();
        self.idle = self.target.spec.activation == Activation::OnDemand;
        self.from_cache = true;
        self.publish_lists(cached);
        if self.idle {
            self.upstream.set_idle(connect);
        } else {
            self.upstream.set_pending(self.connecting_problem(), Instant::now() + connect);
        }
    }

    /// Returns when to check whether the live connection is still in use; `None` for one that is always held.
    pub(super) fn next_idle_check_at(&self) -> Option<Instant> {
        let spec = &self.target.spec;
        self.live.as_ref().filter(|_| spec.activation == Activation::OnDemand)?;
        let idle_for = self.upstream.handle().idle_for().unwrap_or_default();
        Some(Instant::now() + spec.timeouts.idle.get().saturating_sub(idle_for))
    }

    /// Closes the connection if it has been unused for `timeouts.idle`.
    pub(super) fn disconnect_if_idle(&mut self) {
        let idle_timeout = self.target.spec.timeouts.idle.get();
        if self.upstream.handle().idle_for().is_none_or(|idle_for| idle_for < idle_timeout) {
            self.idle_check_at = self.next_idle_check_at();
            return;
        }
        // A server with resource subscriptions is in use.
        let subscribed = !self.context.subscriptions.requested(&self.target.key).resource_uris.is_empty();
        if subscribed || !self.may_become_idle() || !self.is_current() {
            self.idle_check_at = Some(Instant::now() + idle_timeout);
            return;
        }
        self.become_idle(
            idle_timeout,
            Problem::new(Reason::Idle, "the connection was closed because it was idle"),
        );
    }

    /// Returns true if the next call can make the connection: no attempt is in progress or scheduled.
    pub(super) fn may_become_idle(&self) -> bool {
        self.target.spec.activation == Activation::OnDemand
            && self.attempt.is_none()
            && !self.connect_when_closed
            && self.retry_at.is_none()
    }

    /// Closes the connection until the next call. Calls in flight are drained within `limit`.
    pub(super) fn become_idle(&mut self, limit: Duration, problem: Problem) {
        self.idle_check_at = None;
        self.cancel_refresh();
        let live = self.live.take();
        let is_process = live.is_some_and(|live| live.target.endpoint.transport.is_stdio());
        self.idle = true;
        if let Some(connection) = self.upstream.set_idle(self.target.spec.timeouts.connect.get()) {
            // A call that began at the last moment may need long, so only a lost process blocks the next attempt.
            self.drain_and_close(connection, limit, problem, is_process && limit.is_zero());
        }
    }

    /// Connects because of a call, or because the server is no longer `OnDemand`.
    pub(super) fn connect_on_demand(&mut self) {
        self.connect();
        if self.retry_at.is_none() {
            let limit = self.target.spec.timeouts.connect.get();
            self.upstream.set_pending(self.connecting_problem(), Instant::now() + limit);
        }
    }
}

/// Returns true if a server's lists contain a value that it got by reference (a secret). Such lists are not stored.
fn contains_secret(endpoint: &Endpoint, server: &CachedServer) -> bool {
    /// The length below which values are ignored: shorter ones occur in any text.
    const MIN_SECRET_BYTES: usize = 4;
    let values = endpoint.referenced_values().iter().map(ExposeSecret::expose_secret);
    values.filter(|value| value.len() >= MIN_SECRET_BYTES).any(|value| {
        let finder = memmem::Finder::new(value.as_bytes());
        let contains = |text: &str| finder.find(text.as_bytes()).is_some();
        ListKind::ALL.into_iter().flat_map(|list| server.lists.items(list)).any(|item| contains(item.raw()))
    })
}
