//! The notification of an agent that its roots have changed.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Gateway;
use crate::upstream::{CallerId, UpstreamHandle};
use crate::wire::Era;

/// The time that a server has to accept the notification.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

impl Gateway {
    /// Passes `notifications/roots/list_changed` on to the caller's own connections to servers that get its roots. The
    /// modern era has no such notification: a modern server gets the roots with each request.
    pub(super) async fn pass_roots_changed(&self, caller: &CallerId) {
        let handles = self.caller_connections.handles_with_roots(caller);
        let connections = handles.iter().filter_map(UpstreamHandle::live_connection);
        let sending = connections.filter(|connection| connection.handshake().era == Era::Legacy).map(
            async |connection| match timeout(
                SEND_TIMEOUT,
                connection.notify("notifications/roots/list_changed", None),
            )
            .await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a change of roots was not passed on"),
                Err(_) => tracing::debug!("a server did not accept a change of roots in time"),
            },
        );
        join_all(sending).await;
    }
}
