//! What agents get to see of the server, with and without a connection.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::attach::{list_tools, timeout};
use super::super::{Kept, Listed};
use super::{Actor, Live};
use crate::catalog::{Section, Tool};
use crate::plan::Target;
use crate::resource::{Activation, Problem, Reason};
use crate::wire::LinkError;

impl Actor {
    /// Publishes what the live server offers.
    pub(super) fn publish(&mut self) {
        let Some(live) = self.live.take() else { return };
        if let (Activation::OnDemand, Some(digest)) =
            (live.target.settings.activation, live.target.spec_digest)
        {
            self.context.memory.keep_catalog(digest, live.kept.clone());
        }
        let listed = Some(self.offer(&live.target, &live.kept));
        self.live = Some(Live { listed, ..live });
    }

    /// Makes a section of what a server lists and publishes it, unless agents see just that already.
    pub(super) fn offer(&mut self, target: &Target, kept: &Kept) -> Arc<Listed> {
        let section = Arc::new(Section::new(target, &kept.tools, self.handle.clone()));
        let listed = Listed {
            generation: target.generation,
            server_info: kept.server_info.clone(),
            protocol_version: kept.protocol_version.clone(),
            tools: u32::try_from(section.tools.len()).unwrap_or(u32::MAX),
            catalog_digest: crate::catalog::digest(&kept.tools),
        };
        if !self.published.as_ref().is_some_and(|published| published.offers_the_same(&section)) {
            self.context.catalog.publish(section.clone());
            self.published = Some(section);
        }
        Arc::new(listed)
    }

    pub(super) fn refresh(&mut self) {
        let Some(live) = &self.live else { return };
        if self.refresh.is_some() {
            self.refresh_again = true;
            return;
        }
        let link = live.link.clone();
        let limit = live.target.settings.timeouts.connect.get();
        self.refresh = Some(Box::pin(async move {
            match tokio::time::timeout(limit, list_tools(&link)).await {
                Ok(result) => result,
                Err(_) => Err(timeout(format!("tools/list was not answered within {limit:?}"))),
            }
        }));
    }

    pub(super) fn refreshed(&mut self, result: Result<Vec<Tool>, LinkError>) {
        self.refresh = None;
        match result {
            Ok(tools) => {
                if let Some(live) = &mut self.live {
                    live.kept.tools = tools;
                }
                self.publish();
            }
            Err(error) => {
                tracing::warn!(server = %self.target.key, %error, "the list could not be read again; the last one stays");
            }
        }
        if std::mem::take(&mut self.refresh_again) {
            self.refresh();
        }
    }

    pub(super) fn grace_over(&mut self) {
        self.grace_until = None;
        if self.live.is_none() && self.published.take().is_some() {
            let why = self
                .last
                .clone()
                .unwrap_or_else(|| Problem::new(Reason::Reconnecting, "the connection was lost"));
            self.context.catalog.withdraw(self.target.key.clone(), why);
        }
    }

    /// Offers an `OnDemand` server from memory, without a connection. False if nothing is remembered.
    pub(super) fn recall(&mut self) -> bool {
        let target = self.target.clone();
        let digest = target.spec_digest.filter(|_| target.settings.activation == Activation::OnDemand);
        let Some(kept) = digest.and_then(|digest| self.context.memory.catalog(digest)) else {
            return false;
        };
        self.asleep = Some(self.offer(&target, &kept));
        self.handle.sleep(target.settings.timeouts.connect.get());
        true
    }

    /// When to look whether the live connection is still in use; never for one that is always held.
    pub(super) fn idle_due(&self) -> Option<Instant> {
        let live =
            self.live.as_ref().filter(|live| live.target.settings.activation == Activation::OnDemand)?;
        let unused = self.handle.unused_for().unwrap_or_default();
        Some(Instant::now() + live.target.settings.timeouts.idle.get().saturating_sub(unused))
    }

    /// Lets go of a connection that nobody has used for long enough.
    pub(super) fn maybe_sleep(&mut self) {
        self.idle_at = self.idle_due();
        let idle = self.target.settings.timeouts.idle.get();
        if self.attempt.is_some() || self.handle.unused_for().is_none_or(|unused| unused < idle) {
            return;
        }
        self.idle_at = None;
        self.refresh = None;
        self.asleep = self.live.take().and_then(|live| live.listed);
        if let Some(before) = self.handle.sleep(self.target.settings.timeouts.connect.get()) {
            self.end(before, idle, Problem::new(Reason::Idle, "the connection was let go"));
        }
    }

    /// Somebody called: connects.
    pub(super) fn wake(&mut self) {
        self.asleep = None;
        self.connect();
        let why = Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name));
        self.handle.pend(why, Instant::now() + self.target.settings.timeouts.connect.get());
    }
}
