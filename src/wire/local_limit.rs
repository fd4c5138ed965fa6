//! Limits of this machine or of evenkeel's process that no server is to blame for.

use std::io;

use rustix::io::Errno;

use super::error::{ConnectionError, FailureSource};
use crate::resource::Reason;

/// Returns the error of an attempt that failed at a limit of this machine or of evenkeel's process; `None` if the error
/// is another one. `what` could not be opened or started.
pub(super) fn local_limit_error(what: &str, error: &io::Error) -> Option<ConnectionError> {
    let advice = match Errno::from_io_error(error)? {
        Errno::MFILE => {
            "evenkeel has too many open files; raise its limit (ulimit -n, or LimitNOFILE of its unit)"
        }
        Errno::NFILE => "this machine has too many open files; raise fs.file-max",
        Errno::ADDRNOTAVAIL => {
            "this machine has no free local port, or no address of the server's family (IPv4, IPv6)"
        }
        Errno::NOBUFS | Errno::NOMEM => "this machine is out of memory",
        Errno::AGAIN => {
            "evenkeel may not start more processes; raise its limit (ulimit -u, or TasksMax of its unit)"
        }
        _ => return None,
    };
    Some(limit_error(format!("evenkeel cannot open {what}: {advice} ({error})")))
}

/// Returns the error of an attempt that is not made, because the files that evenkeel may still open are kept for others.
pub fn open_file_limit_error() -> ConnectionError {
    limit_error(
        "evenkeel has too many open files for another connection; raise its limit (ulimit -n, or LimitNOFILE of its unit)"
            .to_owned(),
    )
}

fn limit_error(message: String) -> ConnectionError {
    ConnectionError {
        failure_source: FailureSource::LocalLimit,
        ..ConnectionError::new(Reason::LocalLimit, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_from_failures_of_a_server() {
        let error = |errno: Errno| local_limit_error("a socket", &errno.into());
        for errno in
            [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM, Errno::AGAIN]
        {
            let error = error(errno).unwrap();
            assert!(!error.ends_connection() && error.problem.reason == Reason::LocalLimit, "{error}");
        }
        assert!(error(Errno::MFILE).unwrap().to_string().contains("ulimit -n"));
        for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::TIMEDOUT, Errno::NOENT] {
            assert!(error(errno).is_none(), "{errno}");
        }
        assert!(local_limit_error("a socket", &io::Error::other("x")).is_none());
    }
}
