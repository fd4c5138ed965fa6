//! The secrets directory: `<dir>/<name>/<key>`, as Kubernetes mounts it.
//!
//! Names and keys were checked by the rules of the resource, so they cannot leave the directory. Values stay in memory
//! while a server refers to them, and are read again only when their file has changed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::stat;
use secrecy::{ExposeSecret, SecretString};

use super::tree::{FileStamp, read_file};
use crate::resource::SecretKeyRef;
use crate::source::resolve::SecretLookup;

/// The size limit of a secret, the same as that of a Kubernetes Secret.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// The secrets that were looked up.
pub(super) struct SecretFiles {
    root: PathBuf,
    cache: RefCell<HashMap<(String, String), CachedSecret>>,
}

struct CachedSecret {
    /// The stamp of the file when it was read; `None` if there was no file, or if the stamp is too recent to prove
    /// anything.
    stamp: Option<FileStamp>,
    value: SecretLookup,
}

impl SecretFiles {
    pub fn new(root: PathBuf) -> Self {
        Self { root, cache: RefCell::default() }
    }

    /// Returns the directory of secrets.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// True if no secret was looked up.
    pub fn is_empty(&self) -> bool {
        self.cache.borrow().is_empty()
    }

    /// Returns the value of a reference as of the last refresh, or reads it now if it was not looked up before.
    pub fn get(&self, reference: &SecretKeyRef, now: Timestamp) -> SecretLookup {
        let name_and_key = (reference.name.clone(), reference.key.clone());
        let mut cache = self.cache.borrow_mut();
        let cached =
            cache.entry(name_and_key).or_insert_with_key(|name_and_key| self.read(name_and_key, now));
        cached.value.clone()
    }

    /// Drops the secrets that are not in `referenced`, reads the others again if they changed, and returns true if a
    /// value differs.
    pub fn refresh(&mut self, referenced: &HashSet<(String, String)>, now: Timestamp) -> bool {
        let mut cache = std::mem::take(self.cache.get_mut());
        cache.retain(|name_and_key, _| referenced.contains(name_and_key));
        let mut changed = false;
        for (name_and_key, cached) in &mut cache {
            let path = self.root.join(&name_and_key.0).join(&name_and_key.1);
            let stamp = stat(&path).ok().map(|stat| FileStamp::of(&stat));
            if stamp.is_none() && matches!(cached.value, SecretLookup::Missing)
                || stamp.is_some() && stamp == cached.stamp
            {
                continue;
            }
            let current = self.read(name_and_key, now);
            changed |= !is_same_lookup(&cached.value, &current.value);
            *cached = current;
        }
        self.cache = RefCell::new(cache);
        changed
    }

    /// Returns the folders whose changes matter: the root, and those of the cached secrets.
    pub fn watched_folders(&self) -> Vec<PathBuf> {
        let names: HashSet<_> = self.cache.borrow().keys().map(|(name, _)| name.clone()).collect();
        let mut folders = vec![self.root.clone()];
        folders.extend(names.iter().map(|name| self.root.join(name)));
        folders
    }

    fn read(&self, (name, key): &(String, String), now: Timestamp) -> CachedSecret {
        match read_file(&self.root.join(name).join(key), MAX_SECRET_BYTES) {
            Ok((stamp, bytes)) => CachedSecret {
                stamp: Some(stamp).filter(|stamp| stamp.is_settled(now)),
                value: match String::from_utf8(bytes) {
                    Ok(text) => SecretLookup::Found(SecretString::from(text)),
                    Err(_) => SecretLookup::Unusable("is not valid UTF-8".to_owned()),
                },
            },
            Err(error) => CachedSecret {
                stamp: None,
                value: match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SecretLookup::Missing,
                    _ => SecretLookup::Unusable(error.to_string()),
                },
            },
        }
    }
}

fn is_same_lookup(one: &SecretLookup, other: &SecretLookup) -> bool {
    match (one, other) {
        (SecretLookup::Found(one), SecretLookup::Found(other)) => {
            one.expose_secret() == other.expose_secret()
        }
        (SecretLookup::Missing, SecretLookup::Missing) => true,
        (SecretLookup::Unusable(one), SecretLookup::Unusable(other)) => one == other,
        _ => false,
    }
}
