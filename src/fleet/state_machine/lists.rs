//! Steps for the server's lists: publishing, reading again, and withdrawing.

use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::super::listing::{ListResult, list_unavailable};
use super::super::wanted_lists::{declares_no_tools, filter_of, is_wanted, wanted_lists};
use super::super::{CachedServer, LiveServer};
use super::effect::{CallRouting, Effect};
use super::input::{ConnectionId, StepTime};
use super::state::{LiveState, PublishedState, ServerState, UseCheck};
use super::{StateMachine, Step};
use crate::resource::{Activation, Endpoint, McpServerSpec, Problem, Reason};
use crate::upstream::Section;
use crate::wire::{ConnectionError, ListKind, ServerCapabilities, ServerDescription};

/// The mean time between two checks whether lists changed without a notification.
const LISTS_CHECK_INTERVAL: Duration = Duration::from_mins(15);

impl StateMachine {
    /// Publishes the catalog of an earlier run, if there is one, and connects.
    ///
    /// The catalog stays published until the first call for an `OnDemand` server; for another server until its first
    /// attempt has ended, and then for its grace period.
    pub(super) fn begin(&mut self, cached: Option<Arc<CachedServer>>, step: &mut Step) {
        if let Some(cached) = cached {
            let on_demand = self.target.spec.effective_activation() == Activation::OnDemand;
            if on_demand {
                self.state = ServerState::Idle;
            }
            step.push(Effect::SetLists(cached.lists.clone()));
            self.publish(cached, step);
            if on_demand {
                let connect_timeout = self.target.spec.timeouts.connect.get();
                step.push(Effect::RouteCalls(CallRouting::WaitForConnection(connect_timeout), None));
                // An idle server does not delay the startup.
                self.end_startup(step);
                return;
            }
        }
        self.connect(None, step);
    }

    /// Builds a section from the server's lists and publishes it, unless an equivalent one is published already.
    pub(super) fn publish(&mut self, cached: Arc<CachedServer>, step: &mut Step) {
        let target = &self.target;
        let is_current = matches!(self.state, ServerState::Idle | ServerState::Live(_));
        if is_current && !contains_secret(&target.endpoint, &cached) {
            step.push(Effect::StoreCatalog(target.endpoint.digest(), cached.clone()));
        }
        let instructions = cached.description.instructions.clone();
        let section = Arc::new(Section::new(target, &cached.lists, instructions, self.handle.clone()));
        let count = |list| u32::try_from(section.lists.items(list).len()).unwrap_or(u32::MAX);
        let live_server = Arc::new(LiveServer {
            generation: self.state.live().map_or(target.generation, |live| live.target.generation),
            description: cached.description.clone(),
            tools: count(ListKind::Tools),
            prompts: count(ListKind::Prompts),
            resources: count(ListKind::Resources),
            catalog_digest: cached.lists.digest(),
            declares_no_tools: self
                .state
                .live()
                .is_some_and(|live| declares_no_tools(live.capabilities, &live.target.spec)),
        });
        let previous = self.published.take();
        // A server with a connection, or without the need of one, has no grace period.
        let withdraw_at =
            if is_current { None } else { previous.as_ref().and_then(|previous| previous.withdraw_at) };
        let unchanged =
            previous.map(|previous| previous.section).filter(|previous| previous.is_equivalent_to(&section));
        let section = unchanged.unwrap_or_else(|| {
            step.push(Effect::Publish(section.clone()));
            section
        });
        self.published = Some(PublishedState { cached, section, live_server, withdraw_at });
    }

    /// Handles a list-changed notification; the one for resources covers resource templates too.
    pub(super) fn on_list_changed(&mut self, id: ConnectionId, changed: ListKind) {
        if let Some(live) = self.state.live_mut().filter(|live| live.id == id) {
            let wanted = wanted_lists(live.capabilities, &live.target.spec);
            for list in wanted.filter(|list| list.notified_as() == changed) {
                live.refresh_schedule.mark_changed(list);
            }
        }
    }

    /// Publishes the new description of a server, and schedules a read of all lists: another version was started.
    pub(super) fn on_description_changed(
        &mut self,
        id: ConnectionId,
        description: Arc<ServerDescription>,
        step: &mut Step,
    ) {
        let Some(live) = self.state.live_mut().filter(|live| live.id == id) else { return };
        let wanted = wanted_lists(live.capabilities, &live.target.spec);
        wanted.for_each(|list| live.refresh_schedule.mark_changed(list));
        let Some(published) = &self.published else { return };
        let lists = published.cached.lists.clone();
        self.publish(Arc::new(CachedServer { description, lists }), step);
    }

    /// Checks a list, and resource templates along with resources, after the server did not know an item of it.
    pub(super) fn on_unknown_item(&mut self, list: ListKind) {
        if let Some(live) = self.state.live_mut() {
            let wanted = wanted_lists(live.capabilities, &live.target.spec);
            let lists = wanted.filter(|wanted| wanted.notified_as() == list);
            lists.for_each(|list| live.refresh_schedule.check(list));
        }
    }

    /// Schedules a read of all lists, on a user's request.
    pub(super) fn request_all_lists(&mut self, step: &Step) {
        if let Some(live) = self.state.live_mut() {
            let wanted = wanted_lists(live.capabilities, &live.target.spec);
            wanted.for_each(|list| live.refresh_schedule.request_now(list));
            live.lists_check_at = live.lists_check_at.map(|_| next_lists_check(step.time));
        }
    }

    /// Checks all lists if the time has come: a server that was deployed anew, say, may not report its changes.
    pub(super) fn check_lists_if_due(&mut self, step: &Step) {
        let is_due = |live: &&mut LiveState| live.lists_check_at.is_some_and(|at| at <= step.time.now);
        if let Some(live) = self.state.live_mut().filter(is_due) {
            let wanted = wanted_lists(live.capabilities, &live.target.spec);
            wanted.for_each(|list| live.refresh_schedule.check(list));
            live.lists_check_at = Some(next_lists_check(step.time));
        }
    }

    /// Schedules a read of the lists that became wanted or unwanted with a new spec, and of those whose problems depend
    /// on a changed filter. A list that is not wanted is empty, without a request.
    pub(super) fn request_affected_lists(&mut self, previous: &McpServerSpec, step: &mut Step) {
        let current = self.target.spec.clone();
        if previous.capabilities == current.capabilities && previous.expose == current.expose {
            return;
        }
        if self.is_idle() {
            // The server's capabilities are not known now, but agents may see lists that were not read before.
            let all = ServerCapabilities::ALL_LISTS;
            if ListKind::ALL
                .into_iter()
                .any(|list| is_wanted(list, all, &current) && !is_wanted(list, all, previous))
                || previous.capabilities != current.capabilities
            {
                self.connect_on_demand(step);
            }
            return;
        }
        // A connection that is being replaced keeps the spec that it was made for.
        let target = self.target.clone();
        let Some(live) = self.state.live_mut().filter(|live| Arc::ptr_eq(&live.target, &target)) else {
            return;
        };
        for list in ListKind::ALL {
            let [before, now] = [previous, &*current].map(|spec| is_wanted(list, live.capabilities, spec));
            let has_told_problem = live.degraded.contains_key(&list);
            let filter_changed = filter_of(previous, list) != filter_of(&current, list);
            if before != now || (now && has_told_problem && filter_changed) {
                live.refresh_schedule.request_now(list);
            }
        }
    }

    /// Returns when the next list is to be read; `None` while one is being read, and while the connection may be closed
    /// because it is unused.
    pub(super) fn next_read_at(&self, now: Instant) -> Option<Instant> {
        let may_read =
            |live: &&LiveState| live.reading.is_none() && !matches!(live.use_check, UseCheck::InProgress);
        let live = self.state.live().filter(may_read)?;
        let due = live.refresh_schedule.next_refresh_at(now)?;
        Some(self.retry_after.live.as_ref().map_or(due, |period| period.ends_at.max(due)))
    }

    /// Starts to read a list that is due, unless one is being read.
    pub(super) fn read_list_if_due(&mut self, step: &mut Step) {
        if self.next_read_at(step.time.now).is_none_or(|at| at > step.time.now) {
            return;
        }
        let Some(live) = self.state.live_mut() else { return };
        if let Some(list) = live.refresh_schedule.take_due(step.time.now) {
            live.reading = Some(list);
            step.push(Effect::ReadList { id: live.id, list, target: live.target.clone() });
        }
    }

    /// Publishes a list that was read again, in one step. If it could not be read, the published list stays as it was.
    pub(super) fn on_list_read(
        &mut self,
        id: ConnectionId,
        list: ListKind,
        result: Result<ListResult, ConnectionError>,
        step: &mut Step,
    ) {
        let is_reading = |live: &&mut LiveState| live.id == id && live.reading == Some(list);
        let Some(live) = self.state.live_mut().filter(is_reading) else { return };
        live.reading = None;
        match result {
            Ok(ListResult { items, problem, .. }) => {
                live.refresh_schedule.record_read(list, step.time.now);
                match problem {
                    Some(problem) => drop(live.degraded.insert(list, problem)),
                    None => drop(live.degraded.remove(&list)),
                }
                let Some(published) = &self.published else { return };
                let mut cached = published.cached.clone();
                let lists = &mut Arc::make_mut(&mut cached).lists;
                *Arc::make_mut(lists).items_mut(list) = items;
                step.push(Effect::SetLists(lists.clone()));
                self.publish(cached, step);
            }
            Err(error) if error.problem.reason == Reason::PolicyDenied => {
                step.push(Effect::EndConnection(id, error));
            }
            Err(error) => {
                live.degraded.insert(list, list_unavailable(list, &error));
                live.refresh_schedule.record_failure(list, step.time.now, step.time.jitter);
            }
        }
    }

    /// Starts the grace period, unless it is running: after it the section of a server without a connection is
    /// withdrawn.
    pub(super) fn start_grace_period(&mut self, step: &Step) {
        if let Some(published) = &mut self.published {
            let ends_at = step.time.now + self.target.spec.grace_period.get();
            published.withdraw_at.get_or_insert(ends_at);
        }
    }

    /// Withdraws the section if the grace period is over.
    pub(super) fn withdraw_if_due(&mut self, step: &mut Step) {
        let withdraw_at = self.published.as_ref().and_then(|published| published.withdraw_at);
        if withdraw_at.is_some_and(|at| at <= step.time.now) {
            let lost = || Problem::new(Reason::Reconnecting, "the connection was lost");
            let problem = self.state.progress().and_then(|progress| progress.last_problem().cloned());
            self.withdraw(&problem.unwrap_or_else(lost), step);
        }
    }

    /// Withdraws the server's section, if it is published.
    pub(super) fn withdraw(&mut self, problem: &Problem, step: &mut Step) {
        if self.published.take().is_some() {
            step.push(Effect::Withdraw(problem.clone()));
        }
    }
}

/// Returns when to check the lists of a server next. The time differs from server to server by up to a fifth, so that
/// servers that were attached together are not checked together.
pub(super) fn next_lists_check(time: StepTime) -> Instant {
    time.now + LISTS_CHECK_INTERVAL.mul_f64(0.8 + 0.4 * time.jitter)
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
