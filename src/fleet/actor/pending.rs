//! Futures that stay pending while there is nothing to wait for.

use std::pin::Pin;

use tokio::time::Instant;

/// Polls a future, if there is one.
pub(super) async fn poll_some<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Sleeps until an instant, if there is one.
pub(super) async fn sleep_until_some(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
