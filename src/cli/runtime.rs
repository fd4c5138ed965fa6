use super::error::CommandError;

/// Runs an asynchronous command on a single-threaded runtime.
pub(super) fn block_on<T>(task: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::failed)?
        .block_on(task)
}
