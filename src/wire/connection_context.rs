use tokio_util::task::TaskTracker;

use super::log::ServerLog;
use super::loop_detection::InstanceId;
use super::notifications::NotificationHandler;
use super::process::{ProcessActivity, ProcessGuard, StderrTail};
use super::retry_after::RetryAfter;

/// What a connection needs of the process it lives in.
#[derive(Clone, Debug, Default)]
pub struct ConnectionContext {
    /// What works for this connection: its child, the child's pumps, the end of its session. To be waited for
    /// before evenkeel ends, and before another connection where two must not run side by side.
    pub tasks: TaskTracker,
    /// Ends the children should evenkeel be killed.
    pub guard: Option<ProcessGuard>,
    /// Where goes what the server logs.
    pub log: ServerLog,
    /// Who hears what the server says to agents unasked.
    pub notifications: Option<NotificationHandler>,
    /// What its child writes to stderr, for who has to tell why the connection was not made.
    pub stderr_tail: StderrTail,
    /// Who asks, should the server be an evenkeel.
    pub instance: InstanceId,
    /// Until when the server wants to be left alone.
    pub retry_after: RetryAfter,
    /// Where the process is told that the connection consists of, if it does.
    pub process_activity: ProcessActivity,
}
