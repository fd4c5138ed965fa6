use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::{ConnectionTarget, DeclarationChange, DeclarationParts, Presence};
use crate::resource::{DeclaredObject, Desired, McpServerSpec, ObjectKey};

type ServerDeclarations = OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>;

/// The declarations that the fleet last applied, and the target of each attached server.
#[derive(Clone, Debug, Default)]
pub struct LastApplied {
    declared: ServerDeclarations,
    targets: OrdMap<ObjectKey, Arc<ConnectionTarget>>,
}

impl LastApplied {
    /// Returns the last applied target of a server; `None` if it should not be attached.
    pub fn target(&self, key: &ObjectKey) -> Option<&Arc<ConnectionTarget>> {
        self.targets.get(key)
    }

    /// Returns the changes from the last applied state to `desired`, in the order of the keys, and records them as
    /// applied.
    ///
    /// Guarantees:
    /// - A server whose declaration is the same object is not compared, so the cost depends only on the number of
    ///   changes.
    /// - A server whose newest declaration is rejected, or with an unresolved reference, keeps its current target.
    /// - A source that has not been read completely causes no changes.
    /// - [`DeclarationChange::Stay`] is returned only if the generation of the declaration changed.
    pub fn apply(&mut self, desired: &Desired) -> Vec<(ObjectKey, DeclarationChange<Arc<ConnectionTarget>>)> {
        if !desired.source.synced {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.declared, desired.servers.clone());
        let changes: Vec<_> = before.diff(&self.declared).filter_map(|item| self.change_for(&item)).collect();
        for (key, change) in &changes {
            match change {
                DeclarationChange::Attach(target)
                | DeclarationChange::Replace(target, _)
                | DeclarationChange::Refilter(target, _)
                | DeclarationChange::Refresh(target)
                | DeclarationChange::Stay(target) => self.targets.insert(key.clone(), target.clone()),
                DeclarationChange::Detach(_) => self.targets.remove(key),
            };
        }
        changes
    }

    fn change_for(
        &self,
        item: &DiffItem<'_, '_, ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    ) -> Option<(ObjectKey, DeclarationChange<Arc<ConnectionTarget>>)> {
        let (key, before, after) = match item {
            DiffItem::Add(key, after) => (*key, None, Some(*after)),
            DiffItem::Update { old: (key, before), new: (_, after) } => (*key, Some(*before), Some(*after)),
            DiffItem::Remove(key, before) => (*key, Some(*before), None),
        };
        let current = self.targets.get(key);
        let target = after.and_then(|after| ConnectionTarget::from_declared(after)).map(|mut target| {
            if let Some(current) = current.filter(|_| after.is_some_and(|after| after.rejected.is_some())) {
                // The previously accepted declaration stays in force.
                target.generation = current.generation;
            }
            Arc::new(target)
        });
        let is_suspended =
            |after: &DeclaredObject<McpServerSpec>| after.spec.as_ref().is_some_and(|spec| spec.suspend);
        let after = match (after, &target) {
            (None, _) => Presence::Absent,
            (Some(_), Some(target)) => Presence::Attached(&**target),
            (Some(after), None) if is_suspended(after) => Presence::Detached,
            // The target cannot be determined, so the current state is kept.
            (Some(_), None) => return None,
        };
        let before = match (current, before) {
            (Some(current), _) => Presence::Attached(&**current),
            (None, Some(before)) if before.spec.is_some() => Presence::Detached,
            (None, _) => Presence::Absent,
        };
        let change = DeclarationChange::between(before, after, |before, after| {
            DeclarationParts::resolved(before).change_to(&DeclarationParts::resolved(after))
        });
        let same_generation = match (current, &target) {
            (Some(current), Some(target)) => current.generation == target.generation,
            _ => true,
        };
        match (change, target) {
            (DeclarationChange::Stay(()), _) if same_generation => None,
            (DeclarationChange::Detach(reason), _) => Some((key.clone(), DeclarationChange::Detach(reason))),
            (change, target) => Some((key.clone(), change.with_target(target?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::{
        DeclaredMeta, DigestKey, Endpoint, HttpEndpoint, HttpTransportKind, Origin, Problem, ProtocolMode,
        Reason, SourceState, Transport,
    };
    use crate::resource::{RECONCILE_REQUESTED_AT, RECONNECT_REQUESTED_AT};

    /// Returns the declaration of an HTTP server.
    fn declared_server(name: &str, generation: i64, spec: Value) -> Arc<DeclaredObject<McpServerSpec>> {
        let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
        let url = spec.http.as_ref().unwrap().url.parse().unwrap();
        let transport = Transport::Http(HttpEndpoint {
            kind: HttpTransportKind::StreamableHttp,
            url,
            headers: Vec::new(),
            ca: None,
            oauth: None,
        });
        Arc::new(DeclaredObject {
            meta: DeclaredMeta {
                key: ObjectKey::new("default", name),
                uid: format!("uid-{name}").into(),
                generation,
                created_at: jiff::Timestamp::UNIX_EPOCH,
                labels: std::collections::BTreeMap::new(),
                annotations: std::collections::BTreeMap::new(),
                origin: Origin::Cluster { resource_version: "1".into() },
                revision: "r".into(),
                last_commit: None,
            },
            spec: Some(Arc::new(spec)),
            spec_digest: None,
            rejected: None,
            endpoint: Some(Ok(Arc::new(Endpoint::new(
                transport,
                ProtocolMode::Auto,
                &DigestKey::new(b"key"),
            )))),
        })
    }

    fn http_spec(url: &str) -> Value {
        json!({ "http": { "url": url } })
    }

    fn modified(
        declared: &Arc<DeclaredObject<McpServerSpec>>,
        modify: impl FnOnce(&mut DeclaredObject<McpServerSpec>),
    ) -> Arc<DeclaredObject<McpServerSpec>> {
        let mut modified_object = DeclaredObject {
            meta: declared.meta.clone(),
            spec: declared.spec.clone(),
            spec_digest: declared.spec_digest,
            rejected: declared.rejected.clone(),
            endpoint: declared.endpoint.clone(),
        };
        modify(&mut modified_object);
        Arc::new(modified_object)
    }

    fn desired(servers: &[&Arc<DeclaredObject<McpServerSpec>>]) -> Desired {
        Desired {
            servers: servers.iter().map(|server| (server.meta.key.clone(), (*server).clone())).collect(),
            source: Arc::new(SourceState { synced: true, ..SourceState::default() }),
            ..Desired::default()
        }
    }

    fn applied(servers: &[&Arc<DeclaredObject<McpServerSpec>>]) -> LastApplied {
        let mut last_applied = LastApplied::default();
        last_applied.apply(&desired(servers));
        last_applied
    }

    fn change_texts(desired: &Desired, last_applied: &mut LastApplied) -> Vec<String> {
        let format_change = |(key, change): (ObjectKey, DeclarationChange<_>)| {
            [change.action(), &key.name, &change.changed_parts().join(", ")].join(" ").trim().to_owned()
        };
        last_applied.apply(desired).into_iter().map(format_change).collect()
    }

    #[test]
    fn each_kind_of_difference_gives_its_change() {
        let a = declared_server("a", 1, http_spec("http://a"));
        let suspended = declared_server("a", 2, json!({ "http": { "url": "http://a" }, "suspend": true }));
        let filtered =
            declared_server("a", 2, json!({ "http": { "url": "http://a" }, "expose": { "prefix": "x" } }));
        let moved = declared_server("a", 2, http_spec("http://elsewhere"));
        let recreated = modified(&a, |a| a.meta.uid = "another".into());
        let relabeled = modified(&a, |a| a.meta.labels = [("l".to_owned(), "v".to_owned())].into());
        let reconcile_requested = modified(&a, |a| {
            a.meta.annotations = [(RECONCILE_REQUESTED_AT.to_owned(), "1".to_owned())].into();
        });
        let reconnect_requested = modified(&a, |a| {
            a.meta.annotations = [(RECONNECT_REQUESTED_AT.to_owned(), "1".to_owned())].into();
        });
        let rejected = modified(&a, |a| {
            a.rejected = Some(Problem::new(Reason::ParseError, "line 3"));
        });
        let unresolved = modified(&moved, |a| {
            a.endpoint = Some(Err(Problem::new(Reason::SecretNotFound, "secret x")));
        });
        let never_valid = modified(&unresolved, |a| a.spec = None);
        let respelled = declared_server("a", 2, http_spec("HTTP://A:80#x"));
        let reconnect_change = "replace a annotation evenkeel.dev/reconnect-requested-at";
        for (case, before, now, expected) in [
            ("nothing", None, None, None),
            ("new", None, Some(&a), Some("attach a")),
            ("new and suspended", None, Some(&suspended), None),
            ("new and unresolved", None, Some(&unresolved), None),
            ("never valid", None, Some(&never_valid), None),
            ("unchanged", Some(&a), Some(&a), None),
            ("equal", Some(&a), Some(&relabeled), None),
            ("the same URL in another spelling", Some(&a), Some(&respelled), Some("stay a")),
            ("reconcile requested", Some(&a), Some(&reconcile_requested), Some("refresh a")),
            (
                "the same reconcile request",
                Some(&reconcile_requested),
                Some(&modified(&reconcile_requested, |_| ())),
                None,
            ),
            ("reconnect requested", Some(&a), Some(&reconnect_requested), Some(reconnect_change)),
            (
                "the same reconnect request",
                Some(&reconnect_requested),
                Some(&modified(&reconnect_requested, |_| ())),
                None,
            ),
            ("reconnect request removed", Some(&reconnect_requested), Some(&a), None),
            ("another url", Some(&a), Some(&moved), Some("replace a url")),
            ("deleted and created again", Some(&a), Some(&recreated), Some("replace a uid")),
            ("another prefix", Some(&a), Some(&filtered), Some("refilter a expose")),
            ("suspended", Some(&a), Some(&suspended), Some("suspend a")),
            ("no longer suspended", Some(&suspended), Some(&a), Some("attach a")),
            ("suspended all the time", Some(&suspended), Some(&modified(&suspended, |_| ())), None),
            ("removed while suspended", Some(&suspended), None, Some("detach a")),
            ("removed, and never valid", Some(&never_valid), None, None),
            ("reference resolved", Some(&unresolved), Some(&moved), Some("attach a")),
            ("newest declaration rejected", Some(&a), Some(&rejected), None),
            ("secret deleted", Some(&a), Some(&unresolved), None),
            ("removed", Some(&a), None, Some("detach a")),
        ] {
            let before: Vec<_> = before.into_iter().collect();
            let now: Vec<_> = now.into_iter().collect();
            let mut last_applied = applied(&before);
            let found = change_texts(&desired(&now), &mut last_applied);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{case}");
            assert!(change_texts(&desired(&now), &mut last_applied).is_empty(), "{case}: applied once");
        }
    }

    #[test]
    fn held_back_declaration_is_compared_with_the_live_target() {
        let (a, moved) = (
            declared_server("a", 1, http_spec("http://a")),
            declared_server("a", 2, http_spec("http://elsewhere")),
        );
        let unresolved = modified(&moved, |a| {
            a.endpoint = Some(Err(Problem::new(Reason::SecretNotFound, "secret x")));
        });
        let mut last_applied = applied(&[&a]);
        for (now, expected) in
            [(&unresolved, None), (&moved, Some("replace a url")), (&a, Some("replace a url"))]
        {
            let found = change_texts(&desired(&[now]), &mut last_applied);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
        assert!(
            change_texts(&Desired::default(), &mut last_applied).is_empty(),
            "an unsynced source removes nothing"
        );
        assert_eq!(change_texts(&desired(&[]), &mut last_applied), ["detach a"]);
    }

    #[test]
    fn diff_cost_is_independent_of_fleet_size() {
        for size in [10, 10_000] {
            let server = |index| {
                let server = declared_server(&format!("s{index}"), 1, http_spec("http://a"));
                (server.meta.key.clone(), server)
            };
            let mut now = Desired { servers: (0..size).map(server).collect(), ..desired(&[]) };
            let mut last_applied = LastApplied::default();
            assert_eq!(last_applied.apply(&now).len(), size);
            let changed = declared_server("s7", 2, http_spec("http://new"));
            now.servers.insert(changed.meta.key.clone(), changed);
            now.servers.remove(&ObjectKey::new("default", "s9"));
            assert_eq!(last_applied.declared.diff(&now.servers).count(), 2, "servers compared");
            assert_eq!(change_texts(&now, &mut last_applied), ["replace s7 url", "detach s9"]);
            assert_eq!(last_applied.declared.diff(&now.servers).count(), 0);
        }
    }
}
