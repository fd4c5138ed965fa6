use tokio_util::task::TaskTracker;

use super::identity::Identity;
use super::log::Log;
use super::pause::Pause;
use super::process::{Guard, LastWords, Started};
use super::unasked::NoticeHandler;

/// What a connection needs of the process it lives in.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// What works for this connection: its child, the child's pumps, the end of its session. To be waited for
    /// before evenkeel ends, and before another connection where two must not run side by side.
    pub tasks: TaskTracker,
    /// Ends the children should evenkeel be killed.
    pub guard: Option<Guard>,
    /// Where goes what the server logs.
    pub log: Log,
    /// Who hears what the server says to agents unasked.
    pub notices: Option<NoticeHandler>,
    /// What its child writes to stderr, for who has to tell why the connection was not made.
    pub last_words: LastWords,
    /// Who asks, should the server be an evenkeel.
    pub identity: Identity,
    /// Until when the server wants to be left alone.
    pub pause: Pause,
    /// Where the process is told that the connection consists of, if it does.
    pub started: Started,
}
