use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;

use super::Target;
use crate::resource::{Declared, Desired, McpServerSpec, ObjectKey, Reason};

/// What the fleet was last told, per server: the declaration behind it and the target made from it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The servers that the fleet knows.
    pub servers: OrdMap<ObjectKey, (Arc<Declared<McpServerSpec>>, Arc<Target>)>,
}

/// One step for one server.
#[derive(Clone, Debug)]
pub enum Change {
    /// Connect a server that is not there yet.
    Attach(Arc<Target>),
    /// The connection itself changed: make a new one.
    Replace(Arc<Target>),
    /// Names, filters or limits changed: apply them to the live connection.
    Refilter(Arc<Target>),
    /// Nothing changed, but a look was asked for: retry what failed, read the lists of what is healthy.
    Refresh(Arc<Target>),
    /// Take the server away.
    Detach {
        /// Which.
        key: ObjectKey,
        /// `Removed` or `Suspended`.
        reason: Reason,
    },
}

impl Change {
    /// The server that changes.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Attach(target) | Self::Replace(target) | Self::Refilter(target) | Self::Refresh(target) => {
                &target.key
            }
            Self::Detach { key, .. } => key,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self {
            Self::Attach(_) => "attach",
            Self::Replace(_) => "replace",
            Self::Refilter(_) => "refilter",
            Self::Refresh(_) => "refresh",
            Self::Detach { .. } => "detach",
        };
        write!(f, "{verb} {}", self.key())
    }
}

/// The steps from what is observed to what is desired, in the order of the keys.
///
/// Guarantees: a server whose declaration is the same object gets no step; one whose newest declaration is
/// refused, or whose reference was not found, keeps what it has; a source that has not been read
/// completely changes nothing.
pub fn changes(desired: &Desired, observed: &Observed) -> Vec<Change> {
    if !desired.source.synced {
        return Vec::new();
    }
    let removed = observed
        .servers
        .keys()
        .filter(|key| !desired.servers.contains_key(*key))
        .map(|key| Change::Detach { key: key.clone(), reason: Reason::Removed });
    let declared =
        desired.servers.values().filter_map(|declared| match observed.servers.get(&declared.meta.key) {
            Some((seen, _)) if Arc::ptr_eq(seen, declared) => None,
            Some((_, current)) => update(declared, current),
            None => Target::of(declared).map(|target| Change::Attach(Arc::new(target))),
        });
    removed.chain(declared).collect()
}

fn update(declared: &Declared<McpServerSpec>, current: &Target) -> Option<Change> {
    if declared.spec.as_ref().is_some_and(|spec| spec.suspend) {
        let key = declared.meta.key.clone();
        return Some(Change::Detach { key, reason: Reason::Suspended });
    }
    let mut target = Target::of(declared)?;
    if declared.refused.is_some() {
        // What is in force is the declaration that was accepted before.
        target.generation = current.generation;
    }
    if !target.same_connection(current) {
        Some(Change::Replace(Arc::new(target)))
    } else if target.generation != current.generation {
        Some(Change::Refilter(Arc::new(target)))
    } else if target.requested.is_some() && target.requested != current.requested {
        Some(Change::Refresh(Arc::new(target)))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::{DigestKey, Endpoint, HttpEndpoint, Meta, Origin, Problem, SourceState, Transport};
    use crate::resource::{RECONNECT_AT, REQUESTED_AT};

    /// A declaration of a server `a`, `b`, … from the parts of its spec that matter here.
    fn declare(name: &str, generation: i64, spec: Value) -> Arc<Declared<McpServerSpec>> {
        let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
        let url = spec.http.as_ref().unwrap().url.parse().unwrap();
        let transport = Transport::Http(HttpEndpoint { url, headers: Vec::new(), ca: None });
        Arc::new(Declared {
            meta: Meta {
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
        declared: &Arc<Declared<McpServerSpec>>,
        alter: impl FnOnce(&mut Declared<McpServerSpec>),
    ) -> Arc<Declared<McpServerSpec>> {
        let mut altered = Declared {
            meta: declared.meta.clone(),
            spec: declared.spec.clone(),
            spec_digest: declared.spec_digest,
            refused: declared.refused.clone(),
            endpoint: declared.endpoint.clone(),
        };
        alter(&mut altered);
        Arc::new(altered)
    }

    fn desired(servers: &[&Arc<Declared<McpServerSpec>>]) -> Desired {
        Desired {
            servers: servers.iter().map(|server| (server.meta.key.clone(), (*server).clone())).collect(),
            source: Arc::new(SourceState { synced: true, ..SourceState::default() }),
            ..Desired::default()
        }
    }

    fn observed(servers: &[&Arc<Declared<McpServerSpec>>]) -> Observed {
        let told = |server: &&Arc<Declared<McpServerSpec>>| {
            let target = Arc::new(Target::of(server).unwrap());
            (server.meta.key.clone(), ((*server).clone(), target))
        };
        Observed { servers: servers.iter().map(told).collect() }
    }

    fn steps(desired: &Desired, observed: &Observed) -> Vec<String> {
        changes(desired, observed).iter().map(ToString::to_string).collect()
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
        for (what, before, now, expected) in [
            ("nothing", None, None, None),
            ("new", None, Some(&a), Some("attach default/a")),
            ("new and suspended", None, Some(&suspended), None),
            ("new and unresolved", None, Some(&unresolved), None),
            ("never valid", None, Some(&never), None),
            ("unchanged", Some(&a), Some(&a), None),
            ("equal", Some(&a), Some(&same), None),
            ("a look was asked for", Some(&a), Some(&asked), Some("refresh default/a")),
            ("the same look", Some(&asked), Some(&altered(&asked, |_| ())), None),
            ("a new connection was asked for", Some(&a), Some(&anew), Some("replace default/a")),
            ("the same new connection", Some(&anew), Some(&altered(&anew, |_| ())), None),
            ("it is no longer asked for", Some(&anew), Some(&a), None),
            ("another url", Some(&a), Some(&moved), Some("replace default/a")),
            ("deleted and created again", Some(&a), Some(&again), Some("replace default/a")),
            ("another prefix", Some(&a), Some(&filtered), Some("refilter default/a")),
            ("suspended", Some(&a), Some(&suspended), Some("detach default/a")),
            ("newest declaration refused", Some(&a), Some(&broken), None),
            ("secret deleted", Some(&a), Some(&unresolved), None),
            ("removed", Some(&a), None, Some("detach default/a")),
        ] {
            let before: Vec<_> = before.into_iter().collect();
            let now: Vec<_> = now.into_iter().collect();
            let found = steps(&desired(&now), &observed(&before));
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{what}");
        }
    }

    #[test]
    fn one_change_is_one_step_whatever_else_there_is() {
        let all: Vec<_> =
            (0..100).map(|index| declare(&format!("s{index}"), 1, at(&format!("http://{index}")))).collect();
        let all: Vec<_> = all.iter().collect();
        let before = observed(&all);
        let mut now = desired(&all);
        let changed = declare("s7", 2, at("http://new"));
        now.servers.insert(changed.meta.key.clone(), changed);
        assert_eq!(steps(&now, &before), ["replace default/s7"]);
        now.servers.remove(&ObjectKey::new("default", "s9"));
        assert_eq!(steps(&now, &before), ["detach default/s9", "replace default/s7"]);
    }

    #[test]
    fn a_source_that_was_not_read_yet_takes_nothing_away() {
        let a = declare("a", 1, at("http://a"));
        assert!(steps(&Desired::default(), &observed(&[&a])).is_empty());
    }
}
