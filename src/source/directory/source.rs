use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::options::{Args, Options};
use super::watched;
use crate::resource::SourceId;
use crate::source::source_handle::{Source, SourceContext, SourceControl, SourceHandle, SourceInfo};
use crate::source::{StoredStatuses, requests};

/// The namespace of objects that name none, and whose names carry none.
const HOME_NAMESPACE: &str = "default";

impl Args {
    /// Gives the source.
    pub fn open(self) -> impl Source + use<> {
        let shown = self.root.display().to_string();
        let info = SourceInfo {
            to_change: format!("edit the files in {shown}").into(),
            id: SourceId { kind: "directory", place: shown },
            identity: self.root.clone(),
            root: Some(self.root.clone()),
            home: Some(HOME_NAMESPACE.into()),
            policy: self.policy.clone(),
            api_server: None,
        };
        Directory { info, args: self }
    }
}

struct Directory {
    info: SourceInfo,
    args: Args,
}

impl Source for Directory {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn start(self: Box<Self>, start: SourceContext) -> SourceHandle {
        let SourceContext { state, key, metrics, tracker, stop } = start;
        let options = Options { args: self.args, key, metrics };
        let (declared, mailbox) = watched::start(options, state, &tracker, stop.clone());
        let (pruned, seen) = (mailbox.clone(), declared.clone());
        let wishes = SourceControl::new(
            move || pruned.prune(),
            move || {
                let (mailbox, seen) = (mailbox.clone(), seen.clone());
                async move {
                    mailbox.look().await;
                    Arc::clone(&seen.borrow())
                }
                .boxed()
            },
        );
        let (requests, desired, stage) = requests(declared, stop);
        tracker.spawn(stage);
        let shown = watch::channel(StoredStatuses::default()).1;
        SourceHandle { desired, requests: Some(requests), wishes: Some(wishes), shown }
    }
}
