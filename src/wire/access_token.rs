use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use url::Url;

use crate::resource::Problem;

/// The longest wait of a rejected request for another token.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum number of tokens that are redacted in texts of the server.
const MAX_RECENT_TOKENS: usize = 8;
/// The maximum length of a challenge that is kept.
const MAX_CHALLENGE_BYTES: usize = 8 * 1024;

/// The OAuth access token of one server, shared by all its connections. Cheap to clone. `Debug` does not print it.
///
/// A token is sent only to the URL for which it was set. It may change at any time: each request has the current one.
#[derive(Clone, Default)]
pub struct AccessToken(Option<Arc<Inner>>);

struct Inner {
    login_command: Option<String>,
    /// Notified with every rejection of a token of any server.
    any_rejected: Arc<Notify>,
    state: watch::Sender<TokenState>,
    /// The last tokens, which may occur in texts of the server.
    recent: Mutex<VecDeque<SecretString>>,
    /// The number of the token that a server rejected last.
    rejected: AtomicU64,
    /// The last `WWW-Authenticate` of the server.
    challenge: Mutex<Option<String>>,
}

/// The state of a server's authorization.
#[derive(Clone, Default)]
pub struct TokenState {
    /// The URL to which the token may be sent; `None` until it is known whether there is a token.
    pub url: Option<Url>,
    /// The token, if there is one.
    pub token: Option<IssuedToken>,
    /// The reason why there is no token although there was one, or although none needs a person.
    pub problem: Option<Problem>,
}

/// An access token (RFC 6750).
#[derive(Clone)]
pub struct IssuedToken {
    header: HeaderValue,
    secret: SecretString,
    number: u64,
}

impl IssuedToken {
    /// Creates a token. `number` is higher than that of every earlier token of the server. `None` if it cannot be sent in a
    /// header.
    pub fn new(secret: SecretString, number: u64) -> Option<Self> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret())).ok()?;
        header.set_sensitive(true);
        Some(Self { header, secret, number })
    }

    /// Returns the value of the header `Authorization`.
    pub(super) fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Returns the number, which tells the token from others of the server.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl AccessToken {
    /// Creates the token of a server, which nothing is known of yet. `login_command` is the command with which a person
    /// logs in, if anybody can; `any_rejected` is notified when the server rejects a token.
    pub fn new(login_command: Option<String>, any_rejected: Arc<Notify>) -> Self {
        Self(Some(Arc::new(Inner {
            login_command,
            any_rejected,
            state: watch::Sender::default(),
            recent: Mutex::default(),
            rejected: AtomicU64::new(0),
            challenge: Mutex::default(),
        })))
    }

    /// Sets the state. Waiting requests continue.
    pub fn set(&self, state: TokenState) {
        if let Some(inner) = &self.0 {
            if let Some(token) = &state.token {
                let mut recent = inner.recent.lock();
                recent.truncate(MAX_RECENT_TOKENS - 1);
                recent.push_front(token.secret.clone());
            }
            inner.state.send_replace(state);
        }
    }

    /// Returns the receiver of the state; `None` for a server without OAuth.
    pub fn subscribe(&self) -> Option<watch::Receiver<TokenState>> {
        self.0.as_ref().map(|inner| inner.state.subscribe())
    }

    /// Returns true if there are other clones.
    pub fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| Arc::strong_count(inner) > 1)
    }

    /// Returns true if the server rejected this token.
    pub fn is_rejected(&self, number: u64) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.rejected.load(Ordering::Acquire) == number)
    }

    /// Returns the last `WWW-Authenticate` of the server.
    pub fn challenge(&self) -> Option<String> {
        self.0.as_ref()?.challenge.lock().clone()
    }

    /// Returns the command with which a person logs in.
    pub(super) fn login_command(&self) -> Option<&str> {
        self.0.as_ref()?.login_command.as_deref()
    }

    /// Keeps a `WWW-Authenticate` of the server, which a login begins with.
    pub(super) fn record_challenge(&self, challenge: &HeaderValue) {
        let text = challenge.to_str().ok().filter(|text| text.len() <= MAX_CHALLENGE_BYTES);
        if let (Some(inner), Some(text)) = (&self.0, text) {
            *inner.challenge.lock() = Some(text.to_owned());
        }
    }

    /// Returns the token for this URL.
    pub(super) fn for_url(&self, url: &Url) -> Option<IssuedToken> {
        let state = self.0.as_ref()?.state.borrow();
        state.token.clone().filter(|_| state.url.as_ref() == Some(url))
    }

    /// Waits until it is known whether there is a token for this URL. Returns the reason why there is none, if a person
    /// must act.
    pub(super) async fn wait_until_known(&self, url: &Url) -> Option<Problem> {
        let mut states = self.subscribe()?;
        let state = states.wait_for(|state| state.url.as_ref() == Some(url)).await.ok()?;
        state.problem.clone().filter(|_| state.token.is_none())
    }

    /// Reports that the server rejected a token, and waits for another one. Returns `None` if there will be none.
    pub(super) async fn replacement(&self, rejected: &IssuedToken, url: &Url) -> Option<IssuedToken> {
        let inner = self.0.as_ref()?;
        let mut states = inner.state.subscribe();
        inner.rejected.store(rejected.number, Ordering::Release);
        inner.any_rejected.notify_one();
        let is_decided = |state: &TokenState| {
            state.problem.is_some()
                || state.token.as_ref().is_none_or(|token| token.number != rejected.number)
        };
        timeout(RENEWAL_TIMEOUT, states.wait_for(is_decided)).await.ok()?.ok()?;
        self.for_url(url).filter(|token| token.number != rejected.number)
    }

    /// Calls `visit` with each of the last tokens.
    pub(super) fn for_each_recent(&self, visit: impl FnMut(&SecretString)) {
        if let Some(inner) = &self.0 {
            inner.recent.lock().iter().for_each(visit);
        }
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::resource::Reason;

    fn url(path: &str) -> Url {
        Url::parse(&format!("https://example.com/{path}")).unwrap()
    }

    fn state(path: &str, token: u64) -> TokenState {
        let token = IssuedToken::new("secret".into(), token);
        TokenState { url: Some(url(path)), token, problem: None }
    }

    #[test]
    fn token_is_sent_only_to_its_url() {
        let token = AccessToken::new(Some("login".into()), Arc::default());
        assert!(token.for_url(&url("a")).is_none());
        token.set(state("a", 1));
        let header = token.for_url(&url("a")).unwrap().header().clone();
        assert_eq!((header.to_str().unwrap(), header.is_sensitive()), ("Bearer secret", true));
        assert!(token.for_url(&url("b")).is_none());
        assert!(AccessToken::default().for_url(&url("a")).is_none());
        assert!(IssuedToken::new("a\nb".into(), 1).is_none());
    }

    #[tokio::test]
    async fn requests_wait_until_the_token_is_known() {
        let token = AccessToken::new(Some("login".into()), Arc::default());
        token.set(state("old", 1));
        let other = url("new");
        let mut waiting = std::pin::pin!(token.wait_until_known(&other));
        assert!(waiting.as_mut().now_or_never().is_none());
        let problem = Problem::new(Reason::AuthRequired, "the token was revoked");
        token.set(TokenState { url: Some(url("new")), token: None, problem: Some(problem.clone()) });
        assert_eq!(waiting.await, Some(problem));
        assert_eq!(AccessToken::default().wait_until_known(&url("new")).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn rejected_token_is_replaced_or_given_up() {
        let token = AccessToken::new(Some("login".into()), Arc::default());
        token.set(state("a", 1));
        let rejected = token.for_url(&url("a")).unwrap();
        let any_rejected = &token.0.as_ref().unwrap().any_rejected;
        let renewed = async {
            any_rejected.notified().await;
            assert!(token.is_rejected(1) && !token.is_rejected(2));
            token.set(state("a", 2));
        };
        let a = url("a");
        let (replacement, ()) = tokio::join!(token.replacement(&rejected, &a), renewed);
        assert_eq!(replacement.unwrap().number(), 2);
        // A token that was replaced meanwhile needs no renewal.
        assert_eq!(token.replacement(&rejected, &a).await.unwrap().number(), 2);
        let current = token.for_url(&a).unwrap();
        assert!(token.replacement(&current, &a).await.is_none(), "there is none in time");
        let problem = Some(Problem::new(Reason::AuthRequired, "refused"));
        token.set(TokenState { url: Some(url("a")), token: None, problem });
        assert!(token.replacement(&current, &a).now_or_never().unwrap().is_none());
    }
}
