use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use super::grant_place::GrantPlace;
use crate::resource::{
    DeclaredObject, Endpoint, HttpEndpoint, McpServerSpec, OAuthGrant, OAuthSettings, Transport,
};
use crate::wire::AccessToken;

/// What the authorization of a server depends on.
pub(super) struct ServerAuthorization {
    pub(super) token: AccessToken,
    pub(super) endpoint: Arc<Endpoint>,
    /// The place of the grant that the server uses.
    pub(super) place: Option<GrantPlace>,
}

impl ServerAuthorization {
    /// Returns the HTTP endpoint.
    pub(super) fn http(&self) -> Option<&HttpEndpoint> {
        http_endpoint(&self.endpoint)
    }

    pub(super) fn url(&self) -> Option<&Url> {
        self.http().map(|http| &http.url)
    }

    pub(super) fn settings(&self) -> OAuthSettings {
        self.http().and_then(|http| http.oauth.as_deref()).cloned().unwrap_or_default()
    }

    pub(super) fn ca(&self) -> Option<SecretString> {
        self.http().and_then(|http| http.ca.clone())
    }

    /// Returns true if the token is obtained without a login.
    pub(super) fn needs_no_login(&self) -> bool {
        self.settings().grant == OAuthGrant::ClientCredentials
    }
}

/// Returns the endpoint of a declared server that can have a token: it is reached over HTTP and resolved.
pub(super) fn declared_http_endpoint(declared: &DeclaredObject<McpServerSpec>) -> Option<&Arc<Endpoint>> {
    let endpoint = declared.endpoint.as_ref()?.as_ref().ok()?;
    http_endpoint(endpoint).map(|_| endpoint)
}

fn http_endpoint(endpoint: &Endpoint) -> Option<&HttpEndpoint> {
    match &endpoint.transport {
        Transport::Stdio(_) => None,
        Transport::Http(http) => Some(http),
    }
}
