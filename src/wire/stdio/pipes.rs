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
const NOTICES: usize = 64;
/// Messages that wait for the child to read them.
const OUTGOING: usize = 64;
/// How long the pipes are read after the child's end; what it left behind may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a child that closed its stdin or stdout has to end by itself.
const SHORTLY: Duration = Duration::from_secs(1);

/// The pipes of a child process, and the calls that wait for what comes out of them.
#[derive(Debug)]
pub(in crate::wire) struct StdioPipes {
    outgoing: mpsc::Sender<Bytes>,
    calls: Calls,
    lost: Arc<ConnectionEnd>,
    /// Ends the writer, which closes the child's stdin, and starts the way down to SIGKILL. Dropping does so too.
    hang_up: DropGuard,
    /// Done when the child is reaped and the pumps have ended.
    over: CancellationToken,
}

#[derive(Clone, Debug, Default)]
struct Calls(Arc<Mutex<HashMap<u64, CallSender>>>);

#[derive(Debug)]
struct CallSender {
    answer: oneshot::Sender<Result<RpcResponse, ConnectionError>>,
    notices: Option<mpsc::Sender<Bytes>>,
    /// It is a request to listen, which its server may end by a notification.
    listens: bool,
}

impl Calls {
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
    let words = host.last_words.clone();
    words.mask(ears.mask().clone());
    let mark = host.guard.as_ref().map(ProcessGuard::mark);
    let mut child = process::spawn(endpoint, mark.as_ref())?;
    let begun = Instant::now();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(ConnectionError::new(
            Reason::ConnectFailed,
            "the pipes of the child could not be opened",
        ));
    };
    host.started.as_process(child.id().unwrap_or_default());
    let tasks = &host.tasks;
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let (process, reap) = ChildProcess::watch(child, host.guard.clone().zip(mark));
    let calls = Calls::default();
    let (hang_up, over) = (CancellationToken::new(), CancellationToken::new());
    tasks.spawn(reap);
    let (closed, mut closes) = mpsc::channel(2);
    tasks.spawn(write(stdin, queue, hang_up.clone(), closed.clone()));
    let errors = tasks.spawn(read_stderr(stderr, StderrLines::new(host.log.clone(), words.clone())));
    let heard = Heard { ears, started: host.started.clone() };
    let answers = tasks.spawn(read(stdout, calls.clone(), outgoing.clone(), heard, closed));
    let pumps = [errors.abort_handle(), answers.abort_handle()];
    tasks.spawn({
        let (lost, calls) = (lost.clone(), calls.clone());
        let (hang_up, over, command) = (hang_up.clone(), over.clone(), endpoint.command.clone());
        async move {
            let status = tokio::select! {
                status = process.exited() => status,
                () = hang_up.cancelled() => process.end().await,
                Some(pipe) = closes.recv() => {
                    if let Ok(status) = tokio::time::timeout(SHORTLY, process.exited()).await {
                        status
                    } else {
                        // Whatever it goes on with, nobody can talk with it any more.
                        let message =
                            format!("{command:?} closed its {pipe} and was ended{}", words.quoted());
                        let sign = FailureSource::Exit(begun.elapsed());
                        lost.mark(ConnectionError { sign, ..ConnectionError::new(Reason::Exited, message) });
                        calls.with(HashMap::clear);
                        hang_up.cancel();
                        process.end().await
                    }
                }
            };
            let lived = begun.elapsed();
            // What the child wrote before it ended is still in the pipes.
            let rest = async { tokio::join!(errors, answers) };
            if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
                pumps.iter().for_each(AbortHandle::abort);
            }
            lost.mark(ConnectionError { sign: FailureSource::Exit(lived), ..exit(&command, status, &words) });
            calls.with(HashMap::clear);
            hang_up.cancel();
            over.cancel();
        }
    });
    Ok(StdioPipes { outgoing, calls, lost: lost.clone(), hang_up: hang_up.drop_guard(), over })
}

impl StdioPipes {
    pub(in crate::wire) async fn send(&self, message: Bytes) -> Result<(), ConnectionError> {
        self.outgoing.send(message).await.map_err(|_| self.gone())
    }

    /// Sends without waiting; dropped if the child does not read.
    pub(in crate::wire) fn send_soon(&self, message: Bytes) {
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
        let (notices, noticed) = notices.then(|| mpsc::channel(NOTICES)).unzip();
        self.calls.with(|calls| calls.insert(id, CallSender { answer, notices, listens }));
        let waiting =
            PendingCall { id, calls: self.calls.clone(), answered, noticed, lost: self.lost.clone() };
        self.send(message).await?;
        Ok(waiting)
    }

    pub(in crate::wire) async fn close(&self) {
        self.hang_up.token().cancel();
        self.over.cancelled().await;
    }

    fn gone(&self) -> ConnectionError {
        self.lost
            .get()
            .cloned()
            .unwrap_or_else(|| ConnectionError::new(Reason::Exited, "the server closed its stdin"))
    }
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(in crate::wire) struct PendingCall {
    id: u64,
    calls: Calls,
    answered: oneshot::Receiver<Result<RpcResponse, ConnectionError>>,
    noticed: Option<mpsc::Receiver<Bytes>>,
    lost: Arc<ConnectionEnd>,
}

impl PendingCall {
    pub(in crate::wire) async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let notice = async {
            match &mut self.noticed {
                Some(noticed) => noticed.recv().await,
                None => None,
            }
        };
        // Notices first: those that came before the answer are told before it.
        tokio::select! {
            biased;
            Some(notice) = notice => Ok(ResponseMessage::Notice(notice)),
            answer = &mut self.answered => match answer {
                Ok(answer) => answer.map(ResponseMessage::Answer),
                Err(_) => Err(self.lost.wait().await.dispatched()),
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
async fn write(
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
struct Heard {
    ears: NotificationDispatcher,
    started: ProcessActivity,
}

/// Hands every message of the child to whom it concerns.
async fn read(
    stdout: ChildStdout,
    calls: Calls,
    outgoing: mpsc::Sender<Bytes>,
    Heard { ears, started }: Heard,
    closed: mpsc::Sender<&'static str>,
) {
    let mut reader = BufReader::new(stdout);
    let settle = |number: Option<u64>, answer| {
        if let Some(caller) = number.and_then(|number| calls.with(|calls| calls.remove(&number))) {
            // The caller may have gone.
            let _ = caller.answer.send(answer);
        }
    };
    loop {
        let message = match lines::next(&mut reader, MESSAGE_LIMIT).await {
            Ok(Some(StdoutLine::Text(line))) => line,
            Ok(Some(StdoutLine::TooLong(length, ends))) => {
                debug!(length, "the child printed a line beyond the limit; it was skipped");
                ears.heard();
                let message = format!("the answer is longer than {} MiB", MESSAGE_LIMIT >> 20);
                let error = ConnectionError::new(Reason::ConnectFailed, message).dispatched();
                settle(server_message::number_of_cut(&ends), Err(error));
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
            ears.heard();
            started.has_answered();
        }
        match kind {
            Ok(ServerMessage::Answer(number, reply)) => settle(number, Ok(reply)),
            Ok(ServerMessage::Progress(number) | ServerMessage::Listening(number)) => {
                let notices =
                    calls.with(|calls| calls.get(&number).and_then(|caller| caller.notices.clone()));
                if let Some(notices) = notices {
                    let _ = notices.try_send(message);
                }
            }
            Ok(ServerMessage::ListenEnded(number)) => {
                let listens = calls.with(|calls| calls.get(&number).is_some_and(|caller| caller.listens));
                let message = "the server ended the subscription";
                let error = ConnectionError::new(Reason::ConnectFailed, message).dispatched();
                settle(Some(number).filter(|_| listens), Err(error));
            }
            Ok(ServerMessage::Question(id, method)) => answer(&outgoing, &id, &method),
            Ok(unasked) => ears.take(&unasked, &message),
            Err(error) => ears.skipped(&error),
        }
    }
}

fn answer(outgoing: &mpsc::Sender<Bytes>, id: &JsonRpcId, method: &str) {
    if outgoing.try_send(server_message::answer(id, method)).is_err() {
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
fn exit(command: &str, status: ExitStatus, words: &StderrTail) -> ConnectionError {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    ConnectionError::new(Reason::Exited, format!("{command:?} {how}{}", words.quoted()))
}
