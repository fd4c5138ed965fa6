use tokio::sync::watch;

use super::tasks::Tasks;
use crate::report::StatusSnapshot;
use crate::report::kubernetes::{Leadership, WriterInputs, run_writers};
use crate::source::{ApiServer, StoredStatuses};

/// Writes statuses and events while this replica holds the Lease.
pub(super) fn spawn_status_writer(
    server: &ApiServer,
    store: watch::Receiver<StatusSnapshot>,
    shown: watch::Receiver<StoredStatuses>,
    tasks: &mut Tasks,
) {
    let (lead, leading) = watch::channel(false);
    let lease = Leadership::new(server.client.clone(), &server.namespace, &server.lease, &server.instance);
    let stop = tasks.stop_token();
    tasks.spawn("the lease", async move {
        lease.run(lead, stop).await;
        Ok(())
    });
    let inputs = WriterInputs {
        client: server.client.clone(),
        store,
        stored_statuses: shown,
        leading,
        instance: server.instance.clone(),
    };
    let stop = tasks.stop_token();
    tasks.spawn("the writer of statuses", async move {
        // Three loops in one: too large for the stack of whoever starts it.
        Box::pin(run_writers(inputs, stop)).await;
        Ok(())
    });
}
