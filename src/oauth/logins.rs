use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::callback::CallbackOutcome;
use super::error::OAuthError;
use super::grant::StoredGrant;
use super::login::{LoginRequest, PendingLogin};

/// The maximum number of logins that wait for a person.
const MAX_LOGINS: usize = 64;
/// The time that a person has for a login.
const MAX_AGE: Duration = Duration::from_hours(1);

/// The logins that wait for a person. Cheap to clone.
///
/// A login is found only by its random state, ends with the first answer, and is given up with the receiver of its outcome.
#[derive(Clone, Default)]
pub struct Logins(Arc<Mutex<HashMap<String, WaitingLogin>>>);

struct WaitingLogin {
    login: Arc<PendingLogin>,
    outcome: oneshot::Sender<Result<StoredGrant, OAuthError>>,
    began_at: Instant,
}

/// A login that has begun.
pub struct BegunLogin {
    /// The id for [`Logins::finish`].
    pub id: String,
    /// The URL that the person opens.
    pub authorization_url: String,
    /// The issuer of the authorization server.
    pub issuer: String,
    /// Receives the grant.
    pub outcome: oneshot::Receiver<Result<StoredGrant, OAuthError>>,
}

impl Logins {
    /// Begins a login.
    ///
    /// # Errors
    ///
    /// Those of the discovery of the authorization server, and too many logins that wait.
    pub async fn begin(&self, request: LoginRequest) -> Result<BegunLogin, OAuthError> {
        let login = PendingLogin::begin(request).await?;
        let (sender, outcome) = oneshot::channel();
        let id = login.state().to_owned();
        let begun = BegunLogin {
            id: id.clone(),
            authorization_url: login.authorization_url().to_owned(),
            issuer: login.issuer().to_owned(),
            outcome,
        };
        let waiting = WaitingLogin { login: Arc::new(login), outcome: sender, began_at: Instant::now() };
        let mut logins = self.0.lock();
        logins.retain(|_, login| !login.outcome.is_closed() && login.began_at.elapsed() < MAX_AGE);
        if logins.len() >= MAX_LOGINS {
            return Err(OAuthError::Failed(format!("{MAX_LOGINS} logins are waiting already")));
        }
        logins.insert(id, waiting);
        Ok(begun)
    }

    /// Ends a login with the answer of the authorization server: the URL of its redirect, or the code.
    pub async fn finish(&self, id: &str, answer: &str) -> CallbackOutcome {
        let waiting = self.0.lock().remove(id).filter(|waiting| waiting.began_at.elapsed() < MAX_AGE);
        let Some(waiting) = waiting else { return CallbackOutcome::Unknown };
        let result = waiting.login.finish(answer).await;
        let is_complete = result.is_ok();
        if waiting.outcome.send(result).is_err() {
            return CallbackOutcome::Unknown;
        }
        if is_complete { CallbackOutcome::Complete } else { CallbackOutcome::Failed }
    }
}

impl std::fmt::Debug for Logins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logins")
    }
}
