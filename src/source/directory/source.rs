use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::options::{Args, Options};
use super::scan_loop;
use crate::resource::SourceId;
use crate::source::source_handle::{Source, SourceContext, SourceControl, SourceHandle, SourceInfo};
use crate::source::{StoredStatuses, requests};

/// The namespace of objects that name none, and whose names carry none.
const DEFAULT_NAMESPACE: &str = "default";

impl Args {
    /// Gives the source.
    pub fn open(self) -> impl Source + use<> {
        let shown = self.root.display().to_string();
        let info = SourceInfo {
            edit_instruction: format!("edit the files in {shown}").into(),
            id: SourceId { kind: "directory", location: shown },
            identity: self.root.clone(),
            root: Some(self.root.clone()),
            default_namespace: Some(DEFAULT_NAMESPACE.into()),
            policy: self.policy.clone(),
            api_server: None,
        };
        DirectorySource { info, args: self }
    }
}

struct DirectorySource {
    info: SourceInfo,
    args: Args,
}

impl Source for DirectorySource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn start(self: Box<Self>, start: SourceContext) -> SourceHandle {
        let SourceContext { state_dir: state, digest_key: key, metrics, tracker, stop } = start;
        let options = Options { args: self.args, digest_key: key, metrics };
        let (declared, mailbox) = scan_loop::start(options, state, &tracker, stop.clone());
        let (pruned, seen) = (mailbox.clone(), declared.clone());
        let wishes = SourceControl::new(
            move || pruned.confirm_removal(),
            move || {
                let (mailbox, seen) = (mailbox.clone(), seen.clone());
                async move {
                    mailbox.request_scan().await;
                    Arc::clone(&seen.borrow())
                }
                .boxed()
            },
        );
        let (requests, desired, stage) = requests(declared, stop);
        tracker.spawn(stage);
        let shown = watch::channel(StoredStatuses::default()).1;
        SourceHandle { desired, requests: Some(requests), control: Some(wishes), stored_statuses: shown }
    }
}
