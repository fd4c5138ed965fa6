//! The secrets directory: `<dir>/<name>/<key>`, as Kubernetes mounts it.
//!
//! Names and keys were checked by the rules of the resource, so that they cannot leave the directory. Values
//! stay in memory while somebody refers to them, and are read again only when their file has changed.

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

/// As much as Kubernetes lets a Secret hold.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// The secrets that were asked for.
pub(super) struct SecretFiles {
    root: PathBuf,
    cache: RefCell<HashMap<(String, String), CachedSecret>>,
}

struct CachedSecret {
    /// Of the file when it was read; `None` if there was none, or if the stamp proves nothing yet.
    stamp: Option<FileStamp>,
    value: SecretLookup,
}

impl SecretFiles {
    pub fn new(root: PathBuf) -> Self {
        Self { root, cache: RefCell::default() }
    }

    /// Where secrets are looked for.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether nobody has asked for a secret.
    pub fn is_empty(&self) -> bool {
        self.cache.borrow().is_empty()
    }

    /// The value of a reference: the one of the last refresh, read now if nobody has asked before.
    pub fn get(&self, reference: &SecretKeyRef, now: Timestamp) -> SecretLookup {
        let place = (reference.name.clone(), reference.key.clone());
        let mut known = self.cache.borrow_mut();
        let entry = known.entry(place).or_insert_with_key(|place| self.read(place, now));
        entry.value.clone()
    }

    /// Forgets what nobody in `used` refers to, looks at the rest again, and says whether a value differs.
    pub fn refresh(&mut self, used: &HashSet<(String, String)>, now: Timestamp) -> bool {
        let mut known = std::mem::take(self.cache.get_mut());
        known.retain(|place, _| used.contains(place));
        let mut differs = false;
        for (place, entry) in &mut known {
            let path = self.root.join(&place.0).join(&place.1);
            let stamp = stat(&path).ok().map(|stat| FileStamp::of(&stat));
            if stamp.is_none() && matches!(entry.value, SecretLookup::Missing)
                || stamp.is_some() && stamp == entry.stamp
            {
                continue;
            }
            let new = self.read(place, now);
            differs |= !is_same_lookup(&entry.value, &new.value);
            *entry = new;
        }
        self.cache = RefCell::new(known);
        differs
    }

    /// The folders whose changes matter: the root, and those of the secrets that are referred to.
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
                    Err(_) => SecretLookup::Unusable("is not text in UTF-8".to_owned()),
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
