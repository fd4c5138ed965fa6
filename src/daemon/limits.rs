use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is asked for where the hard bound says "unlimited", which macOS does not take.
const PLENTY: u64 = 10_240;

/// Raises the limit of open files to its hard bound: each server and each agent holds a few.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(PLENTY);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(wanted), maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?current, wanted, "the limit of open files could not be raised");
    }
}
