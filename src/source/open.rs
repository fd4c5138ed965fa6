use super::source_handle::Source;
use super::{directory, kubernetes};
use crate::net::api_server::NoApiServer;

/// What is to be reconciled, as the arguments say. A new source is one more line here.
#[derive(Clone, Debug)]
pub enum SourceArgs {
    /// A directory of files.
    Directory(directory::Args),
    /// The objects of an API server.
    Kubernetes(kubernetes::Args),
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SourceError(#[from] NoApiServer);

impl SourceArgs {
    /// Finds out where the source is; that it answers is not needed yet.
    pub async fn open(self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            Self::Directory(args) => Box::new(args.open()),
            Self::Kubernetes(args) => Box::new(args.open().await?),
        })
    }
}
