use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit to request where the hard limit is unlimited, which macOS rejects.
const FALLBACK_OPEN_FILES: u64 = 10_240;

/// Raises the soft limit of open files to the hard limit: each server and each agent needs a few.
pub fn raise_open_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let requested = maximum.unwrap_or(FALLBACK_OPEN_FILES);
    if current.is_none_or(|current| current >= requested) {
        return;
    }
    let raised = Rlimit { current: Some(requested), maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?current, requested, "cannot raise the limit of open files");
    }
}
