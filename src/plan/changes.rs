use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::{ConnectionTarget, DeclarationChange, DeclarationParts, Presence};
use crate::resource::{DeclaredObject, Desired, McpServerSpec, ObjectKey};

type Servers = OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>;

/// What the fleet was last told: what was declared then, and the target of each server that is there.
#[derive(Clone, Debug, Default)]
pub struct LastApplied {
    declared: Servers,
    targets: OrdMap<ObjectKey, Arc<ConnectionTarget>>,
}

impl LastApplied {
    /// Gives what a server was last told to be; `None` if it is not to be there.
    pub fn target(&self, key: &ObjectKey) -> Option<&Arc<ConnectionTarget>> {
        self.targets.get(key)
    }

    /// Gives the steps to what is desired, in the order of the keys, and takes them for done.
    ///
    /// Guarantees: a server whose declaration is the same object is not looked at, so that the cost follows what changed;
    /// one whose newest declaration is refused, or whose reference was not found, keeps what it has; a source that has
    /// not been read completely changes nothing. [`DeclarationChange::Stay`] is among the steps only where the declaration has
    /// another generation.
    pub fn changes(
        &mut self,
        desired: &Desired,
    ) -> Vec<(ObjectKey, DeclarationChange<Arc<ConnectionTarget>>)> {
        if !desired.source.synced {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.declared, desired.servers.clone());
        let changes: Vec<_> = before.diff(&self.declared).filter_map(|item| self.change(&item)).collect();
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

    fn change(
        &self,
        item: &DiffItem<'_, '_, ObjectKey, Arc<DeclaredObject<McpServerSpec>>>,
    ) -> Option<(ObjectKey, DeclarationChange<Arc<ConnectionTarget>>)> {
        let (key, before, after) = match item {
            DiffItem::Add(key, after) => (*key, None, Some(*after)),
            DiffItem::Update { old: (key, before), new: (_, after) } => (*key, Some(*before), Some(*after)),
            DiffItem::Remove(key, before) => (*key, Some(*before), None),
        };
        let current = self.targets.get(key);
        let target = after.and_then(|after| ConnectionTarget::of(after)).map(|mut target| {
            if let Some(current) = current.filter(|_| after.is_some_and(|after| after.refused.is_some())) {
                // What is in force is the declaration that was accepted before.
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
            // It cannot be made what it is to be, so it stays what it is.
            (Some(_), None) => return None,
        };
        let before = match (current, before) {
            (Some(current), _) => Presence::Attached(&**current),
            (None, Some(before)) if before.spec.is_some() => Presence::Detached,
            (None, _) => Presence::Absent,
        };
        let change = DeclarationChange::between(before, after, |before, after| {
            DeclarationParts::resolved(before).change(&DeclarationParts::resolved(after))
        });
        let same_generation = match (current, &target) {
            (Some(current), Some(target)) => current.generation == target.generation,
            _ => true,
        };
        match (change, target) {
            (DeclarationChange::Stay(()), _) if same_generation => None,
            (DeclarationChange::Detach(reason), _) => Some((key.clone(), DeclarationChange::Detach(reason))),
            (change, target) => Some((key.clone(), change.with(target?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::{
        DeclaredMeta, DigestKey, Endpoint, HttpEndpoint, Origin, Problem, Reason, SourceState, Transport,
    };
    use crate::resource::{RECONNECT_AT, REQUESTED_AT};

    /// A declaration of a server `a`, `b`, … from the parts of its spec that matter here.
    fn declare(name: &str, generation: i64, spec: Value) -> Arc<DeclaredObject<McpServerSpec>> {
        let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
        let url = spec.http.as_ref().unwrap().url.parse().unwrap();
        let transport = Transport::Http(HttpEndpoint { url, headers: Vec::new(), ca: None });
        Arc::new(DeclaredObject {
            meta: DeclaredMeta {
                key: ObjectKey::new("default", name),
                uid: format!("uid-{name}").into(),
                generation,
                created: jiff::Timestamp::UNIX_EPOCH,
                labels: std::collections::BTreeMap::new(),
                annotations: std::collections::BTreeMap::new(),
                origin: Origin::Cluster { resource_version: "1".into() },
                revision: "r".into(),
                change: None,
            },
            spec: Some(Arc::new(spec)),
            spec_digest: None,
            refused: None,
            endpoint: Some(Ok(Arc::new(Endpoint::new(transport, &DigestKey::new(b"key"))))),
        })
    }

    fn at(url: &str) -> Value {
        json!({ "http": { "url": url } })
    }

    fn altered(
        declared: &Arc<DeclaredObject<McpServerSpec>>,
        alter: impl FnOnce(&mut DeclaredObject<McpServerSpec>),
    ) -> Arc<DeclaredObject<McpServerSpec>> {
        let mut altered = DeclaredObject {
            meta: declared.meta.clone(),
            spec: declared.spec.clone(),
            spec_digest: declared.spec_digest,
            refused: declared.refused.clone(),
            endpoint: declared.endpoint.clone(),
        };
        alter(&mut altered);
        Arc::new(altered)
    }

    fn desired(servers: &[&Arc<DeclaredObject<McpServerSpec>>]) -> Desired {
        Desired {
            servers: servers.iter().map(|server| (server.meta.key.clone(), (*server).clone())).collect(),
            source: Arc::new(SourceState { synced: true, ..SourceState::default() }),
            ..Desired::default()
        }
    }

    fn observed(servers: &[&Arc<DeclaredObject<McpServerSpec>>]) -> LastApplied {
        let mut observed = LastApplied::default();
        observed.changes(&desired(servers));
        observed
    }

    fn steps(desired: &Desired, observed: &mut LastApplied) -> Vec<String> {
        let step = |(key, change): (ObjectKey, DeclarationChange<_>)| {
            [change.verb(), &key.name, &change.parts().join(", ")].join(" ").trim().to_owned()
        };
        observed.changes(desired).into_iter().map(step).collect()
    }

    #[test]
    fn every_way_in_which_one_server_differs() {
        let a = declare("a", 1, at("http://a"));
        let suspended = declare("a", 2, json!({ "http": { "url": "http://a" }, "suspend": true }));
        let filtered = declare("a", 2, json!({ "http": { "url": "http://a" }, "expose": { "prefix": "x" } }));
        let moved = declare("a", 2, at("http://elsewhere"));
        let again = altered(&a, |a| a.meta.uid = "another".into());
        let same = altered(&a, |a| a.meta.labels = [("l".to_owned(), "v".to_owned())].into());
        let asked = altered(&a, |a| a.meta.annotations = [(REQUESTED_AT.to_owned(), "1".to_owned())].into());
        let anew = altered(&a, |a| a.meta.annotations = [(RECONNECT_AT.to_owned(), "1".to_owned())].into());
        let broken = altered(&a, |a| {
            a.refused = Some(Problem::new(Reason::ParseError, "line 3"));
        });
        let unresolved = altered(&moved, |a| {
            a.endpoint = Some(Err(Problem::new(Reason::SecretNotFound, "secret x")));
        });
        let never = altered(&unresolved, |a| a.spec = None);
        let worded = declare("a", 2, at("HTTP://A:80#x"));
        let reconnect = "replace a annotation evenkeel.dev/reconnect-requested-at";
        for (what, before, now, expected) in [
            ("nothing", None, None, None),
            ("new", None, Some(&a), Some("attach a")),
            ("new and suspended", None, Some(&suspended), None),
            ("new and unresolved", None, Some(&unresolved), None),
            ("never valid", None, Some(&never), None),
            ("unchanged", Some(&a), Some(&a), None),
            ("equal", Some(&a), Some(&same), None),
            ("the same in other words", Some(&a), Some(&worded), Some("stay a")),
            ("a look was asked for", Some(&a), Some(&asked), Some("refresh a")),
            ("the same look", Some(&asked), Some(&altered(&asked, |_| ())), None),
            ("a new connection was asked for", Some(&a), Some(&anew), Some(reconnect)),
            ("the same new connection", Some(&anew), Some(&altered(&anew, |_| ())), None),
            ("it is no longer asked for", Some(&anew), Some(&a), None),
            ("another url", Some(&a), Some(&moved), Some("replace a url")),
            ("deleted and created again", Some(&a), Some(&again), Some("replace a uid")),
            ("another prefix", Some(&a), Some(&filtered), Some("refilter a expose")),
            ("suspended", Some(&a), Some(&suspended), Some("suspend a")),
            ("no longer suspended", Some(&suspended), Some(&a), Some("attach a")),
            ("suspended all the time", Some(&suspended), Some(&altered(&suspended, |_| ())), None),
            ("removed while suspended", Some(&suspended), None, Some("detach a")),
            ("removed, and never valid", Some(&never), None, None),
            ("found at last", Some(&unresolved), Some(&moved), Some("attach a")),
            ("newest declaration refused", Some(&a), Some(&broken), None),
            ("secret deleted", Some(&a), Some(&unresolved), None),
            ("removed", Some(&a), None, Some("detach a")),
        ] {
            let before: Vec<_> = before.into_iter().collect();
            let now: Vec<_> = now.into_iter().collect();
            let mut observed = observed(&before);
            let found = steps(&desired(&now), &mut observed);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{what}");
            assert!(steps(&desired(&now), &mut observed).is_empty(), "{what}: done once");
        }
    }

    #[test]
    fn what_was_held_back_is_compared_with_what_is_there() {
        let (a, moved) = (declare("a", 1, at("http://a")), declare("a", 2, at("http://elsewhere")));
        let unresolved = altered(&moved, |a| {
            a.endpoint = Some(Err(Problem::new(Reason::SecretNotFound, "secret x")));
        });
        let mut observed = observed(&[&a]);
        for (now, expected) in
            [(&unresolved, None), (&moved, Some("replace a url")), (&a, Some("replace a url"))]
        {
            let found = steps(&desired(&[now]), &mut observed);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
        assert!(steps(&Desired::default(), &mut observed).is_empty(), "not read yet: nothing goes");
        assert_eq!(steps(&desired(&[]), &mut observed), ["detach a"]);
    }

    #[test]
    fn one_change_costs_one_server_whatever_else_there_is() {
        for size in [10, 10_000] {
            let server = |index| {
                let server = declare(&format!("s{index}"), 1, at("http://a"));
                (server.meta.key.clone(), server)
            };
            let mut now = Desired { servers: (0..size).map(server).collect(), ..desired(&[]) };
            let mut observed = LastApplied::default();
            assert_eq!(observed.changes(&now).len(), size);
            let changed = declare("s7", 2, at("http://new"));
            now.servers.insert(changed.meta.key.clone(), changed);
            now.servers.remove(&ObjectKey::new("default", "s9"));
            assert_eq!(observed.declared.diff(&now.servers).count(), 2, "servers looked at");
            assert_eq!(steps(&now, &mut observed), ["replace s7 url", "detach s9"]);
            assert_eq!(observed.declared.diff(&now.servers).count(), 0);
        }
    }
}
