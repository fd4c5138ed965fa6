//! One login: from the discovery of the authorization server to the grant.

use std::sync::Arc;

use parking_lot::Mutex;
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationMetadata, CredentialStore, StoredCredentials,
    WWWAuthenticateParams,
};
use secrecy::SecretString;
use url::Url;

use super::authorization_client::AuthorizationClient;
use super::client_registration::{LoginClient, register};
use super::error::{OAuthError, redacted};
use super::grant::{GrantClient, StoredGrant, same_issuer};
use crate::resource::OAuthSettings;

/// The scope with which some authorization servers give a refresh token (SEP-2207).
const OFFLINE_ACCESS: &str = "offline_access";

/// The server to log in to.
pub struct LoginRequest {
    /// The URL of the server.
    pub server_url: Url,
    /// The settings of the declaration.
    pub settings: OAuthSettings,
    /// The certificates that the declaration trusts for the server.
    pub ca: Option<SecretString>,
    /// The last `WWW-Authenticate` of the server. Without it the server is asked.
    pub challenge: Option<String>,
    /// The scopes of the grant that this login replaces.
    pub previous_scopes: Vec<String>,
    /// The client that logs in.
    pub client: LoginClient,
}

/// A login that waits for a person, who authorizes evenkeel in a browser.
pub struct PendingLogin {
    manager: AuthorizationManager,
    credentials: KeptCredentials,
    server_url: Url,
    authorization_url: String,
    state: String,
    resource: String,
    issuer: String,
    client: GrantClient,
    metadata: AuthorizationMetadata,
}

impl PendingLogin {
    /// Discovers the authorization server, registers the client if necessary, and returns a login with a new PKCE verifier
    /// and state.
    ///
    /// # Errors
    ///
    /// Fails if the server publishes no metadata, or if its authorization server is not the declared one, cannot be
    /// reached, or breaks the protocol.
    pub async fn begin(request: LoginRequest) -> Result<Self, OAuthError> {
        let LoginRequest { server_url, settings, ca, challenge, previous_scopes, client } = request;
        let (mut manager, metadata) = discover(&server_url, &settings, ca, challenge.as_deref()).await?;
        let mut scopes = settings.scopes.clone();
        if scopes.is_empty() {
            scopes = manager.select_initial_scopes(&[]).await;
        }
        let parsed = challenge.map(|challenge| WWWAuthenticateParams::parse(&challenge, &server_url));
        let required =
            parsed.filter(WWWAuthenticateParams::is_insufficient_scope).and_then(|params| params.scope);
        // A step-up keeps what was granted before (SEP-2350).
        let added = required.iter().flat_map(|scopes| scopes.split_whitespace()).map(ToOwned::to_owned);
        let kept = if required.is_some() { previous_scopes } else { Vec::new() };
        for scope in kept.into_iter().chain(added) {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        let offers_refresh = metadata.scopes_supported.iter().flatten().any(|scope| scope == OFFLINE_ACCESS);
        if offers_refresh && !scopes.is_empty() && !scopes.iter().any(|scope| scope == OFFLINE_ACCESS) {
            scopes.push(OFFLINE_ACCESS.into());
        }
        let client = register(&mut manager, &metadata, &settings, &client, &scopes).await?;
        let credentials = KeptCredentials::default();
        manager.set_credential_store(credentials.clone());
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        let authorization_url = manager.get_authorization_url(&scopes).await;
        let authorization_url =
            authorization_url.map_err(|error| OAuthError::from_auth_error(&error, &[]))?;
        let parameter = |name: &str| {
            let url = Url::parse(&authorization_url).ok()?;
            url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        Ok(Self {
            state: parameter("state").unwrap_or_default(),
            resource: parameter("resource").unwrap_or_else(|| server_url.to_string()),
            issuer: issuer_of(&metadata),
            manager,
            credentials,
            server_url,
            authorization_url,
            client,
            metadata,
        })
    }

    /// Returns the URL that the person opens.
    pub fn authorization_url(&self) -> &str {
        &self.authorization_url
    }

    /// Returns the random text that the authorization server repeats in its redirect.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Returns the issuer of the authorization server.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Ends the login with the URL to which the authorization server redirected the browser, or with the bare code.
    ///
    /// # Errors
    ///
    /// Fails if the person or the authorization server refused, and if the redirect is that of another login or issuer.
    pub async fn finish(&self, answer: &str) -> Result<StoredGrant, OAuthError> {
        let answer = answer.trim();
        let RedirectParameters { code, state, issuer, error } = RedirectParameters::parse(answer);
        if state.as_ref().is_some_and(|state| *state != self.state) {
            return Err(OAuthError::Refused("the address belongs to another login".into()));
        }
        if let Some(error) = error {
            let error = redacted(&error, &[&self.state]);
            return Err(OAuthError::Refused(format!("the authorization server refused the login: {error}")));
        }
        let code = code.ok_or_else(|| OAuthError::Refused("the address holds no code".into()))?;
        let exchanged =
            self.manager.exchange_code_for_token_with_issuer(&code, &self.state, issuer.as_deref()).await;
        let secrets: Vec<_> =
            [code.as_str(), &self.state].into_iter().chain(self.client.secret.as_deref()).collect();
        exchanged.map_err(|error| OAuthError::from_auth_error(&error, &secrets))?;
        let credentials = self.credentials.0.lock().take();
        let credentials = credentials.ok_or_else(|| OAuthError::Failed("there is no token".into()))?;
        Ok(StoredGrant {
            login: uuid::Uuid::new_v4().to_string(),
            server_url: self.server_url.clone(),
            resource: self.resource.clone(),
            issuer: self.issuer.clone(),
            client: self.client.clone(),
            metadata: self.metadata.clone(),
            credentials,
            is_renewing: false,
            refused: None,
        })
    }
}

/// Discovers the authorization server of a server. The manager that is returned knows its metadata.
///
/// # Errors
///
/// Fails if its issuer is not the declared one.
pub(super) async fn discover(
    server_url: &Url,
    settings: &OAuthSettings,
    ca: Option<SecretString>,
    challenge: Option<&str>,
) -> Result<(AuthorizationManager, AuthorizationMetadata), OAuthError> {
    let client = AuthorizationClient::connect(server_url, ca, settings.issuer.as_deref()).await?;
    let failed = |error: AuthError| OAuthError::from_auth_error(&error, &[]);
    let mut manager = AuthorizationManager::new_with_oauth_http_client(server_url.as_str(), Arc::new(client))
        .await
        .map_err(failed)?;
    let resolution = manager.resolve_metadata_from_challenge(challenge).await.map_err(failed)?;
    let issuer = issuer_of(&resolution.metadata);
    if let Some(declared) = settings.issuer.as_ref().filter(|declared| !same_issuer(declared, &issuer)) {
        return Err(OAuthError::Refused(format!(
            "the server's authorization server is {}, and spec.http.auth.oauth.issuer permits only {declared}",
            redacted(&issuer, &[])
        )));
    }
    manager.set_metadata(resolution.metadata.clone());
    Ok((manager, resolution.metadata))
}

/// Returns the issuer of an authorization server; the origin of its token endpoint if it names none, as servers of
/// 2025-03-26 do.
pub(super) fn issuer_of(metadata: &AuthorizationMetadata) -> String {
    metadata.issuer.clone().unwrap_or_else(|| {
        let url = Url::parse(&metadata.token_endpoint).ok();
        url.map(|url| url.origin().ascii_serialization()).unwrap_or_default()
    })
}

/// The parameters of the redirect of an authorization server (RFC 6749 §4.1.2, RFC 9207).
#[derive(Debug, Default, PartialEq)]
struct RedirectParameters {
    code: Option<String>,
    state: Option<String>,
    issuer: Option<String>,
    error: Option<String>,
}

impl RedirectParameters {
    /// Reads a URL, a query, or a bare code.
    fn parse(answer: &str) -> Self {
        let query = match answer.split_once('?') {
            Some((_, query)) => query.split('#').next().unwrap_or_default(),
            None if answer.contains("code=") || answer.contains("error=") => answer,
            None if answer.is_empty() || answer.contains(char::is_whitespace) => return Self::default(),
            None => return Self { code: Some(answer.to_owned()), ..Self::default() },
        };
        let mut found = Self::default();
        let mut description = None;
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = Some(value.into_owned());
            match &*key {
                "code" => found.code = value,
                "state" => found.state = value,
                "iss" => found.issuer = value,
                "error" => found.error = value,
                "error_description" => description = value,
                _ => {}
            }
        }
        if let (Some(error), Some(description)) = (&mut found.error, description) {
            *error = format!("{error}: {description}");
        }
        found
    }
}

/// Takes the credentials of one login or renewal.
#[derive(Clone, Default)]
pub(super) struct KeptCredentials(pub(super) Arc<Mutex<Option<StoredCredentials>>>);

#[async_trait::async_trait]
impl CredentialStore for KeptCredentials {
    async fn load(&self) -> Result<Option<StoredCredentials>, AuthError> {
        Ok(self.0.lock().clone())
    }

    async fn save(&self, credentials: StoredCredentials) -> Result<(), AuthError> {
        *self.0.lock() = Some(credentials);
        Ok(())
    }

    async fn clear(&self) -> Result<(), AuthError> {
        *self.0.lock() = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_is_read_from_an_address_a_query_or_a_code() {
        let some = |text: &str| Some(text.to_owned());
        for (answer, code, state, issuer, error) in [
            (
                "http://127.0.0.1:1/oauth/callback?code=a%2Bb&state=s&iss=https%3A%2F%2Fi",
                some("a+b"),
                some("s"),
                some("https://i"),
                None,
            ),
            ("code=a&state=s#x", some("a"), some("s#x"), None, None),
            ("?code=a&state=s#x", some("a"), some("s"), None, None),
            ("Ab1", some("Ab1"), None, None, None),
            (
                "x?error=access_denied&error_description=No+way&state=s",
                None,
                some("s"),
                None,
                some("access_denied: No way"),
            ),
            ("", None, None, None, None),
            ("two words", None, None, None, None),
        ] {
            let expected = RedirectParameters { code, state, issuer, error };
            assert_eq!(RedirectParameters::parse(answer), expected, "{answer}");
        }
    }
}
