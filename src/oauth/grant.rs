use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use oauth2::TokenResponse;
use rmcp::transport::auth::{AuthorizationMetadata, StoredCredentials};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use super::renewal_time::age;
use crate::resource::{Digest, OAuthSettings};

/// The folder of grants in the state directory.
pub(super) const GRANTS_DIR: &str = "oauth";

/// A grant: the tokens of a server, and what they were obtained with. `Debug` prints no secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredGrant {
    /// Tells the login from others. A renewal keeps it.
    pub(super) login: String,
    /// The URL of the server. The token is sent only there.
    pub(super) server_url: Url,
    /// The resource indicator (RFC 8707).
    pub(super) resource: String,
    /// The issuer of the authorization server.
    pub(super) issuer: String,
    pub(super) client: GrantClient,
    /// The metadata of the authorization server (RFC 8414) at the login. A renewal goes to the same endpoint.
    pub(super) metadata: AuthorizationMetadata,
    /// The tokens.
    pub(super) credentials: StoredCredentials,
    /// True while the token is being renewed. If it is true at a start, the new tokens may have been lost.
    #[serde(default)]
    pub(super) is_renewing: bool,
    /// The reason why the authorization server refused to renew the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
}

/// The OAuth client of a grant.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GrantClient {
    pub(super) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<String>,
    pub(super) redirect_uri: String,
    /// True if the declaration has the id.
    pub(super) is_declared: bool,
}

impl StoredGrant {
    /// Reads a grant that was stored.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the text, without quoting it.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| {
            // The message of the error could quote a token.
            format!(
                "it is not a grant that evenkeel stored (line {}, column {})",
                error.line(),
                error.column()
            )
        })
    }

    /// Returns the text to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns the issuer of the authorization server.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the granted scopes.
    pub fn scopes(&self) -> &[String] {
        &self.credentials.granted_scopes
    }

    /// Returns the name of the file for the grant, which depends on the issuer, the client and the server's URL.
    pub(super) fn file_name(&self) -> String {
        let parts = [self.issuer.as_str(), &self.client.id, self.server_url.as_str()];
        let digest = Digest::of_parts(parts.into_iter().flat_map(|part| [part.as_bytes(), b"\n"]));
        format!("{GRANTS_DIR}/{}.json", digest.hex_prefix(32))
    }

    /// Returns true if a server with this URL and these settings may use the grant.
    pub(super) fn is_for(&self, url: &Url, settings: &OAuthSettings) -> bool {
        let same_client = match &settings.client_id {
            Some(id) => self.client.is_declared && *id == self.client.id,
            None => !self.client.is_declared,
        };
        let same_issuer = settings.issuer.as_ref().is_none_or(|issuer| same_issuer(issuer, &self.issuer));
        self.server_url == *url && same_client && same_issuer
    }

    /// Returns true if a new login makes this one useless: it is for the same server, issuer and kind of client.
    pub(super) fn is_replaced_by(&self, new: &Self) -> bool {
        let key = |grant: &Self| (grant.server_url.clone(), grant.issuer.clone(), grant.client.is_declared);
        key(self) == key(new) && (!self.client.is_declared || self.client.id == new.client.id)
    }

    /// Returns the access token.
    pub(super) fn access_token(&self) -> Option<SecretString> {
        let response = self.credentials.token_response.as_ref()?;
        Some(response.access_token().secret().as_str().into())
    }

    /// Returns true if there is a token with which to renew the access token.
    pub(super) fn is_renewable(&self) -> bool {
        let response = self.credentials.token_response.as_ref();
        response.is_some_and(|response| response.refresh_token().is_some())
    }

    /// Returns the lifetime of the access token.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        self.credentials.token_response.as_ref()?.expires_in()
    }

    /// Returns how long ago the access token was received.
    pub(super) fn age(&self, now: Timestamp) -> Duration {
        let now = u64::try_from(now.as_second()).unwrap_or_default();
        age(self.credentials.token_received_at.unwrap_or(now), now)
    }

    /// Returns when the access token expires.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let received_at = i64::try_from(self.credentials.token_received_at?).ok()?;
        let lifetime = i64::try_from(self.lifetime()?.as_secs()).ok()?;
        Timestamp::from_second(received_at.saturating_add(lifetime)).ok()
    }

    /// Returns the secrets of the grant, which may not appear in a text.
    pub(super) fn secrets(&self) -> Vec<&str> {
        let response = self.credentials.token_response.as_ref();
        let access_token = response.map(|response| response.access_token().secret().as_str());
        let refresh_token = response.and_then(|response| response.refresh_token());
        let refresh_token = refresh_token.map(|token| token.secret().as_str());
        [access_token, refresh_token, self.client.secret.as_deref()].into_iter().flatten().collect()
    }
}

/// True if two texts name the same issuer. A slash at the end of an origin makes no difference.
pub(super) fn same_issuer(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

impl fmt::Debug for StoredGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredGrant")
            .field("server_url", &self.server_url.host_str())
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// Returns a grant of a client for a server, whose tokens were received at this second.
    pub(in crate::oauth) fn grant(url: &str, declared_client: Option<&str>, received_at: u64) -> StoredGrant {
        let value = json!({
            "login": "1", "serverUrl": url, "resource": url, "issuer": "https://issuer.example.com",
            "client": {
                "id": declared_client.unwrap_or("registered"), "secret": "client-hunter2",
                "redirectUri": "http://127.0.0.1:7718/oauth/callback", "isDeclared": declared_client.is_some(),
            },
            "metadata": { "authorization_endpoint": "https://issuer.example.com/a", "token_endpoint": "https://issuer.example.com/t" },
            "credentials": {
                "client_id": "registered", "granted_scopes": ["read"], "token_received_at": received_at,
                "token_response": {
                    "access_token": "access-hunter2", "token_type": "bearer", "expires_in": 3600,
                    "refresh_token": "refresh-hunter2",
                },
            },
        });
        StoredGrant::from_json(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn grant_is_used_only_for_its_url_client_and_issuer() {
        let url = "https://mcp.example.com/mcp";
        let settings = |client: Option<&str>, issuer: Option<&str>| OAuthSettings {
            client_id: client.map(Into::into),
            issuer: issuer.map(Into::into),
            ..OAuthSettings::default()
        };
        let issuer = "https://issuer.example.com/";
        for (client, server, declared, declared_issuer, expected) in [
            (None, url, None, None, true),
            (None, "https://MCP.example.com:443/mcp", None, Some(issuer), true),
            (None, "https://mcp.example.com/other", None, None, false),
            (None, "https://evil.example.com/mcp", None, None, false),
            (None, "http://mcp.example.com/mcp", None, None, false),
            (None, url, Some("registered"), None, false),
            (Some("x"), url, Some("x"), None, true),
            (Some("x"), url, Some("y"), None, false),
            (Some("x"), url, None, None, false),
            (None, url, None, Some("https://other.example.com"), false),
        ] {
            let found = grant(url, client, 0)
                .is_for(&Url::parse(server).unwrap(), &settings(declared, declared_issuer));
            assert_eq!(found, expected, "{client:?} {server} {declared:?} {declared_issuer:?}");
        }
    }

    #[test]
    fn grant_is_stored_and_printed_without_secrets() {
        let stored = grant("https://mcp.example.com/mcp", None, 1_000);
        let again = StoredGrant::from_json(&stored.to_json()).unwrap();
        assert_eq!(again.secrets(), ["access-hunter2", "refresh-hunter2", "client-hunter2"]);
        assert_eq!(
            (again.file_name(), again.lifetime()),
            (stored.file_name(), Some(Duration::from_hours(1)))
        );
        assert_eq!(again.expires_at().unwrap().as_second(), 4_600);
        assert!(!format!("{stored:?}").contains("hunter2"));
        let error = StoredGrant::from_json(br#"{"login": {"access_token": "hunter2"}}"#).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
