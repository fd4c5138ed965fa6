use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::options::{Args, Options};
use super::scan_loop;
use crate::resource::SourceId;
use crate::source::source_handle::{Source, SourceContext, SourceControl, SourceHandle, SourceInfo};
use crate::source::{StoredStatuses, merge_requests};

/// The namespace of objects that do not specify one, and whose names are shown without it.
const DEFAULT_NAMESPACE: &str = "default";

impl Args {
    /// Creates the source.
    pub fn open(self) -> impl Source + use<> {
        let path = self.root.display().to_string();
        let info = SourceInfo {
            edit_instruction: format!("edit the files in {path}").into(),
            id: SourceId { kind: "directory", location: path },
            identity: self.root.clone(),
            root: Some(self.root.clone()),
            default_namespace: Some(DEFAULT_NAMESPACE.into()),
            namespaces: [DEFAULT_NAMESPACE.into()].into(),
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

    fn start(self: Box<Self>, context: SourceContext) -> SourceHandle {
        let SourceContext { state_dir, digest_key, metrics, tasks, stop } = context;
        let options = Options { args: self.args, digest_key, metrics };
        let (source_desired, events) = scan_loop::start(options, state_dir, &tasks, stop.clone());
        let (removal_events, published) = (events.clone(), source_desired.clone());
        let control = SourceControl::new(
            move || removal_events.confirm_removal(),
            move || {
                let (events, published) = (events.clone(), published.clone());
                async move {
                    events.request_scan().await;
                    Arc::clone(&published.borrow())
                }
                .boxed()
            },
        );
        let (requests, desired, merge) = merge_requests(source_desired, stop);
        tasks.spawn("the merge of requests", merge);
        let stored_statuses = watch::channel(StoredStatuses::default()).1;
        SourceHandle { desired, requests: Some(requests), control: Some(control), stored_statuses }
    }
}
