use tokio_util::task::TaskTracker;

use super::access_token::AccessToken;
use super::attempt_step::AttemptStep;
use super::child_environment::ChildEnvironment;
use super::connection_callers::ConnectionCallers;
use super::log::ServerLog;
use super::loop_detection::InstanceId;
use super::notifications::NotificationHandler;
use super::process::{ProcessActivity, ProcessGuard, SharedStopTimeout, StderrTail};
use super::retry_after::RetryAfter;

/// The parts of the evenkeel process that a connection uses.
#[derive(Clone, Debug, Default)]
pub struct ConnectionContext {
    /// The OAuth access token of the server.
    pub access_token: AccessToken,
    /// The callers that use this connection.
    pub callers: ConnectionCallers,
    /// The tasks of this connection: its child process, the tasks that read and write the child's pipes, the DELETE of
    /// its session. Wait for them before evenkeel exits, and before opening another connection where two must not
    /// exist at the same time.
    pub tasks: TaskTracker,
    /// Kills the child processes if evenkeel is killed.
    pub guard: Option<ProcessGuard>,
    /// The variables that child processes inherit.
    pub child_environment: ChildEnvironment,
    /// The time that the child process has to exit after SIGTERM.
    pub stop_timeout: SharedStopTimeout,
    /// Receives the server's log lines.
    pub log: ServerLog,
    /// Receives the notifications that the server sends for agents.
    pub notifications: Option<NotificationHandler>,
    /// The last stderr output of the child process, for the message of a failed attempt.
    pub stderr_tail: StderrTail,
    /// The id of this evenkeel instance, sent to servers to detect loops.
    pub instance: InstanceId,
    /// The server's Retry-After, shared by all connections to it.
    pub retry_after: RetryAfter,
    /// The step of the attempt, for the message of one that takes too long.
    pub attempt_step: AttemptStep,
    /// The process of the connection; stays empty over HTTP.
    pub process_activity: ProcessActivity,
}
