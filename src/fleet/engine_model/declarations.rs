//! From the files to the orders: scans, the plan, and the names in the catalog.

use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;

use super::super::reconcile::catalog_declaration;
use super::super::state_machine::{Input, ServerOrder};
use super::engine::Engine;
use super::operations::SECRET_VALUE;
use crate::catalog::CatalogUpdate;
use crate::upstream::ViewName;
use crate::wire::{Era, ListKind};

/// The time for which a name that was given up goes to no other tool.
const NAME_RESERVATION: Duration = Duration::from_hours(1);

impl Engine {
    pub(super) fn settle(&mut self) {
        self.scan(false);
        // A removal is held for some seconds after the directory was away.
        while self.scan(true) {
            self.now += Duration::from_secs(10);
            self.scan(false);
        }
        if !self.crashed {
            let (desired, effects) = (self.desired.clone(), self.effects);
            self.scan(true);
            assert!(Arc::ptr_eq(&desired, &self.desired), "a scan without a change published another state");
            // Saving the records is an effect.
            assert!(self.crashed || self.effects == effects + 1, "a scan without a change had effects");
        }
        let secret = SECRET_VALUE.as_bytes();
        for (path, bytes) in self.directory.state_files() {
            let has_secret = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!has_secret, "{} contains a secret", path.display());
        }
    }

    /// Scans once. Returns true if a removal is held.
    pub(super) fn scan(&mut self, settled: bool) -> bool {
        if self.crashed {
            return false;
        }
        self.now += Duration::from_millis(250);
        let (desired, removals_held) = self.directory.scan((self.now, self.wall_clock()), settled);
        if !Arc::ptr_eq(&desired, &self.desired) {
            self.desired = desired;
            self.reconcile();
        }
        if self.end_effect() {
            self.directory.save_records();
        }
        removals_held
    }

    /// Does what `Fleet::reconcile` does.
    pub(super) fn reconcile(&mut self) {
        let desired = self.desired.clone();
        if !desired.source.synced {
            return;
        }
        let previous = std::mem::replace(&mut self.declared, desired.servers.clone());
        let updates: Vec<_> = previous
            .diff(&self.declared)
            .map(|change| match change {
                DiffItem::Add(key, declared) | DiffItem::Update { new: (key, declared), .. } => {
                    CatalogUpdate::Declare(key.clone(), catalog_declaration(declared))
                }
                DiffItem::Remove(key, _) => CatalogUpdate::Remove(key.clone()),
            })
            .collect();
        self.update_catalog(updates);
        for (key, change) in self.last_applied.apply(&desired) {
            if self.crashed {
                return;
            }
            match ServerOrder::from(change) {
                ServerOrder::Apply(target) if !self.machines.contains_key(&key) => self.start_machine(target),
                order => self.input(&key, &Input::Ordered(order)),
            }
        }
    }

    pub(super) fn update_catalog(&mut self, updates: Vec<CatalogUpdate>) {
        if updates.is_empty() || self.crashed {
            return;
        }
        self.catalog = self.catalog.with_updates(updates, self.now);
        // Names are stored before agents can see them.
        let keys: Vec<_> = self.declared.keys().chain(self.disk.names.keys()).cloned().collect();
        for key in keys {
            let names = self.catalog.names_of(&key);
            self.disk.names.insert(key, names);
        }
        let table = self.catalog.view(&ViewName::All).table(ListKind::Tools);
        let listed = table.page(None, Era::Modern).unwrap();
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.items).unwrap();
        for item in listed {
            let name = item["name"].as_str().unwrap();
            let route = table.route(name).expect("a listed name is routed");
            let target = (route.section().key.clone(), route.name().to_owned(), self.now);
            let previous = self.routed_names.insert(name.to_owned(), target.clone());
            if let Some((server, tool, listed_at)) = previous {
                let same = (&server, &tool) == (&target.0, &target.1);
                let expired = self.now.duration_since(listed_at) >= NAME_RESERVATION;
                assert!(
                    same || expired,
                    "{name} led to {server} {tool}, and now to {} {}",
                    target.0,
                    target.1
                );
            }
        }
    }
}
