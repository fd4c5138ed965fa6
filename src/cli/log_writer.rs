use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// The maximum size of the lines that wait until they are written. Further lines are dropped and counted.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// The longest wait for queued lines when the process exits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes log lines on a thread of its own. A caller never waits, even if nobody reads the output: a task that logs
/// would otherwise block its runtime thread, and with it all connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<LogQueue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogQueue {
    lines: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    dropped_lines: u64,
    is_writing: bool,
}

/// Waits for queued lines when it is dropped, for one second at most.
#[derive(Debug)]
#[must_use]
pub(super) struct LogFlush(LogWriter);

impl LogWriter {
    /// Starts the thread, which writes to `output`. After lines were dropped, `on_dropped` is called with their number
    /// as soon as the output is read again.
    pub(super) fn start(
        output: impl Write + Send + 'static,
        on_dropped: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Self, LogFlush)> {
        let writer = Self::default();
        let thread_writer = writer.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || thread_writer.write_lines(output, on_dropped))?;
        Ok((writer.clone(), LogFlush(writer)))
    }

    fn write_lines(&self, mut output: impl Write, on_dropped: impl Fn(u64)) {
        loop {
            let mut queue = self.0.state.lock();
            queue.is_writing = false;
            self.0.changed.notify_all();
            while queue.lines.is_empty() {
                self.0.changed.wait(&mut queue);
            }
            let dropped = std::mem::take(&mut queue.dropped_lines);
            let lines: Vec<u8> = queue.lines.drain(..).flatten().collect();
            queue.queued_bytes = 0;
            queue.is_writing = true;
            drop(queue);
            // There is no other place to report a failure.
            let _ = output.write_all(&lines);
            if dropped > 0 {
                on_dropped(dropped);
            }
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.state.lock();
        if queue.queued_bytes + line.len() > MAX_QUEUED_BYTES {
            queue.dropped_lines += 1;
        } else {
            queue.queued_bytes += line.len();
            queue.lines.push_back(line.to_vec());
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Drop for LogFlush {
    fn drop(&mut self) {
        let Self(LogWriter(shared)) = self;
        let mut queue = shared.state.lock();
        let is_busy = |queue: &mut LogQueue| queue.is_writing || !queue.lines.is_empty();
        shared.changed.wait_while_for(&mut queue, is_busy, FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An output that is read when the test receives from it, and not before.
    struct UnreadOutput(mpsc::SyncSender<Vec<u8>>);

    impl Write for UnreadOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn unread_output_blocks_no_caller_and_dropped_lines_are_counted() {
        let (output, read) = mpsc::sync_channel(0);
        let (dropped_sender, dropped) = mpsc::channel();
        let report = move |count| dropped_sender.send(count).unwrap();
        let (mut caller, flush) = LogWriter::start(UnreadOutput(output), report).unwrap();
        let (done_sender, done) = mpsc::channel();
        let line = [b'x'; 1024];
        // A thread of its own, so that a failure is not a hang.
        std::thread::spawn(move || {
            for _ in 0..4_096 {
                caller.write_all(&line).unwrap();
            }
            done_sender.send(()).unwrap();
        });
        assert_eq!(done.recv_timeout(Duration::from_secs(10)), Ok(()), "the caller is blocked");

        let mut written = 0;
        let mut count = None;
        for _ in 0..1_000 {
            if let Ok(bytes) = read.recv_timeout(Duration::from_millis(20)) {
                written += bytes.len();
            }
            count = dropped.try_recv().ok();
            if count.is_some() {
                break;
            }
        }
        let count = count.expect("lines are dropped");
        assert_eq!(written / 1_024 + usize::try_from(count).unwrap(), 4_096);
        assert!(written <= 2 * MAX_QUEUED_BYTES, "{written}");
        drop((read, flush));
    }

    #[test]
    fn exit_waits_for_queued_lines_but_not_for_ever() {
        let (output, read) = mpsc::sync_channel(8);
        let (mut writer, flush) = LogWriter::start(UnreadOutput(output), |_| ()).unwrap();
        writer.write_all(b"a\n").unwrap();
        writer.write_all(b"b\n").unwrap();
        drop(flush);
        assert_eq!(read.try_iter().flatten().collect::<Vec<_>>(), b"a\nb\n");

        let (output, _read) = mpsc::sync_channel(0);
        let (mut writer, flush) = LogWriter::start(UnreadOutput(output), |_| ()).unwrap();
        writer.write_all(b"a\n").unwrap();
        drop(flush);
    }
}
