use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::secret_key_ref::SecretKeyRef;

/// The authorization of requests to an HTTP endpoint.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpAuth {
    /// OAuth 2.1 for servers that require it. Without it `evenkeel login` works too, if the server and its authorization
    /// server need no further information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OAuthSpec>,
}

/// The OAuth client and grant for a server (MCP authorization, 2026-07-28).
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.clientSecretRef) || has(self.clientId)")
    .message("clientSecretRef requires clientId"))]
#[x_kube(validation = Rule::new(
    "self.grant != 'ClientCredentials' || (has(self.clientId) && has(self.clientSecretRef))"
)
.message("grant: ClientCredentials requires clientId and clientSecretRef"))]
pub struct OAuthSpec {
    /// The id of a client that is registered at the authorization server. Default: the client ID metadata document of
    /// `--oauth-client-metadata`, or a dynamic registration, whichever the authorization server supports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub client_id: Option<String>,
    /// The key of a Secret with the secret of that client. Requires `clientId`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<SecretKeyRef>,
    /// The scopes to request. At most 64. Default: those that the server names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub scopes: Vec<String>,
    /// The way to a token: `AuthorizationCode` needs `evenkeel login` by a person; `ClientCredentials` needs nobody, and
    /// requires `clientId` and `clientSecretRef`. Default: `AuthorizationCode`.
    #[serde(default)]
    pub grant: OAuthGrant,
    /// The issuer of the authorization server. A token of another issuer is neither requested nor used. Default: the
    /// authorization server that the server names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: Option<String>,
}

/// The way to an access token.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OAuthGrant {
    /// A person logs in (OAuth 2.1, authorization code with PKCE).
    #[default]
    AuthorizationCode,
    /// The client itself is authorized (OAuth 2.1, client credentials).
    ClientCredentials,
}

/// The OAuth settings of an HTTP endpoint, with all references resolved. The default is that of a server without
/// `auth.oauth`.
#[derive(Clone, Default)]
pub struct OAuthSettings {
    /// The id of the registered client.
    pub client_id: Option<String>,
    /// The secret of that client.
    pub client_secret: Option<SecretString>,
    /// The scopes to request; empty for those that the server names.
    pub scopes: Vec<String>,
    /// The way to a token.
    pub grant: OAuthGrant,
    /// The only permitted issuer.
    pub issuer: Option<String>,
}

/// Omits secrets and tokens.
impl fmt::Debug for OAuthSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuthSettings")
            .field("client_id", &self.client_id)
            .field("scopes", &self.scopes)
            .field("grant", &self.grant)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}
