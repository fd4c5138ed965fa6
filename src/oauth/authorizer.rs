//! Gives each server the token of its grant, and renews the tokens.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;

use super::access_tokens::{AccessTokens, LoginCommand};
use super::auth_status::{AuthState, AuthStates};
use super::client_registration::LoginClient;
use super::error::OAuthError;
use super::grant::StoredGrant;
use super::grant_entry::GrantEntry;
use super::grant_place::GrantPlace;
use super::grant_store::GrantStore;
use super::login::LoginRequest;
use super::logins::{BegunLogin, Logins};
use super::renewal::{refresh, request_client_token};
use super::server_authorization::{ServerAuthorization, declared_http_endpoint};
use crate::net::jitter;
use crate::resource::{DeclaredObject, Desired, Endpoint, McpServerSpec, OAuthGrant, ObjectKey, Transport};
use crate::wire::{IssuedToken, TokenState};

/// The time after which the token of a refused client is requested again.
const CLIENT_RETRY_INTERVAL: Duration = Duration::from_mins(5);

type DeclaredServers = OrdMap<ObjectKey, Arc<DeclaredObject<McpServerSpec>>>;
type Renewed = Result<StoredGrant, OAuthError>;

/// The parts of the process that the authorizer uses.
pub struct AuthorizerContext {
    /// Where grants are kept; `None` for servers in a cluster, to which nobody can log in yet.
    pub store: Option<GrantStore>,
    /// The namespace that commands need not name.
    pub home_namespace: Option<Arc<str>>,
    /// The client of logins.
    pub client: LoginClient,
}

/// Holds the grants of all servers.
pub struct Authorizer {
    context: AuthorizerContext,
    tokens: AccessTokens,
    servers: HashMap<ObjectKey, ServerAuthorization>,
    grants: BTreeMap<GrantPlace, GrantEntry>,
    renewals: JoinMap<GrantPlace, Renewed>,
    commands: mpsc::Receiver<Command>,
    states: watch::Sender<AuthStates>,
    last_number: u64,
}

/// Begins and ends logins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AuthorizerHandle {
    tokens: AccessTokens,
    logins: Logins,
    client: LoginClient,
    desired: watch::Receiver<Arc<Desired>>,
    states: watch::Receiver<AuthStates>,
    commands: mpsc::Sender<Command>,
}

/// A request to the authorizer.
#[derive(Debug)]
enum Command {
    /// Keep the grant of a new login.
    Keep(Box<StoredGrant>, oneshot::Sender<Result<(), String>>),
    /// Forget the grant of a server. Answers whether there was one.
    Forget(ObjectKey, oneshot::Sender<bool>),
}

impl Authorizer {
    /// Creates the authorizer for the servers in `desired`, and the handle for logins.
    pub fn new(
        context: AuthorizerContext,
        desired: watch::Receiver<Arc<Desired>>,
    ) -> (Self, AuthorizerHandle) {
        let home_namespace = context.home_namespace.clone();
        let command = context.store.is_some().then_some(LoginCommand { home_namespace });
        let tokens = AccessTokens::new(command);
        let (sender, commands) = mpsc::channel(16);
        let states = watch::Sender::default();
        let handle = AuthorizerHandle {
            tokens: tokens.clone(),
            logins: Logins::default(),
            client: context.client.clone(),
            desired,
            states: states.subscribe(),
            commands: sender,
        };
        let this = Self {
            context,
            tokens,
            servers: HashMap::new(),
            grants: BTreeMap::new(),
            renewals: JoinMap::new(),
            commands,
            states,
            last_number: 0,
        };
        (this, handle)
    }

    /// Follows the declarations and renews tokens until `stop` is cancelled. A renewal that is running then is completed: its
    /// tokens would be lost.
    pub async fn run(mut self, mut desired: watch::Receiver<Arc<Desired>>, stop: CancellationToken) {
        if let Some(store) = &self.context.store {
            for (place, grant) in store.load().await {
                self.set_grant(place, grant);
            }
        }
        let mut declared = DeclaredServers::new();
        loop {
            let snapshot = desired.borrow_and_update().clone();
            if snapshot.source.synced {
                let before = std::mem::replace(&mut declared, snapshot.servers.clone());
                for change in before.diff(&declared) {
                    self.on_declared(&change);
                }
            }
            loop {
                self.start_due_renewals();
                self.publish_states();
                let next_renewal = self.grants.values().filter_map(|entry| entry.renew_at).min();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {
                        while self.renewals.join_next().await.is_some() {}
                        return;
                    }
                    changed = desired.changed() => {
                        if changed.is_err() {
                            stop.cancelled().await;
                        }
                        break;
                    }
                    Some(command) = self.commands.recv() => self.on_command(command).await,
                    Some((place, renewed)) = self.renewals.join_next() => self.on_renewed(&place, renewed),
                    () = self.tokens.wait_for_rejection() => self.renew_rejected_tokens(),
                    () = sleep_until(next_renewal.unwrap_or_else(Instant::now)), if next_renewal.is_some() => {}
                }
            }
        }
    }

    fn on_declared(&mut self, change: &DiffItem<'_, '_, ObjectKey, Arc<DeclaredObject<McpServerSpec>>>) {
        let (key, declared) = match change {
            DiffItem::Add(key, declared) | DiffItem::Update { new: (key, declared), .. } => {
                (*key, Some(*declared))
            }
            DiffItem::Remove(key, _) => (*key, None),
        };
        let Some(declared) = declared else {
            self.servers.remove(key);
            self.grants.remove(&GrantPlace::Memory(key.clone()));
            self.tokens.retain(|key| self.servers.contains_key(key));
            return;
        };
        // A declaration that cannot be resolved now keeps the state of the one before.
        let Some(endpoint) = declared_http_endpoint(declared) else { return };
        let is_same = |server: &ServerAuthorization| server.endpoint.digest() == endpoint.digest();
        let is_same_connection = self.servers.get(key).is_some_and(is_same);
        let token = self.tokens.get_or_create(key);
        let server = ServerAuthorization { token, endpoint: endpoint.clone(), place: None };
        if server.needs_no_login() && !is_same_connection {
            self.grants.insert(GrantPlace::Memory(key.clone()), GrantEntry::due());
        }
        self.servers.insert(key.clone(), server);
        self.assign(key);
    }

    fn set_grant(&mut self, place: GrantPlace, grant: StoredGrant) {
        self.last_number += 1;
        self.grants.entry(place).or_default().set(grant, self.last_number);
    }

    /// Gives a server the token of the grant that it may use.
    fn assign(&mut self, key: &ObjectKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(url) = server.url().cloned() else { return };
        let settings = server.settings();
        let is_for = |(place, entry): &(&GrantPlace, &GrantEntry)| match place {
            GrantPlace::Memory(server) => server == key,
            GrantPlace::File(_) => {
                !server.needs_no_login()
                    && entry.grant.as_ref().is_some_and(|grant| grant.is_for(&url, &settings))
            }
        };
        // Of several issuers or clients, the newest login.
        let found = self.grants.iter().filter(is_for).max_by_key(|(_, entry)| entry.number);
        // A login does not help a client that needs none.
        let command = self.tokens.login_command(key).filter(|_| !server.needs_no_login());
        let state = match found {
            Some((_, entry)) => {
                let token =
                    entry.grant.as_ref().filter(|_| !entry.is_refused()).and_then(StoredGrant::access_token);
                let token = token.and_then(|token| IssuedToken::new(token, entry.number));
                let problem = entry.problem.as_ref().map(|problem| problem.to_problem(command.as_deref()));
                // The token of a client is being obtained.
                let is_known = token.is_some() || problem.is_some();
                TokenState { url: is_known.then(|| url.clone()), token, problem }
            }
            None => TokenState { url: Some(url), token: None, problem: None },
        };
        server.place = found.map(|(place, _)| place.clone());
        server.token.set(state);
    }

    /// Assigns the token anew to each server that uses the grant, or may use it now.
    fn assign_all(&mut self) {
        let keys: Vec<_> = self.servers.keys().cloned().collect();
        for key in keys {
            self.assign(&key);
        }
    }

    /// Starts the renewals that are due, each in a task of its own.
    fn start_due_renewals(&mut self) {
        let now = Instant::now();
        let is_due = |(_, entry): &(&GrantPlace, &mut GrantEntry)| entry.renew_at.is_some_and(|at| at <= now);
        let mut due = Vec::new();
        for (place, entry) in self.grants.iter_mut().filter(is_due) {
            entry.renew_at = None;
            due.push((place.clone(), entry.grant.clone()));
        }
        for (place, grant) in due {
            if self.renewals.contains_key(&place) {
                continue;
            }
            let user = self.servers.values().find(|server| server.place.as_ref() == Some(&place));
            if let GrantPlace::Memory(key) = &place {
                let Some(server) = self.servers.get(key) else { continue };
                let (Some(url), settings, ca) = (server.url().cloned(), server.settings(), server.ca())
                else {
                    continue;
                };
                let challenge = server.token.challenge();
                self.renewals.spawn(place, async move {
                    request_client_token(url, &settings, ca, challenge.as_deref()).await
                });
                continue;
            }
            let (Some(grant), Some(user), Some(store)) = (grant, user, self.context.store.clone()) else {
                continue;
            };
            let (ca, issuer) = (user.ca(), user.settings().issuer);
            let stored_place = place.clone();
            self.renewals.spawn(place, async move {
                renew_stored(&store, &stored_place, grant, ca, issuer.as_deref()).await
            });
        }
    }

    fn on_renewed(&mut self, place: &GrantPlace, renewed: Result<Renewed, JoinError>) {
        let renewed = match renewed {
            Ok(renewed) => renewed,
            // A login or logout has replaced or removed the grant.
            Err(error) if error.is_cancelled() => return,
            Err(_) => Err(OAuthError::Failed("an internal error of evenkeel; please report it".into())),
        };
        self.last_number += 1;
        let number = self.last_number;
        let Some(entry) = self.grants.get_mut(place) else { return };
        match renewed {
            Ok(grant) if matches!(place, GrantPlace::Memory(_)) => entry.set_client_token(grant, number),
            // Another login has replaced the grant meanwhile.
            Ok(grant) if entry.grant.as_ref().is_some_and(|current| current.login != grant.login) => return,
            Ok(grant) => entry.set(grant, number),
            Err(error) => {
                tracing::warn!(grant = %place, %error, "a token could not be renewed");
                entry.record_failure(error, jitter());
                if matches!(place, GrantPlace::Memory(_)) {
                    // The authorization server may accept the client later, without a change here.
                    entry.renew_at.get_or_insert_with(|| Instant::now() + CLIENT_RETRY_INTERVAL);
                }
            }
        }
        self.assign_all();
    }

    /// Renews the tokens that servers have rejected. Each is renewed once: its successor has another number.
    fn renew_rejected_tokens(&mut self) {
        let now = Instant::now();
        let mut given_up = false;
        for server in self.servers.values() {
            let Some(place) = &server.place else { continue };
            let Some(entry) = self.grants.get_mut(place) else { continue };
            let is_running = self.renewals.contains_key(place);
            if !server.token.is_rejected(entry.number) || is_running || entry.problem.is_some() {
                continue;
            }
            let is_memory = matches!(place, GrantPlace::Memory(_));
            let is_renewable = is_memory || entry.grant.as_ref().is_some_and(StoredGrant::is_renewable);
            if is_renewable && !entry.is_fresh() {
                entry.renew_at = Some(now);
                continue;
            }
            entry.problem = Some(if is_renewable {
                // Another one would be rejected too. The next renewal is in its time.
                OAuthError::Failed("the server rejected a token that was just obtained".into())
            } else {
                let message = "the server rejected the token, and there is none with which to renew it";
                OAuthError::Refused(message.into())
            });
            given_up = true;
        }
        if given_up {
            self.assign_all();
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Keep(grant, answer) => {
                let place = GrantStore::place(&grant);
                let saved = match &self.context.store {
                    Some(store) => store.save(&place, &grant, None).await,
                    None => Err("nobody can log in to servers in a cluster yet".into()),
                };
                if saved.is_ok() {
                    let is_replaced = |other: &StoredGrant| other.is_replaced_by(&grant);
                    self.forget(|other_place, other| *other_place != place && is_replaced(other)).await;
                    self.renewals.abort(&place);
                    self.set_grant(place, *grant);
                    self.assign_all();
                    self.publish_states();
                }
                // The login may have been given up.
                let _ = answer.send(saved.map(drop));
            }
            Command::Forget(key, answer) => {
                let server = self.servers.get(&key);
                let server = server.and_then(|server| Some((server.url()?.clone(), server.settings())));
                let forgotten = match server {
                    Some((url, settings)) => self.forget(|_, grant| grant.is_for(&url, &settings)).await,
                    None => false,
                };
                self.assign_all();
                self.publish_states();
                let _ = answer.send(forgotten);
            }
        }
    }

    /// Removes the stored grants for which `is_forgotten` is true. Returns true if there was one.
    async fn forget(&mut self, is_forgotten: impl Fn(&GrantPlace, &StoredGrant) -> bool) -> bool {
        let Some(store) = &self.context.store else { return false };
        let is_forgotten = |(place, entry): &(&GrantPlace, &GrantEntry)| {
            matches!(place, GrantPlace::File(_))
                && entry.grant.as_ref().is_some_and(|grant| is_forgotten(place, grant))
        };
        let forgotten: Vec<_> =
            self.grants.iter().filter(is_forgotten).map(|(place, _)| place.clone()).collect();
        for place in &forgotten {
            self.renewals.abort(place);
            self.grants.remove(place);
            if let Err(error) = store.remove(place).await {
                tracing::warn!(grant = %place, error, "a grant cannot be removed");
            }
        }
        !forgotten.is_empty()
    }

    /// Publishes the states of servers, if they have changed.
    fn publish_states(&self) {
        let state = |(key, server): (&ObjectKey, &ServerAuthorization)| {
            let entry = self.grants.get(server.place.as_ref()?)?;
            let grant = entry.grant.as_ref()?;
            let command = self.tokens.login_command(key).filter(|_| !server.needs_no_login());
            let state = AuthState {
                issuer: grant.issuer().to_owned(),
                scopes: grant.scopes().to_vec(),
                expires: grant.expires_at(),
                login: grant.login.clone(),
                problem: entry.problem.as_ref().map(|problem| problem.to_problem(command.as_deref())),
            };
            Some((key.clone(), state))
        };
        let states: AuthStates = self.servers.iter().filter_map(state).collect();
        self.states.send_if_modified(|current| {
            let changed = *current != states;
            if changed {
                *current = states;
            }
            changed
        });
    }
}

/// Renews a stored grant. It is marked as being renewed before the request, so that a lost answer is noticed at the next
/// start.
async fn renew_stored(
    store: &GrantStore,
    place: &GrantPlace,
    grant: StoredGrant,
    ca: Option<SecretString>,
    issuer: Option<&str>,
) -> Renewed {
    let login = grant.login.clone();
    let cannot_store = |error: String| OAuthError::Failed(format!("the token cannot be stored: {error}"));
    let marked = StoredGrant { is_renewing: true, ..grant.clone() };
    let is_current = store.save(place, &marked, Some(&login)).await.map_err(cannot_store)?;
    if !is_current {
        return Err(OAuthError::Failed("another login has replaced the token".into()));
    }
    let renewed = refresh(grant.clone(), ca, issuer).await;
    let stored = match &renewed {
        Ok(renewed) => renewed.clone(),
        Err(OAuthError::Refused(why)) => {
            StoredGrant { refused: Some(why.clone()), is_renewing: false, ..grant }
        }
        // The authorization server has not answered: the old token may still be valid.
        Err(_) => grant,
    };
    if let Err(error) = store.save(place, &stored, Some(&login)).await {
        // The new tokens are used until the process ends.
        tracing::error!(grant = %place, error, "a renewed token cannot be stored; log in again after a restart");
    }
    renewed
}

impl AuthorizerHandle {
    /// Returns the tokens of all servers.
    pub fn tokens(&self) -> AccessTokens {
        self.tokens.clone()
    }

    /// Returns the receiver of the states of servers.
    pub fn states(&self) -> watch::Receiver<AuthStates> {
        self.states.clone()
    }

    /// Returns the logins that wait for a person.
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// Begins a login to a declared server.
    ///
    /// # Errors
    ///
    /// Fails if the server is not declared or not reached over HTTP, and as [`Logins::begin`].
    pub async fn begin_login(&self, server: &ObjectKey) -> Result<BegunLogin, OAuthError> {
        let endpoint = self.http_endpoint(server)?;
        let Transport::Http(http) = &endpoint.transport else {
            let message = format!("{server} is not reached over HTTP, so it has no login");
            return Err(OAuthError::InvalidSpec(message));
        };
        let settings = http.oauth.as_deref().cloned().unwrap_or_default();
        if settings.grant == OAuthGrant::ClientCredentials {
            let message = format!("{server} needs no login: spec.http.auth.oauth.grant is ClientCredentials");
            return Err(OAuthError::InvalidSpec(message));
        }
        let state = self.states.borrow().get(server).cloned();
        let request = LoginRequest {
            server_url: http.url.clone(),
            settings,
            ca: http.ca.clone(),
            challenge: self.tokens.get_or_create(server).challenge(),
            previous_scopes: state.map(|state| state.scopes).unwrap_or_default(),
            client: self.client.clone(),
        };
        self.logins.begin(request).await
    }

    fn http_endpoint(&self, server: &ObjectKey) -> Result<Arc<Endpoint>, OAuthError> {
        let desired = self.desired.borrow();
        let declared = desired
            .servers
            .get(server)
            .ok_or_else(|| OAuthError::InvalidSpec(format!("there is no server {server}")))?;
        match &declared.endpoint {
            Some(Ok(endpoint)) => Ok(endpoint.clone()),
            Some(Err(problem)) => Err(OAuthError::InvalidSpec(problem.message.clone())),
            None => Err(OAuthError::InvalidSpec(format!("the declaration of {server} is not valid"))),
        }
    }

    /// Keeps the grant of a login. The server gets its token at once.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be stored.
    pub async fn keep(&self, grant: StoredGrant) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Keep(Box::new(grant), answer);
        self.commands.send(command).await.map_err(|_| "evenkeel is shutting down".to_owned())?;
        answered.await.unwrap_or_else(|_| Err("evenkeel is shutting down".into()))
    }

    /// Forgets the grant of a server. Returns false if there was none.
    pub async fn logout(&self, server: &ObjectKey) -> bool {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Forget(server.clone(), answer)).await;
        sent.is_ok() && answered.await.unwrap_or_default()
    }
}
