use tokio::sync::watch;

use super::tasks::Tasks;
use crate::report::StatusSnapshot;
use crate::report::kubernetes::{Leadership, WriterInputs, run_writers};
use crate::source::{ApiServer, StoredStatuses};

/// Starts the tasks that write statuses and events while this replica holds the Lease.
pub(super) fn spawn_status_writer(
    server: &ApiServer,
    store: watch::Receiver<StatusSnapshot>,
    stored_statuses: watch::Receiver<StoredStatuses>,
    tasks: &mut Tasks,
) {
    let (leader_sender, leading) = watch::channel(false);
    let lease = Leadership::new(server.client.clone(), &server.namespace, &server.lease, &server.instance);
    let stop = tasks.stop_token();
    tasks.spawn("the lease", async move {
        lease.run(leader_sender, stop).await;
        Ok(())
    });
    let inputs = WriterInputs {
        client: server.client.clone(),
        store,
        stored_statuses,
        leading,
        instance: server.instance.clone(),
    };
    let stop = tasks.stop_token();
    tasks.spawn("the writer of statuses", async move {
        // Boxed, because a future of three loops is too large for the caller's stack.
        Box::pin(run_writers(inputs, stop)).await;
        Ok(())
    });
}
