use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::grant::{GRANTS_DIR, StoredGrant};
use super::grant_place::GrantPlace;
use crate::net::api_server::describe_error;
use crate::state_dir::StateDir;

/// The number of writes of a Secret that are tried while others write it too.
const MAX_WRITES: usize = 5;

/// The grants in a state directory. One thread writes at a time.
pub struct GrantFiles {
    state: Arc<StateDir>,
    writing: Mutex<()>,
}

/// Keeps grants: in files of the state directory (mode 0600), or in Secrets.
#[derive(Clone)]
pub enum GrantStore {
    /// The state directory of a directory source.
    Files(Arc<GrantFiles>),
    /// The Secrets that the declarations name.
    Secrets(Client),
}

impl GrantStore {
    /// Keeps grants in files of the state directory.
    pub fn in_files(state: Arc<StateDir>) -> Self {
        Self::Files(Arc::new(GrantFiles { state, writing: Mutex::default() }))
    }

    /// Returns the place of a new grant in the state directory.
    pub(super) fn file_place(grant: &StoredGrant) -> GrantPlace {
        GrantPlace::File(grant.file_name().into())
    }

    /// Loads all grants of the state directory. Those in Secrets come with the declarations.
    pub(super) async fn load(&self) -> Vec<(GrantPlace, StoredGrant)> {
        let Self::Files(files) = self else { return Vec::new() };
        let state = files.state.clone();
        let load = move || {
            let files = state.list(GRANTS_DIR).unwrap_or_default();
            let read = |file: String| {
                let grant = match state.read(&file) {
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
    pub async fn save(
        &self,
        place: &GrantPlace,
        grant: &StoredGrant,
        replaces: Option<&str>,
    ) -> Result<bool, String> {
        match (self, place) {
            (_, GrantPlace::Memory(_)) => Ok(true),
            (Self::Files(files), GrantPlace::File(name)) => {
                let (files, name, json) = (files.clone(), name.clone(), grant.to_json());
                let replaces = replaces.map(ToOwned::to_owned);
                let write = move || files.write(&name, &json, replaces.as_deref());
                spawn_blocking(write).await.map_err(|error| error.to_string())?
            }
            (Self::Secrets(client), GrantPlace::Secret { namespace, name, key }) => {
                let api = Api::namespaced(client.clone(), namespace);
                write_secret(&api, (name, key), grant, replaces).await
            }
            _ => Err(format!("{place} is not where grants are kept")),
        }
    }

    /// Removes a grant.
    pub(super) async fn remove(&self, place: &GrantPlace) -> Result<(), String> {
        let (Self::Files(files), GrantPlace::File(name)) = (self, place) else { return Ok(()) };
        let (files, name) = (files.clone(), name.clone());
        let remove = move || {
            let _writing = files.writing.lock();
            files.state.remove(&name)
        };
        let removed = spawn_blocking(remove).await;
        removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

impl GrantFiles {
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

/// Writes a grant into a Secret, which is created if it does not exist. Other keys are kept.
async fn write_secret(
    api: &Api<Secret>,
    (name, key): (&str, &str),
    grant: &StoredGrant,
    replaces: Option<&str>,
) -> Result<bool, String> {
    let describe = |error: &kube::Error| format!("secret {name:?}: {}", describe_error(error));
    for _ in 0..MAX_WRITES {
        let existing = api.get_opt(name).await.map_err(|error| describe(&error))?;
        let is_new = existing.is_none();
        let mut secret = existing.unwrap_or_else(|| {
            let mut secret = Secret::default();
            secret.metadata.name = Some(name.to_owned());
            secret
        });
        let data = secret.data.get_or_insert_with(BTreeMap::new);
        let stored = data.get(key).and_then(|value| StoredGrant::from_json(&value.0).ok());
        if replaces.is_some_and(|login| stored.is_none_or(|stored| stored.login != login)) {
            return Ok(false);
        }
        data.insert(key.to_owned(), ByteString(grant.to_json()));
        let params = PostParams::default();
        let written = if is_new {
            api.create(&params, &secret).await
        } else {
            // With the resource version that was read, so that a login meanwhile is not overwritten.
            api.replace(name, &params, &secret).await
        };
        match written {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
            Err(error) => return Err(describe(&error)),
        }
    }
    Err(format!("secret {name:?} was changed by others {MAX_WRITES} times"))
}

impl std::fmt::Debug for GrantStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Files(_) => "Files",
            Self::Secrets(_) => "Secrets",
        })
    }
}
