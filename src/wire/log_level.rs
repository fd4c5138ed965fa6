use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;

use super::Envelope;

/// The severity of a log message (RFC 5424, with MCP's names), in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `notice`
    Notice,
    /// `warning`
    Warning,
    /// `error`
    Error,
    /// `critical`
    Critical,
    /// `alert`
    Alert,
    /// `emergency`
    Emergency,
}

impl LogLevel {
    /// All levels in ascending order.
    pub const ALL: [Self; 8] = [
        Self::Debug,
        Self::Info,
        Self::Notice,
        Self::Warning,
        Self::Error,
        Self::Critical,
        Self::Alert,
        Self::Emergency,
    ];

    /// Parses MCP's name of a level.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }

    /// Returns MCP's name of the level.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Alert => "alert",
            Self::Emergency => "emergency",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the level of a `notifications/message`; `None` if it is absent or unknown.
pub fn notification_level(notification: &[u8]) -> Option<LogLevel> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        level: Cow<'a, str>,
    }
    let envelope = Envelope::parse(notification).ok()?;
    let params = envelope.params.filter(|_| envelope.method.as_deref() == Some("notifications/message"))?;
    LogLevel::from_name(&serde_json::from_str::<Message<'_>>(params.get()).ok()?.level)
}
