use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, trace};

use super::super::connection_context::ConnectionContext;
use super::super::error::{ConnectionEnd, ConnectionError, FailureSource};
use super::super::notifications::NotificationDispatcher;
use super::super::pending_calls::{CallKind, PendingCall, PendingCalls};
use super::super::process::{
    self, ChildProcess, ProcessActivity, ProcessGuard, StderrLines, StderrTail, Supervision,
};
use super::super::server_message::{self, ServerMessage};
use super::super::{MAX_MESSAGE_BYTES, lenient};
use super::lines::{self, StdoutLine};
use crate::resource::{Reason, StdioEndpoint};

/// The maximum number of messages queued for the child.
const MAX_QUEUED_MESSAGES: usize = 64;
/// The time for which the pipes are read after the child's exit. Its descendants may keep them open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// The time that a child has to exit after it closed its stdin or stdout, before its stdin is closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The pipes of a child process and the calls that wait for its responses.
#[derive(Debug)]
pub(in crate::wire) struct StdioPipes {
    outgoing: mpsc::Sender<Bytes>,
    calls: PendingCalls,
    end: Arc<ConnectionEnd>,
    /// Cancelling it, or dropping the guard, ends the writer task, which closes the child's stdin, and starts the
    /// termination of the child.
    close_guard: DropGuard,
    /// Cancelled when the child is reaped and the tasks that read its pipes have ended.
    finished: CancellationToken,
}

/// Starts the child and, on [`ConnectionContext::tasks`], the tasks that read and write its pipes and supervise it.
pub(in crate::wire) fn start(
    endpoint: &StdioEndpoint,
    end: &Arc<ConnectionEnd>,
    notifications: NotificationDispatcher,
    context: &ConnectionContext,
) -> Result<StdioPipes, ConnectionError> {
    let stderr_tail = context.stderr_tail.clone();
    stderr_tail.set_mask(notifications.mask().clone());
    let mark = context.guard.as_ref().map(ProcessGuard::next_mark);
    let mut child = process::spawn(endpoint, &context.child_environment, mark.as_ref())?;
    let started_at = Instant::now();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(ConnectionError::new(
            Reason::ConnectFailed,
            "cannot open the pipes of the child process",
        ));
    };
    context.process_activity.set_process(child.id().unwrap_or_default());
    let tasks = &context.tasks;
    let (outgoing, queue) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let supervision = Supervision {
        command: endpoint.command.clone(),
        guard: context.guard.clone().zip(mark),
        stop_timeout: context.stop_timeout.clone(),
        log: context.log.clone(),
    };
    let (process, reap) = ChildProcess::supervise(child, supervision);
    let calls = PendingCalls::new(context.callers);
    let (closing, finished) = (CancellationToken::new(), CancellationToken::new());
    tasks.spawn(reap);
    let (closed_pipe, mut closed_pipes) = mpsc::channel(2);
    tasks.spawn(write_messages(stdin, queue, closing.clone(), closed_pipe.clone()));
    let stderr_task =
        tasks.spawn(read_stderr(stderr, StderrLines::new(context.log.clone(), stderr_tail.clone())));
    let receiver = MessageReceiver { notifications, process_activity: context.process_activity.clone() };
    let stdout_task =
        tasks.spawn(read_messages(stdout, calls.clone(), outgoing.clone(), receiver, closed_pipe));
    let readers = [stderr_task.abort_handle(), stdout_task.abort_handle()];
    tasks.spawn({
        let (end, calls) = (end.clone(), calls.clone());
        let (closing, finished, command) = (closing.clone(), finished.clone(), endpoint.command.clone());
        async move {
            // The pipe that it closed long before its exit.
            let mut closed_pipe = None;
            let status = tokio::select! {
                status = process.exit_status() => status,
                () = closing.cancelled() => {
                    process.request_stop();
                    process.exit_status().await
                }
                Some(pipe) = closed_pipes.recv() => {
                    if timeout(EXIT_TIMEOUT, process.exit_status()).await.is_err() {
                        closed_pipe = Some(pipe);
                        closing.cancel();
                        process.request_stop();
                    }
                    if !process.exits_by_itself().await {
                        // The process is alive, but communication with it is impossible.
                        let output = stderr_tail.message_suffix();
                        let message = format!("{command:?} closed its {pipe} and did not exit{output}");
                        let error = ConnectionError::new(Reason::Exited, message);
                        let failure_source = FailureSource::Exit(started_at.elapsed());
                        end.mark(ConnectionError { failure_source, ..error });
                        calls.fail_all();
                    }
                    process.exit_status().await
                }
            };
            let failure_source = FailureSource::Exit(started_at.elapsed());
            // Output that the child wrote before its exit is still in the pipes.
            let drain = async { tokio::join!(stderr_task, stdout_task) };
            if timeout(DRAIN_TIMEOUT, drain).await.is_err() {
                readers.iter().for_each(AbortHandle::abort);
            }
            let error = exit_error(&command, closed_pipe, status, &stderr_tail);
            end.mark(ConnectionError { failure_source, ..error });
            calls.fail_all();
            closing.cancel();
            finished.cancel();
        }
    });
    Ok(StdioPipes { outgoing, calls, end: end.clone(), close_guard: closing.drop_guard(), finished })
}

impl StdioPipes {
    /// Queues a message for the child and waits for room in the queue. If the child has closed its stdin, waits until it
    /// has exited or was terminated, so that the error says how it ended.
    pub(in crate::wire) async fn send(&self, message: Bytes) -> Result<(), ConnectionError> {
        match self.outgoing.send(message).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.end.wait().await),
        }
    }

    /// Queues a message without waiting. Drops it if the queue is full because the child does not read.
    pub(in crate::wire) fn try_send(&self, message: Bytes) {
        if self.outgoing.try_send(message).is_err() {
            trace!("the queue of messages for the child is full; a cancellation or a response is dropped");
        }
    }

    /// Sends a request. `wants_notifications` is true if the call takes notifications.
    pub(in crate::wire) async fn request(
        &self,
        id: u64,
        kind: CallKind,
        wants_notifications: bool,
        message: Bytes,
    ) -> Result<PendingCall, ConnectionError> {
        let call = self.calls.add(id, kind, wants_notifications, self.end.clone());
        self.send(message).await?;
        Ok(call)
    }

    /// Terminates the child and waits until it is reaped.
    pub(in crate::wire) async fn close(&self) {
        self.close_guard.token().cancel();
        self.finished.cancelled().await;
    }
}

/// Writes messages to the child's stdin until `closing` is cancelled, and then closes it.
///
/// On Linux it detects at once that the child closed its stdin, on other systems with the next message.
async fn write_messages(
    stdin: ChildStdin,
    mut queue: mpsc::Receiver<Bytes>,
    closing: CancellationToken,
    closed_pipe: mpsc::Sender<&'static str>,
) {
    let pump = async {
        let mut stdin = pipe::Sender::from_owned_fd(stdin.into_owned_fd()?)?;
        loop {
            let message = tokio::select! {
                message = queue.recv() => message,
                error_ready = stdin.ready(Interest::ERROR) => {
                    return error_ready.and(Err(std::io::ErrorKind::BrokenPipe.into()));
                }
            };
            let Some(message) = message else { return std::io::Result::Ok(()) };
            stdin.write_all(&message).await?;
            stdin.write_all(b"\n").await?;
        }
    };
    if let Some(Err(error)) = closing.run_until_cancelled(pump).await {
        debug!(%error, "writing to the child's stdin failed");
        // The channel has room for stdin and stdout.
        let _ = closed_pipe.try_send("stdin");
    }
}

/// The receivers of the child's messages.
struct MessageReceiver {
    notifications: NotificationDispatcher,
    process_activity: ProcessActivity,
}

/// Reads the child's messages, gives each to its call or to the notification dispatcher, and responds to its requests.
async fn read_messages(
    stdout: ChildStdout,
    calls: PendingCalls,
    outgoing: mpsc::Sender<Bytes>,
    MessageReceiver { notifications, process_activity }: MessageReceiver,
    closed_pipe: mpsc::Sender<&'static str>,
) {
    let mut reader = BufReader::new(stdout);
    loop {
        let line = match lines::next_line(&mut reader, MAX_MESSAGE_BYTES).await {
            Ok(Some(StdoutLine::Text(line))) => line,
            Ok(Some(StdoutLine::TooLong(length, ends))) => {
                notifications.mark_received();
                let limit = MAX_MESSAGE_BYTES >> 20;
                notifications.log_unreadable(&format!("(a line of {length} bytes, longer than {limit} MiB)"));
                let message = format!("the response is longer than {limit} MiB");
                let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
                calls.complete(lenient::request_id_of_unreadable(&ends), Err(error));
                continue;
            }
            ended => {
                debug!(?ended, "the child closed its stdout");
                let _ = closed_pipe.try_send("stdout");
                return;
            }
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        for message in lenient::messages(line) {
            let (message, kind) = notifications.read(message);
            if !matches!(kind, ServerMessage::Unreadable(_)) {
                process_activity.mark_message_received();
            }
            match calls.receive(message, kind, &notifications) {
                Some((_, ServerMessage::Request(id, method))) => {
                    respond(&outgoing, server_message::response_to(&id, &method));
                }
                // It cannot be told which call it belongs to, so no agent is responsible for it.
                Some((_, ServerMessage::InputRequest(id, request))) => {
                    respond(&outgoing, server_message::response_message(&id, &request.declined()));
                }
                Some((message, kind)) => notifications.dispatch(&kind, &message),
                None => {}
            }
        }
    }
}

/// Queues the response to a request of the child without waiting.
fn respond(outgoing: &mpsc::Sender<Bytes>, response: Bytes) {
    if outgoing.try_send(response).is_err() {
        debug!("the queue of messages for the child is full; its request gets no response");
    }
}

async fn read_stderr(mut stderr: ChildStderr, mut log: StderrLines) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        log.push(buffer.get(..length).unwrap_or_default());
    }
}

/// Returns the error that describes how a child ended. `closed_pipe` is a pipe that it closed before.
fn exit_error(
    command: &str,
    closed_pipe: Option<&str>,
    status: ExitStatus,
    stderr_tail: &StderrTail,
) -> ConnectionError {
    let closed = closed_pipe.map_or_else(String::new, |pipe| format!("closed its {pipe}, and then "));
    let exit = process::describe_exit(status);
    let output = stderr_tail.message_suffix();
    ConnectionError::new(Reason::Exited, format!("{command:?} {closed}{exit}{output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn send_error_says_how_the_child_ended() {
        let script = "exec 0<&-; echo 'no such profile' >&2; sleep 0.2; exit 7";
        let endpoint = StdioEndpoint {
            command: "sh".into(),
            args: vec!["-c".into(), script.into()],
            cwd: None,
            env: Vec::new(),
        };
        let (end, context) = (Arc::default(), ConnectionContext::default());
        let pipes = start(&endpoint, &end, NotificationDispatcher::default(), &context).unwrap();
        pipes.outgoing.closed().await;
        let error = pipes.send(Bytes::from_static(b"{}")).await.unwrap_err();
        let message = &error.problem.message;
        assert!(message.contains("exited with code 7") && message.contains("no such profile"), "{message}");
        assert!(matches!(error.failure_source, FailureSource::Exit(_)) && !error.dispatched);
    }
}
