//! The Unix socket in a state directory, over which commands reach a running instance.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const SOCKET_FILE: &str = "socket";

/// The longest socket path that every system accepts, in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 103;

/// Listens on the socket of a state directory.
///
/// The caller must hold the lock of the directory: an existing socket is then the stale one of an instance that was
/// killed, and is replaced.
pub fn bind(state: &Path) -> io::Result<tokio::net::UnixListener> {
    remove(state)?;
    let listener = with_socket_path(state, |path| UnixListener::bind(path))?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Connects to the instance of a state directory; `None` if none is running.
pub fn connect(state: &Path) -> io::Result<Option<tokio::net::UnixStream>> {
    match with_socket_path(state, |path| UnixStream::connect(path)) {
        Ok(stream) => {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream).map(Some)
        }
        // Connection refused: the socket is stale.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Removes the socket, if it exists.
pub fn remove(state: &Path) -> io::Result<()> {
    match std::fs::remove_file(state.join(SOCKET_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Calls `act` with a path to the socket that is short enough.
///
/// State directories have long names, but a socket path is limited to 108 bytes (104 on macOS). On Linux a longer
/// path is replaced by one through the open directory in `/proc`.
fn with_socket_path<T>(state: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = state.join(SOCKET_FILE);
    if path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
        return act(&path);
    }
    if !cfg!(target_os = "linux") {
        let message =
            format!("{} is too long for a Unix socket; set XDG_STATE_HOME to a shorter path", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let directory = File::open(state)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connect_works_for_long_paths_and_ignores_stale_sockets() {
        let home = tempfile::tempdir().unwrap();
        for state in [home.path().join("short"), home.path().join("long".repeat(40))] {
            if state.as_os_str().len() > MAX_SOCKET_PATH_BYTES && !cfg!(target_os = "linux") {
                continue;
            }
            assert!(connect(&state).unwrap().is_none(), "no state directory");
            std::fs::create_dir(&state).unwrap();
            assert!(connect(&state).unwrap().is_none(), "no socket");
            let listener = bind(&state).unwrap();
            assert!(connect(&state).unwrap().is_some());
            drop(listener);
            assert!(connect(&state).unwrap().is_none(), "a socket without a daemon");
            let _listener = bind(&state).unwrap();
            assert!(connect(&state).unwrap().is_some(), "a stale socket is replaced");
            remove(&state).unwrap();
            remove(&state).unwrap();
        }
    }
}
