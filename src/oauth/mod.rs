//! OAuth for servers that require it (MCP authorization, 2026-07-28): logins, tokens and their renewal.
//!
//! Promises that a token is sent only to the URL for which it was obtained, and used only for the issuer and client that
//! the declaration permits; that one server's login, renewal or authorization server never delays another; and that a
//! renewal changes no connection. Tokens appear in no log, error or status. Never decides when to connect.
//!
//! `rmcp` does the protocol: discovery (RFC 9728, RFC 8414), registration (RFC 7591), PKCE, resource
//! indicators (RFC 8707) and the check of the issuer (RFC 9207). This module has the state: which grant belongs to which
//! server, where it is kept, and when it is renewed.

mod access_tokens;
mod auth_status;
mod authorization_client;
mod authorizer;
mod callback;
mod client_registration;
mod error;
mod grant;
mod grant_entry;
mod grant_place;
mod grant_store;
mod login;
mod logins;
mod renewal;
mod renewal_time;
mod server_authorization;

pub use access_tokens::AccessTokens;
pub use auth_status::{AuthState, AuthStates};
pub use authorizer::{Authorizer, AuthorizerContext, AuthorizerHandle};
pub use callback::{CALLBACK_PATH, CallbackOutcome, callback_page};
pub use client_registration::LoginClient;
pub use error::OAuthError;
pub use grant::StoredGrant;
pub use grant_store::GrantStore;
pub use login::LoginRequest;
pub use logins::{BegunLogin, Logins};
