use imbl::OrdMap;
use jiff::Timestamp;

use crate::resource::{AuthStatus, ObjectKey, Problem};
use crate::text;

/// The state of a server's authorization, for its status.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthState {
    /// The issuer of the token.
    pub issuer: String,
    /// The scopes of the token.
    pub scopes: Vec<String>,
    /// When the token expires, unless it is renewed before; `None` if it has no such time.
    pub expires: Option<Timestamp>,
    /// Tells a login from the previous one: it does not change with a renewal.
    pub login: String,
    /// The reason why the token could not be renewed.
    pub problem: Option<Problem>,
}

impl AuthState {
    /// Returns the part of the server's status.
    pub fn to_status(&self) -> AuthStatus {
        /// The maximum length of the issuer and of a scope, which the authorization server chose.
        const MAX_CHARS: usize = 256;
        /// The maximum number of scopes.
        const MAX_SCOPES: usize = 64;
        AuthStatus {
            issuer: text::sanitize(&self.issuer, MAX_CHARS),
            scopes: self
                .scopes
                .iter()
                .take(MAX_SCOPES)
                .map(|scope| text::sanitize(scope, MAX_CHARS))
                .collect(),
            expires: self.expires.map(|expires| expires.to_string()),
        }
    }
}

/// The states of the servers that have, or had, a token.
pub type AuthStates = OrdMap<ObjectKey, AuthState>;
