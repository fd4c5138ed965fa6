use std::fmt;
use std::sync::Arc;

use crate::resource::Digest;

/// The number of hexadecimal digits that stand for a session in texts.
const SESSION_DIGITS: usize = 12;

/// What tells a caller from others. Its texts do not contain the id of a session, which is a credential.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum CallerId {
    /// A legacy session, by its id.
    Session(Arc<str>),
    /// An agent with an endpoint path of its own (`/as/ID/mcp`), by the id in the path; `ID/WINDOW` for one of its windows.
    Path(Arc<str>),
}

impl CallerId {
    /// Returns the id as a text, for comparisons only.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Session(id) | Self::Path(id) => id,
        }
    }
}

impl fmt::Display for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) => {
                write!(f, "session {}", Digest::of(id.as_bytes()).hex_prefix(SESSION_DIGITS))
            }
            Self::Path(id) => write!(f, "/as/{id}"),
        }
    }
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_session_does_not_contain_its_id() {
        let session = CallerId::Session("sealed".into());
        assert_eq!(format!("{session:?}"), session.to_string());
        assert!(session.to_string().starts_with("session ") && !session.to_string().contains("sealed"));
        assert_eq!(CallerId::Path("sealed".into()).to_string(), "/as/sealed");
        assert_ne!(session, CallerId::Path("sealed".into()));
    }
}
