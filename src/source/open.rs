use super::source_handle::Source;
use super::{directory, kubernetes};
use crate::net::api_server::NoApiServer;

/// The source to reconcile, as given by the arguments. A new kind of source is one more variant.
#[derive(Clone, Debug)]
pub enum SourceArgs {
    /// A directory of files.
    Directory(directory::Args),
    /// The objects of an API server.
    Kubernetes(kubernetes::Args),
}

/// The reason a source cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SourceError(#[from] NoApiServer);

impl SourceArgs {
    /// Resolves the location of the source. The source does not have to be reachable yet.
    pub async fn open(self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::Directory(args) => Box::new(args.open()),
            Self::Kubernetes(args) => Box::new(args.open().await?),
        })
    }
}
