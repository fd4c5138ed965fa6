//! How evenkeel becomes known to an authorization server (MCP 2026-07-28, client registration).

use rmcp::transport::auth::{AuthorizationManager, AuthorizationMetadata, OAuthClientConfig};

use super::error::OAuthError;
use super::grant::GrantClient;
use crate::resource::OAuthSettings;
use secrecy::ExposeSecret;

/// The name of a dynamically registered client.
const CLIENT_NAME: &str = "evenkeel";

/// The redirect URI and the client ID metadata document of logins.
#[derive(Clone, Debug)]
pub struct LoginClient {
    /// The URI to which the authorization server redirects the browser.
    pub redirect_uri: String,
    /// The HTTPS URL of a client ID metadata document, if there is one (`--oauth-client-metadata`).
    pub metadata_url: Option<String>,
}

/// Determines the client: the declared one, else the client ID metadata document if the authorization server supports it,
/// else a new dynamic registration. `manager` is configured for it.
///
/// # Errors
///
/// Fails if the authorization server supports none of these.
pub(super) async fn register(
    manager: &mut AuthorizationManager,
    metadata: &AuthorizationMetadata,
    settings: &OAuthSettings,
    client: &LoginClient,
    scopes: &[String],
) -> Result<GrantClient, OAuthError> {
    let supports_document = metadata.additional_fields.get("client_id_metadata_document_supported")
        == Some(&serde_json::Value::Bool(true));
    let known = match (&settings.client_id, &client.metadata_url) {
        (Some(id), _) => Some((id.clone(), settings.client_secret.as_ref())),
        (None, Some(url)) if supports_document => Some((url.clone(), None)),
        _ => None,
    };
    let redirect_uri = client.redirect_uri.clone();
    if let Some((id, secret)) = known {
        let secret = secret.map(|secret| secret.expose_secret().to_owned());
        let is_declared = settings.client_id.is_some();
        let client = GrantClient { id, secret, redirect_uri, is_declared };
        configure(manager, &client, scopes)?;
        return Ok(client);
    }
    if metadata.registration_endpoint.is_none() {
        return Err(OAuthError::InvalidSpec(format!(
            "the authorization server registers no clients by itself; register one there with the redirect URI \
             {redirect_uri}, and set spec.http.auth.oauth.clientId"
        )));
    }
    let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
    let registered = manager.register_client(CLIENT_NAME, &redirect_uri, &scopes).await;
    let config = registered.map_err(|error| OAuthError::from_auth_error(&error, &[]))?;
    Ok(GrantClient { id: config.client_id, secret: config.client_secret, redirect_uri, is_declared: false })
}

/// Configures the manager for a client that is registered already.
pub(super) fn configure(
    manager: &mut AuthorizationManager,
    client: &GrantClient,
    scopes: &[String],
) -> Result<(), OAuthError> {
    let config = OAuthClientConfig::new(&client.id, &client.redirect_uri).with_scopes(scopes.to_vec());
    let config = match &client.secret {
        Some(secret) => config.with_client_secret(secret),
        None => config,
    };
    manager.configure_client(config).map_err(|error| OAuthError::from_auth_error(&error, &[]))
}
