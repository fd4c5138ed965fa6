use rmcp::transport::auth::AuthError;

use crate::resource::{Problem, Reason};
use crate::text;
use crate::wire::ConnectionError;

/// The longest text of an authorization server that a message quotes, in characters.
const MAX_QUOTED_CHARS: usize = 300;

/// The reason why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OAuthError {
    /// The authorization server, or the person, refused. Trying again is useless.
    #[error("{0}")]
    Refused(String),
    /// The declaration must be changed.
    #[error("{0}")]
    InvalidSpec(String),
    /// The authorization server did not answer, or not as the protocol says. A later attempt may succeed.
    #[error("{0}")]
    Failed(String),
}

impl OAuthError {
    /// Returns the problem for the status of a server, with the command that helps, if one does.
    pub(super) fn to_problem(&self, login_command: Option<&str>) -> Problem {
        match self {
            Self::Refused(message) => {
                let advice = login_command.map(|command| format!("; run: {command}")).unwrap_or_default();
                Problem::new(Reason::AuthRequired, format!("{message}{advice}"))
            }
            Self::InvalidSpec(message) => Problem::new(Reason::InvalidSpec, message.clone()),
            Self::Failed(message) => Problem::new(Reason::ConnectFailed, message.clone()),
        }
    }

    /// Converts an error of the protocol. `secrets` are redacted: an authorization server may repeat them.
    pub(super) fn from_auth_error(error: &AuthError, secrets: &[&str]) -> Self {
        let text = redacted(&describe(error), secrets);
        match error {
            AuthError::TokenRefreshRejected(_) => {
                Self::Refused(format!("the authorization server refused to renew the token: {text}"))
            }
            AuthError::AuthorizationRequired => {
                Self::Refused("the authorization server gave no token with which to renew it".into())
            }
            AuthError::AuthorizationFailed(_)
            | AuthError::AuthorizationServerMismatch { .. }
            | AuthError::AuthorizationServerMissingIssuer { .. }
            | AuthError::TokenExchangeFailed(_)
            | AuthError::ClientCredentialsError(_) => Self::Refused(text),
            _ => Self::Failed(text),
        }
    }
}

/// Returns a text of an authorization server as one line without secrets.
pub(super) fn redacted(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        text = text.replace(secret, "<redacted>");
    }
    text::sanitize(&text, MAX_QUOTED_CHARS)
}

/// Returns the error with its first cause, which is what a person can act on.
fn describe(error: &AuthError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let connection_error = causes.clone().find_map(|cause| cause.downcast_ref::<ConnectionError>());
    match connection_error {
        Some(cause) => format!("{error}: {}", cause.problem.message),
        None => causes.last().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_failures_and_secrets_redacted() {
        for (error, expected) in [
            (
                AuthError::TokenRefreshRejected("invalid_grant: hunter2 is unknown\n".into()),
                OAuthError::Refused(
                    "the authorization server refused to renew the token: OAuth refresh token was rejected: \
                     invalid_grant: <redacted> is unknown"
                        .into(),
                ),
            ),
            (
                AuthError::TokenRefreshFailed("server error".into()),
                OAuthError::Failed("OAuth token refresh failed: server error".into()),
            ),
        ] {
            assert_eq!(OAuthError::from_auth_error(&error, &["hunter2"]), expected);
        }
        let refused = OAuthError::Refused("why".into()).to_problem(Some("evenkeel login x"));
        assert_eq!(refused.to_string(), "AuthRequired: why; run: evenkeel login x");
    }
}
