use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is asked for where the hard bound says "unlimited", which macOS does not take.
const FALLBACK_OPEN_FILES: u64 = 10_240;

/// Raises the limit of open files to its hard bound: each server and each agent holds a few.
pub fn raise_open_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(FALLBACK_OPEN_FILES);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(wanted), maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?current, wanted, "the limit of open files could not be raised");
    }
}
