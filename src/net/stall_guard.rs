//! A connection whose other side stops reading is broken, instead of waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Fails writes once the other side has taken nothing for a while though there was something to take.
#[derive(Debug)]
pub struct StallGuard<T> {
    io: T,
    timeout: Duration,
    stall_timer: Option<Pin<Box<Sleep>>>,
    evictions: Counter,
}

impl<T> StallGuard<T> {
    /// Guards a connection; `limit` is how long a write may wait, and each that waits longer counts in `evictions`.
    pub fn new(io: T, limit: Duration, evictions: Counter) -> Self {
        Self { io, timeout: limit, stall_timer: None, evictions }
    }

    fn check_stall<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stall_timer = None;
            return written;
        }
        // Made only when a write has to wait, which few ever do.
        let limit = self.timeout;
        let stalled = self.stall_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if stalled.as_mut().poll(cx).is_pending() {
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
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.check_stall(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalled_reader_times_out_and_slow_reader_does_not() {
        let limit = Duration::from_secs(30);
        let (near, mut far) = duplex(4);
        let evictions = Counter::default();
        let mut guarded = StallGuard::new(near, limit, evictions.clone());
        let reader = tokio::spawn(async move {
            let mut two = [0; 2];
            for _ in 0..10 {
                sleep(limit * 9 / 10).await;
                far.read_exact(&mut two).await.unwrap();
            }
            far
        });
        guarded.write_all(&[0; 20]).await.unwrap();
        let _far = reader.await.unwrap();
        let start = Instant::now();
        let error = guarded.write_all(&[0; 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= limit && start.elapsed() < limit * 2);
        assert_eq!(evictions.get(), 1);
    }
}
