use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::grant::{GRANTS_DIR, StoredGrant};
use super::grant_place::GrantPlace;
use crate::state_dir::StateDir;

/// Keeps grants in files of the state directory (mode 0600). Cheap to clone.
#[derive(Clone, Debug)]
pub struct GrantStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Arc<StateDir>,
    /// One thread writes at a time.
    writing: Mutex<()>,
}

impl GrantStore {
    /// Keeps grants in this state directory.
    pub fn new(state: Arc<StateDir>) -> Self {
        Self(Arc::new(Inner { state, writing: Mutex::default() }))
    }

    /// Returns the place of a new grant.
    pub(super) fn place(grant: &StoredGrant) -> GrantPlace {
        GrantPlace::File(grant.file_name().into())
    }

    /// Loads all grants.
    pub(super) async fn load(&self) -> Vec<(GrantPlace, StoredGrant)> {
        let inner = self.0.clone();
        let load = move || {
            let files = inner.state.list(GRANTS_DIR).unwrap_or_default();
            let read = |file: String| {
                let grant = match inner.state.read(&file) {
                    Ok(json) => StoredGrant::from_json(&json.unwrap_or_default()),
                    Err(error) => Err(error.to_string()),
                };
                match grant {
                    Ok(grant) => Some((GrantPlace::File(file.into()), grant)),
                    Err(error) => {
                        tracing::warn!(file, error, "a grant cannot be read; log in again");
                        None
                    }
                }
            };
            files.into_iter().filter_map(read).collect()
        };
        spawn_blocking(load).await.unwrap_or_default()
    }

    /// Stores a grant. `replaces` is the login of the grant that a renewal replaces: if there is another one by now,
    /// nothing is stored and false is returned. `None` stores the grant of a new login.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be stored.
    pub(super) async fn save(
        &self,
        place: &GrantPlace,
        grant: &StoredGrant,
        replaces: Option<&str>,
    ) -> Result<bool, String> {
        let GrantPlace::File(name) = place else { return Ok(true) };
        let (inner, name, json) = (self.0.clone(), name.clone(), grant.to_json());
        let replaces = replaces.map(ToOwned::to_owned);
        let write = move || inner.write(&name, &json, replaces.as_deref());
        spawn_blocking(write).await.map_err(|error| error.to_string())?
    }

    /// Removes a grant.
    pub(super) async fn remove(&self, place: &GrantPlace) -> Result<(), String> {
        let GrantPlace::File(name) = place else { return Ok(()) };
        let (inner, name) = (self.0.clone(), name.clone());
        let remove = move || {
            let _writing = inner.writing.lock();
            inner.state.remove(&name)
        };
        let removed = spawn_blocking(remove).await;
        removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

impl Inner {
    fn write(&self, name: &str, json: &[u8], replaces: Option<&str>) -> Result<bool, String> {
        let _writing = self.writing.lock();
        if let Some(login) = replaces {
            let stored = self.state.read(name).map_err(|error| error.to_string())?;
            let stored = stored.and_then(|json| StoredGrant::from_json(&json).ok());
            if stored.is_none_or(|stored| stored.login != login) {
                return Ok(false);
            }
        }
        self.state.write(name, json).map_err(|error| error.to_string())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::super::grant::tests::grant;
    use super::*;

    #[tokio::test]
    async fn renewal_does_not_overwrite_another_login() {
        let home = tempdir().unwrap();
        let state = Arc::new(StateDir::open(home.path(), home.path()).unwrap());
        let store = GrantStore::new(state);
        let first = grant("https://mcp.example.com/mcp", None, 1);
        let place = GrantStore::place(&first);
        assert_eq!(store.save(&place, &first, Some("1")).await, Ok(false), "there is none yet");
        assert_eq!(store.save(&place, &first, None).await, Ok(true));
        assert_eq!(store.save(&place, &first, Some("1")).await, Ok(true));
        let second = StoredGrant { login: "2".into(), ..first.clone() };
        assert_eq!(store.save(&place, &second, None).await, Ok(true));
        assert_eq!(store.save(&place, &first, Some("1")).await, Ok(false));
        let loaded = store.load().await;
        assert_eq!((loaded.len(), &*loaded[0].1.login, &loaded[0].0), (1, "2", &place));
        store.remove(&place).await.unwrap();
        assert!(store.load().await.is_empty());
    }
}
