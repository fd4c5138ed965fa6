use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, trace};

use super::super::connection_context::ConnectionContext;
use super::super::error::{ConnectionEnd, ConnectionError, FailureSource};
use super::super::log::StderrLines;
use super::super::notifications::NotificationDispatcher;
use super::super::process::{self, ChildProcess, ProcessActivity, ProcessGuard, StderrTail};
use super::super::response::{ResponseMessage, RpcResponse};
use super::super::server_message::{self, ServerMessage};
use super::super::{JsonRpcId, MESSAGE_LIMIT};
use super::lines::{self, StdoutLine};
use crate::resource::{Reason, StdioEndpoint};

/// Notices of one call that wait for their reader; more are dropped, since progress is only told, not owed.
const MAX_QUEUED_NOTIFICATIONS: usize = 64;
/// Messages that wait for the child to read them.
const MAX_QUEUED_MESSAGES: usize = 64;
/// How long the pipes are read after the child's end; what it left behind may hold them open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a child that closed its stdin or stdout has to end by itself.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The pipes of a child process, and the calls that wait for what comes out of them.
#[derive(Debug)]
pub(in crate::wire) struct StdioPipes {
    outgoing: mpsc::Sender<Bytes>,
    calls: PendingCalls,
    end: Arc<ConnectionEnd>,
    /// Ends the writer, which closes the child's stdin, and starts the way down to SIGKILL. Dropping does so too.
    close_guard: DropGuard,
    /// Done when the child is reaped and the pumps have ended.
    finished: CancellationToken,
}

#[derive(Clone, Debug, Default)]
struct PendingCalls(Arc<Mutex<HashMap<u64, CallSender>>>);

#[derive(Debug)]
struct CallSender {
    response: oneshot::Sender<Result<RpcResponse, ConnectionError>>,
    notifications: Option<mpsc::Sender<Bytes>>,
    /// It is a request to listen, which its server may end by a notification.
    is_listen: bool,
}

impl PendingCalls {
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<u64, CallSender>) -> T) -> T {
        change(&mut self.0.lock())
    }
}

/// Starts the child and, on the host's tasks, what pumps its pipes and watches over it.
pub(in crate::wire) fn start(
    endpoint: &StdioEndpoint,
    lost: &Arc<ConnectionEnd>,
    ears: NotificationDispatcher,
    host: &ConnectionContext,
) -> Result<StdioPipes, ConnectionError> {
    let words = host.stderr_tail.clone();
    words.set_mask(ears.mask().clone());
    let mark = host.guard.as_ref().map(ProcessGuard::next_mark);
    let mut child = process::spawn(endpoint, mark.as_ref())?;
    let begun = Instant::now();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(ConnectionError::new(
            Reason::ConnectFailed,
            "the pipes of the child could not be opened",
        ));
    };
    host.process_activity.set_process(child.id().unwrap_or_default());
    let tasks = &host.tasks;
    let (outgoing, queue) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let (process, reap) = ChildProcess::supervise(child, host.guard.clone().zip(mark));
    let calls = PendingCalls::default();
    let (hang_up, over) = (CancellationToken::new(), CancellationToken::new());
    tasks.spawn(reap);
    let (closed, mut closes) = mpsc::channel(2);
    tasks.spawn(write_messages(stdin, queue, hang_up.clone(), closed.clone()));
    let errors = tasks.spawn(read_stderr(stderr, StderrLines::new(host.log.clone(), words.clone())));
    let heard = MessageReceiver { notifications: ears, process_activity: host.process_activity.clone() };
    let answers = tasks.spawn(read_messages(stdout, calls.clone(), outgoing.clone(), heard, closed));
    let pumps = [errors.abort_handle(), answers.abort_handle()];
    tasks.spawn({
        let (lost, calls) = (lost.clone(), calls.clone());
        let (hang_up, over, command) = (hang_up.clone(), over.clone(), endpoint.command.clone());
        async move {
            let status = tokio::select! {
                status = process.exit_status() => status,
                () = hang_up.cancelled() => process.terminate().await,
                Some(pipe) = closes.recv() => {
                    if let Ok(status) = tokio::time::timeout(EXIT_TIMEOUT, process.exit_status()).await {
                        status
                    } else {
                        // Whatever it goes on with, nobody can talk with it any more.
                        let message =
                            format!("{command:?} closed its {pipe} and was ended{}", words.message_suffix());
                        let failure_source = FailureSource::Exit(begun.elapsed());
                        lost.mark(ConnectionError { failure_source, ..ConnectionError::new(Reason::Exited, message) });
                        calls.with(HashMap::clear);
                        hang_up.cancel();
                        process.terminate().await
                    }
                }
            };
            let lived = begun.elapsed();
            // What the child wrote before it ended is still in the pipes.
            let rest = async { tokio::join!(errors, answers) };
            if tokio::time::timeout(DRAIN_TIMEOUT, rest).await.is_err() {
                pumps.iter().for_each(AbortHandle::abort);
            }
            lost.mark(ConnectionError { failure_source: FailureSource::Exit(lived), ..exit_error(&command, status, &words) });
            calls.with(HashMap::clear);
            hang_up.cancel();
            over.cancel();
        }
    });
    Ok(StdioPipes { outgoing, calls, end: lost.clone(), close_guard: hang_up.drop_guard(), finished: over })
}

impl StdioPipes {
    pub(in crate::wire) async fn send(&self, message: Bytes) -> Result<(), ConnectionError> {
        self.outgoing.send(message).await.map_err(|_| self.end_error())
    }

    /// Sends without waiting; dropped if the child does not read.
    pub(in crate::wire) fn try_send(&self, message: Bytes) {
        if self.outgoing.try_send(message).is_err() {
            trace!("the child does not read; a cancellation was not sent");
        }
    }

    pub(in crate::wire) async fn request(
        &self,
        id: u64,
        (notices, listens): (bool, bool),
        message: Bytes,
    ) -> Result<PendingCall, ConnectionError> {
        let (answer, answered) = oneshot::channel();
        let (notices, noticed) = notices.then(|| mpsc::channel(MAX_QUEUED_NOTIFICATIONS)).unzip();
        self.calls.with(|calls| {
            calls.insert(id, CallSender { response: answer, notifications: notices, is_listen: listens })
        });
        let waiting = PendingCall {
            id,
            calls: self.calls.clone(),
            response: answered,
            notifications: noticed,
            end: self.end.clone(),
        };
        self.send(message).await?;
        Ok(waiting)
    }

    pub(in crate::wire) async fn close(&self) {
        self.close_guard.token().cancel();
        self.finished.cancelled().await;
    }

    fn end_error(&self) -> ConnectionError {
        self.end
            .get()
            .cloned()
            .unwrap_or_else(|| ConnectionError::new(Reason::Exited, "the server closed its stdin"))
    }
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(in crate::wire) struct PendingCall {
    id: u64,
    calls: PendingCalls,
    response: oneshot::Receiver<Result<RpcResponse, ConnectionError>>,
    notifications: Option<mpsc::Receiver<Bytes>>,
    end: Arc<ConnectionEnd>,
}

impl PendingCall {
    pub(in crate::wire) async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let notice = async {
            match &mut self.notifications {
                Some(noticed) => noticed.recv().await,
                None => None,
            }
        };
        // Notices first: those that came before the answer are told before it.
        tokio::select! {
            biased;
            Some(notice) = notice => Ok(ResponseMessage::Notification(notice)),
            answer = &mut self.response => match answer {
                Ok(answer) => answer.map(ResponseMessage::Response),
                Err(_) => Err(self.end.wait().await.into_dispatched()),
            },
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.calls.with(|calls| calls.remove(&self.id));
    }
}

/// Writes messages to the child until told to hang up, which closes its stdin.
///
/// Where the system says so (Linux), it is noticed at once that the child closed its end, else with the next message.
async fn write_messages(
    stdin: ChildStdin,
    mut queue: mpsc::Receiver<Bytes>,
    hang_up: CancellationToken,
    closed: mpsc::Sender<&'static str>,
) {
    let pump = async {
        let mut stdin = pipe::Sender::from_owned_fd(stdin.into_owned_fd()?)?;
        loop {
            let message = tokio::select! {
                message = queue.recv() => message,
                broken = stdin.ready(Interest::ERROR) => {
                    return broken.and(Err(std::io::ErrorKind::BrokenPipe.into()));
                }
            };
            let Some(message) = message else { return std::io::Result::Ok(()) };
            stdin.write_all(&message).await?;
            stdin.write_all(b"\n").await?;
        }
    };
    if let Some(Err(error)) = hang_up.run_until_cancelled(pump).await {
        debug!(%error, "writing to the child failed");
        // There is room for both.
        let _ = closed.try_send("stdin");
    }
}

/// Takes note of the child's messages.
struct MessageReceiver {
    notifications: NotificationDispatcher,
    process_activity: ProcessActivity,
}

/// Hands every message of the child to whom it concerns.
async fn read_messages(
    stdout: ChildStdout,
    calls: PendingCalls,
    outgoing: mpsc::Sender<Bytes>,
    MessageReceiver { notifications: ears, process_activity: started }: MessageReceiver,
    closed: mpsc::Sender<&'static str>,
) {
    let mut reader = BufReader::new(stdout);
    let settle = |number: Option<u64>, answer| {
        if let Some(caller) = number.and_then(|number| calls.with(|calls| calls.remove(&number))) {
            // The caller may have gone.
            let _ = caller.response.send(answer);
        }
    };
    loop {
        let message = match lines::next_line(&mut reader, MESSAGE_LIMIT).await {
            Ok(Some(StdoutLine::Text(line))) => line,
            Ok(Some(StdoutLine::TooLong(length, ends))) => {
                debug!(length, "the child printed a line beyond the limit; it was skipped");
                ears.mark_received();
                let message = format!("the answer is longer than {} MiB", MESSAGE_LIMIT >> 20);
                let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
                settle(server_message::request_id_of_truncated(&ends), Err(error));
                continue;
            }
            ended => {
                debug!(?ended, "the child closed its stdout");
                let _ = closed.try_send("stdout");
                return;
            }
        };
        let kind = server_message::classify(&message);
        if kind.is_ok() {
            ears.mark_received();
            started.mark_message_received();
        }
        match kind {
            Ok(ServerMessage::Response(number, reply)) => settle(number, Ok(reply)),
            Ok(ServerMessage::Progress(number) | ServerMessage::ListenAcknowledged(number)) => {
                let notices =
                    calls.with(|calls| calls.get(&number).and_then(|caller| caller.notifications.clone()));
                if let Some(notices) = notices {
                    let _ = notices.try_send(message);
                }
            }
            Ok(ServerMessage::ListenCancelled(number)) => {
                let listens = calls.with(|calls| calls.get(&number).is_some_and(|caller| caller.is_listen));
                let message = "the server ended the subscription";
                let error = ConnectionError::new(Reason::ConnectFailed, message).into_dispatched();
                settle(Some(number).filter(|_| listens), Err(error));
            }
            Ok(ServerMessage::Request(id, method)) => respond(&outgoing, &id, &method),
            Ok(unasked) => ears.dispatch(&unasked, &message),
            Err(error) => ears.log_malformed(&error),
        }
    }
}

fn respond(outgoing: &mpsc::Sender<Bytes>, id: &JsonRpcId, method: &str) {
    if outgoing.try_send(server_message::response_to(id, method)).is_err() {
        debug!(method, "the child does not read; its question was not answered");
    }
}

async fn read_stderr(mut stderr: ChildStderr, mut log: StderrLines) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        log.push(buffer.get(..length).unwrap_or_default());
    }
}

/// One sentence on how a child ended.
fn exit_error(command: &str, status: ExitStatus, words: &StderrTail) -> ConnectionError {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    ConnectionError::new(Reason::Exited, format!("{command:?} {how}{}", words.message_suffix()))
}
