//! A wrapper that closes a connection if the other side stops reading.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Fails writes that have made no progress for the timeout because the other side does not read.
#[derive(Debug)]
pub struct StallGuard<T> {
    io: T,
    timeout: Duration,
    stall_timer: Option<Pin<Box<Sleep>>>,
    evictions: Counter,
}

impl<T> StallGuard<T> {
    /// Wraps a connection. A write that makes no progress for `timeout` fails and increments `evictions`.
    pub fn new(io: T, timeout: Duration, evictions: Counter) -> Self {
        Self { io, timeout, stall_timer: None, evictions }
    }

    fn check_stall<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stall_timer = None;
            return written;
        }
        // Created only when a write has to wait, which is rare.
        let timeout = self.timeout;
        let stall_timer = self.stall_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        if stall_timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.evictions.inc();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the agent stopped reading")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StallGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallGuard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.check_stall(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.check_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.check_stall(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.io).poll_shutdown(cx);
        self.check_stall(cx, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalled_reader_times_out_and_slow_reader_does_not() {
        let timeout = Duration::from_secs(30);
        let (local, mut remote) = duplex(4);
        let evictions = Counter::default();
        let mut guarded = StallGuard::new(local, timeout, evictions.clone());
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 2];
            for _ in 0..10 {
                sleep(timeout * 9 / 10).await;
                remote.read_exact(&mut buffer).await.unwrap();
            }
            remote
        });
        guarded.write_all(&[0; 20]).await.unwrap();
        let _remote = reader.await.unwrap();
        let start = Instant::now();
        let error = guarded.write_all(&[0; 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= timeout && start.elapsed() < timeout * 2);
        assert_eq!(evictions.get(), 1);
    }
}
