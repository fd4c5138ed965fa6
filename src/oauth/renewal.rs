//! Obtains the next token of a grant.

use std::sync::Arc;

use rmcp::transport::auth::{AuthorizationManager, ClientCredentialsConfig};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::authorization_client::AuthorizationClient;
use super::client_registration::configure;
use super::error::OAuthError;
use super::grant::{GrantClient, StoredGrant};
use super::login::{KeptCredentials, discover, issuer_of};
use crate::resource::OAuthSettings;

/// Renews a grant with its refresh token (RFC 6749 §6). Returns the grant with the new tokens.
///
/// # Errors
///
/// [`OAuthError::Refused`] if the authorization server refuses: only a person can log in again.
pub(super) async fn refresh(
    grant: StoredGrant,
    ca: Option<SecretString>,
    declared_issuer: Option<&str>,
) -> Result<StoredGrant, OAuthError> {
    let client = AuthorizationClient::connect(&grant.server_url, ca, declared_issuer).await?;
    let secrets = grant.secrets();
    let failed = |error| OAuthError::from_auth_error(&error, &secrets);
    // The manager uses its base URL as the resource indicator.
    let mut manager =
        AuthorizationManager::new_with_oauth_http_client(grant.resource.as_str(), Arc::new(client))
            .await
            .map_err(failed)?;
    manager.set_metadata(grant.metadata.clone());
    configure(&mut manager, &grant.client, &[])?;
    let credentials = KeptCredentials::default();
    *credentials.0.lock() = Some(grant.credentials.clone());
    manager.set_credential_store(credentials.clone());
    manager.refresh_token().await.map_err(failed)?;
    let renewed = credentials.0.lock().take();
    let credentials = renewed.ok_or_else(|| OAuthError::Failed("there is no token".into()))?;
    Ok(StoredGrant { credentials, is_renewing: false, refused: None, ..grant })
}

/// Obtains a token for a client that needs no login (client credentials, SEP-1046).
///
/// # Errors
///
/// [`OAuthError::Refused`] if the authorization server refuses the client.
pub(super) async fn request_client_token(
    server_url: Url,
    settings: &OAuthSettings,
    ca: Option<SecretString>,
    challenge: Option<&str>,
) -> Result<StoredGrant, OAuthError> {
    let (mut manager, metadata) = discover(&server_url, settings, ca, challenge).await?;
    let (Some(id), Some(secret)) = (&settings.client_id, &settings.client_secret) else {
        let message = "spec.http.auth.oauth: grant: ClientCredentials requires clientId and clientSecretRef";
        return Err(OAuthError::InvalidSpec(message.into()));
    };
    let scopes = if settings.scopes.is_empty() {
        manager
            .select_initial_scopes(&[])
            .await
            .into_iter()
            .filter(|scope| scope != "offline_access")
            .collect()
    } else {
        settings.scopes.clone()
    };
    let failed = |error| OAuthError::from_auth_error(&error, &[secret.expose_secret()]);
    let resource = server_url.to_string();
    let config = ClientCredentialsConfig::ClientSecret {
        client_id: id.clone(),
        client_secret: secret.expose_secret().to_owned(),
        scopes,
        resource: Some(resource.clone()),
    };
    let credentials = KeptCredentials::default();
    manager.set_credential_store(credentials.clone());
    manager.validate_client_credentials_metadata(&config).map_err(failed)?;
    manager.configure_client_credentials(&config).map_err(failed)?;
    manager.exchange_client_credentials(&config).await.map_err(failed)?;
    let obtained = credentials.0.lock().take();
    let credentials = obtained.ok_or_else(|| OAuthError::Failed("there is no token".into()))?;
    Ok(StoredGrant {
        login: id.clone(),
        server_url,
        resource,
        issuer: issuer_of(&metadata),
        client: GrantClient { id: id.clone(), secret: None, redirect_uri: String::new(), is_declared: true },
        metadata,
        credentials,
        is_renewing: false,
        refused: None,
    })
}
